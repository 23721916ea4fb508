"""The Hub, stood in for by a local server: what is fetched and what is not, and every way it can fail."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from offprincipal.checkpoint import describe, open_checkpoint
from offprincipal.errors import InputError
from offprincipal.pairs import pair

if TYPE_CHECKING:
    from hub_server import Hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
WIDE = 256  # a tensor of 256 KiB: more than the first range request takes


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Hub"]:
    """A server that this process takes for the Hub, with an empty cache and no token."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import hub_server

    with hub_server.taken_for_the_hub(tmp_path, monkeypatch) as server:
        server.folders["org/model"] = sharded(tmp_path / "org-model")
        yield server


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(WIDE, WIDE, generator=random) for i in range(2)}


def sharded(folder: Path) -> Path:
    folder.mkdir()
    content = weights()
    weight_map = dict(zip(content, (ONE, TWO), strict=True))
    for name, file in weight_map.items():
        save_file({name: content[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    (folder / "modeling_evil.py").write_text("never fetched")
    return folder


def test_opening_reads_headers_only(hub: "Hub", tmp_path: Path) -> None:
    checkpoint = open_checkpoint("org/model")
    assert (checkpoint.kind, checkpoint.commit, checkpoint.ref) == ("hub", COMMIT, "org/model")
    assert checkpoint.config == {"model_type": "llama"}
    found = describe(checkpoint)
    assert found.parameters == 2 * WIDE * WIDE
    assert [row.file for row in found.rows] == [ONE, TWO]
    for file in (ONE, TWO):
        size = (tmp_path / "org-model" / file).stat().st_size
        assert 0 < hub.sent(file) <= 100_001 < size  # never a whole weight file
    asked = [item for item in hub.served if item.path.endswith(".safetensors") and item.method == "GET"]
    assert all(item.range for item in asked)
    fetched = {item.path.rpartition("/")[2] for item in hub.served if item.sent}
    assert not {"pytorch_model.bin", "modeling_evil.py"} & fetched
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_reading_downloads_only_the_shard_it_needs(hub: "Hub", tmp_path: Path) -> None:
    checkpoint = pickle.loads(pickle.dumps(open_checkpoint("org/model@v1")))
    name, expected = next(iter(weights().items()))
    hub.served.clear()
    assert torch.equal(checkpoint.read(name), expected)
    assert hub.sent(ONE) == (tmp_path / "org-model" / ONE).stat().st_size
    assert hub.sent(TWO) == 0
    hub.served.clear()
    assert torch.equal(checkpoint.read(name), expected)
    assert hub.sent(ONE) == 0  # from the cache


def test_a_hub_reference_pairs_with_a_folder(hub: "Hub", tmp_path: Path) -> None:
    plan = pair(open_checkpoint("hf://org/model@" + COMMIT), open_checkpoint(tmp_path / "org-model"))
    assert plan.unpaired == ()
    for made in plan.pairs:
        before, after = made.load()
        assert torch.equal(before, after)


def test_identity_belongs_to_the_commit(hub: "Hub") -> None:
    before = open_checkpoint("org/model")
    before.read(next(iter(before.tensors)))
    assert open_checkpoint("org/model@v1").identity() == before.identity()


def test_a_long_header_takes_a_second_range(hub: "Hub", tmp_path: Path) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    many = {f"model.layers.{i}.some.rather.long.name.of.a.tensor.weight": torch.zeros(64) for i in range(2000)}
    save_file(many, folder / "model.safetensors")
    hub.folders["org/long"] = folder
    assert len(open_checkpoint("org/long").tensors) == 2000
    ranges = [item.range for item in hub.served if item.path.startswith("/cdn/org/long")]
    assert len(ranges) == 2
    assert hub.sent("model.safetensors") < (folder / "model.safetensors").stat().st_size


def test_offline(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"offline, and org/model is not in the Hub's cache; go online once"
    with pytest.raises(InputError, match=message):
        open_checkpoint("org/model", offline=True)
    online = open_checkpoint("org/model")
    online.read(next(iter(weights())))
    hub.served.clear()
    with pytest.raises(InputError, match=f"names '{TWO}', which is not there"):
        open_checkpoint("org/model", offline=True)
    online.read(list(weights())[1])
    hub.served.clear()
    cached = open_checkpoint("org/model", offline=True)
    assert (cached.kind, cached.commit) == ("hub", COMMIT)
    assert cached.identity() == online.identity()
    for name, expected in weights().items():
        assert torch.equal(cached.read(name), expected)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_checkpoint(f"org/model@{COMMIT}").commit == COMMIT
    assert hub.served == []


def test_what_is_in_the_cache_is_not_asked_again(hub: "Hub") -> None:
    online = open_checkpoint("org/model")
    for name in online.tensors:
        online.read(name)
    hub.served.clear()
    assert open_checkpoint("org/model").identity() == online.identity()
    assert hub.sent(ONE) == hub.sent(TWO) == 0


def test_unknown_repository_and_revision(hub: "Hub") -> None:
    with pytest.raises(
        InputError, match=r"the Hub shows no repository org/none; check the name; if it is private, log"
    ):
        open_checkpoint("org/none")
    with pytest.raises(InputError, match="org/model has no revision 'v9'; check the branch, tag or commit"):
        open_checkpoint("org/model@v9")
    with pytest.raises(InputError, match=r"is no name of a repository; give org/name"):
        open_checkpoint("org/model--x")


def test_gated_and_private(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add("org/model")
    with pytest.raises(
        InputError, match=r"org/model is gated; accept its terms on the Hub and log in \(hf auth login"
    ):
        open_checkpoint("org/model")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="org/model is gated"):
        open_checkpoint("org/model")
    hub.gated.clear()
    hub.private.add("org/model")
    with pytest.raises(InputError, match="the Hub shows no repository org/model"):
        open_checkpoint("org/model")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert open_checkpoint("org/model").commit == COMMIT
    assert {item.token for item in hub.served if item.status == 302} == {"Bearer hf_right"}
    assert {item.token for item in hub.served if item.status == 206} == {None}  # never shown to another host


@pytest.mark.parametrize(("status", "message"), [(403, r"refused access to org/model \(403\)"), (418, "status 418")])
def test_other_refusals(hub: "Hub", status: int, message: str) -> None:
    hub.status = status
    with pytest.raises(InputError, match=message):
        open_checkpoint("org/model")


def test_a_page_that_is_not_the_hub(hub: "Hub") -> None:
    hub.portal = True
    with pytest.raises(
        InputError, match=r"the answer of http://127\.0\.0\.1:\d+ is not the Hub's; check HF_ENDPOINT and"
    ):
        open_checkpoint("org/model")


def test_no_answer_at_all(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        InputError, match=r"the connection to http://127\.0\.0\.1:9 failed \(ConnectError.*--offline if"
    ):
        open_checkpoint("org/model")


def test_a_connection_cut_within_a_header(hub: "Hub") -> None:
    hub.cuts[ONE] = 1  # once: tried again
    assert len(open_checkpoint("org/model").tensors) == 2
    hub.cuts[ONE] = 99
    with pytest.raises(
        InputError, match=r"the connection to .* failed .*check the network and HF_ENDPOINT and run it"
    ):
        open_checkpoint("org/model")


def test_a_connection_cut_within_a_shard(hub: "Hub", monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between huggingface_hub's own attempts
    checkpoint = open_checkpoint("org/model")
    hub.cuts[ONE] = 2  # resumed where it broke off
    name, expected = next(iter(weights().items()))
    assert torch.equal(checkpoint.read(name), expected)
    hub.cuts[TWO] = 99
    with pytest.raises(InputError, match=f"cannot download {TWO} of org/model: the connection to .* failed"):
        checkpoint.read(list(weights())[1])
    assert not list((tmp_path / "cache").rglob(TWO))  # nothing half-written passes for the shard


def test_a_server_without_ranges(hub: "Hub") -> None:
    hub.ranges = False
    with pytest.raises(
        InputError, match=f"the server does not answer range requests for {ONE}; download the repository"
    ):
        open_checkpoint("org/model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes, too few"),
        (bytes([255] * 8), "announces a header of"),
        (b"\2" + bytes(7) + b"[]", "JSON obj"),
    ],
)
def test_damage_on_the_hub(hub: "Hub", tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "org-model" / ONE).write_bytes(content)
    with pytest.raises(InputError, match=f"cannot open checkpoint 'org/model': .*{ONE}.*{message}"):
        open_checkpoint("org/model")


def test_pickles_and_missing_shards_on_the_hub(hub: "Hub", tmp_path: Path) -> None:
    (tmp_path / "org-model" / TWO).unlink()
    with pytest.raises(InputError, match=f"names '{TWO}', which is not there"):
        open_checkpoint("org/model")
    (tmp_path / "org-model" / ONE).unlink()
    (tmp_path / "org-model" / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"only pickled weights \(\.bin\)"):
        open_checkpoint("org/model")


def test_an_adapter_and_its_base_on_the_hub(hub: "Hub", tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    random = torch.Generator().manual_seed(1)
    stem = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    a, b = torch.randn(2, WIDE, generator=random), torch.randn(WIDE, 2, generator=random)
    save_file({stem + "A.weight": a, stem + "B.weight": b}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/model", "revision": "v1"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    hub.folders["org/adapter"] = folder
    found = open_checkpoint("org/adapter")
    assert (found.kind, found.commit, found.base_ref) == ("adapter", COMMIT, f"org/model@{COMMIT}")
    name, expected = next(iter(weights().items()))
    torch.testing.assert_close(found.read(name), expected + 2 * b @ a)


def test_the_environment_decides(hub: "Hub", tmp_path: Path) -> None:
    """In a process of its own, since huggingface_hub reads HF_* when it is imported."""
    code = (
        "import sys; from offprincipal.checkpoint import open_checkpoint; print(open_checkpoint('org/model').commit)"
    )
    home = tmp_path / "home"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home)}
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**environment, **more}
        )

    online = run()
    assert online.stdout.strip() == COMMIT, online.stderr
    assert (home / "hub" / "models--org--model" / "snapshots" / COMMIT / "config.json").is_file()
    offline = run(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "other"))
    assert offline.returncode == 1
    assert "offline, and org/model is not in the Hub's cache" in offline.stderr
