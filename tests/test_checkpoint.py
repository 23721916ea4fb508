"""Opening folders and files, and reading one tensor at a time."""

import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from offprincipal.checkpoint import describe, open_checkpoint
from offprincipal.errors import InputError

INDEX = "model.safetensors.index.json"


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(4, 3, generator=random) for i in range(3)}


def sharded(folder: Path, index: dict[str, str] | None = None) -> dict[str, torch.Tensor]:
    """Two shards and an index; ``index`` overrides entries of the map."""
    content = tensors()
    names = list(content)
    save_file({names[0]: content[names[0]], names[2]: content[names[2]]}, folder / "model-00001-of-00002.safetensors")
    save_file({names[1]: content[names[1]]}, folder / "model-00002-of-00002.safetensors")
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map | (index or {})}))
    return content


def test_a_sharded_folder(tmp_path: Path) -> None:
    content = sharded(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    checkpoint = open_checkpoint(str(tmp_path))
    assert (checkpoint.ref, checkpoint.kind, checkpoint.commit) == (str(tmp_path), "folder", None)
    assert checkpoint.config == {"model_type": "llama"}
    assert list(checkpoint.tensors) == sorted(content)
    for name, tensor in content.items():
        assert torch.equal(checkpoint.read(name), tensor)
    info = checkpoint.tensors["model.layers.1.mlp.up_proj.weight"]
    assert (info.shape, info.dtype, info.nbytes) == ((4, 3), "F32", 48)
    assert info.file == str(tmp_path / "model-00002-of-00002.safetensors")


def test_a_complete_set_of_shards_needs_no_index(tmp_path: Path) -> None:
    content = sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    assert open_checkpoint(tmp_path).tensors.keys() == content.keys()
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"1 of 2 shards are there and no model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


def test_a_single_file_of_any_name(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "weights.safetensors")
    assert open_checkpoint(tmp_path).kind == "folder"
    assert open_checkpoint(tmp_path / "weights.safetensors").kind == "file"
    save_file(tensors(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"2 \.safetensors files .* and no .*name the one file that you mean"):
        open_checkpoint(tmp_path)
    save_file(tensors(), tmp_path / "model.safetensors")  # the usual name settles it
    assert len(open_checkpoint(tmp_path).tensors) == 3


def test_what_is_not_there() -> None:
    with pytest.raises(InputError, match="there is no such folder or file; check the path, or give org/name"):
        open_checkpoint("nowhere")
    with pytest.raises(InputError, match="that is not a path"):
        open_checkpoint("x" * 5000)


def test_a_missing_path_below_a_folder_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with pytest.raises(InputError, match=r"'runs' is a folder here; check the path, or give hf://runs/sft"):
        open_checkpoint("runs/sft")


def test_a_missing_path_object_is_never_a_hub_reference() -> None:
    with pytest.raises(InputError, match="there is no such folder or file"):
        open_checkpoint(Path("org/name"))


def test_folders_without_safetensors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the folder is empty; give a folder with \.safetensors files"):
        open_checkpoint(tmp_path)
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(InputError, match=r"no \.safetensors file in the folder"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(InputError, match=r"only pickled weights \(\.bin\).*save_pretrained, which writes safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(InputError, match=r"torch distributed checkpoint.*accelerate merge-weights"):
        open_checkpoint(tmp_path)
    with pytest.raises(InputError, match=r"pytorch_model\.bin is not a \.safetensors file"):
        open_checkpoint(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1, "a": 2}', "\udcff"])
def test_a_broken_config(tmp_path: Path, text: str) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"config\.json is not (valid JSON|a JSON object)"):
        open_checkpoint(tmp_path)


def test_an_unreadable_folder_or_file(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "model.safetensors").mkdir()  # root may read everything: a folder in the file's place
    else:
        save_file(tensors(), tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").chmod(0)
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        open_checkpoint(tmp_path)


def test_it_travels_to_a_worker(tmp_path: Path) -> None:
    content = sharded(tmp_path)
    travelled = pickle.loads(pickle.dumps(open_checkpoint(tmp_path)))
    for name, tensor in content.items():
        assert torch.equal(travelled.read(name), tensor)


def test_nothing_stays_open_or_mapped(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1000, 100)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    weight = checkpoint.read("w")
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert not any(str(tmp_path) in os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists())
    weight.add_(1)  # memory of its own
    assert checkpoint.read("w").max() == 1


def test_reading_a_tensor_costs_its_own_bytes(tmp_path: Path) -> None:
    size = 64 * 2**20
    save_file({name: torch.zeros(size // 2, dtype=torch.bfloat16) for name in "abcd"}, tmp_path / "model.safetensors")
    code = (
        "import resource, sys\n"
        "from offprincipal.checkpoint import open_checkpoint\n"
        "checkpoint = open_checkpoint(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for name in 'abcd':\n"
        "    weight = checkpoint.read(name); del weight\n"
        "print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 1.1 * size
    assert resource.getpagesize() < size


def test_a_file_that_changes_under_us(tmp_path: Path) -> None:
    sharded(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    path = tmp_path / "model-00002-of-00002.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(InputError, match="is shorter than its header says; it changed while in use"):
        checkpoint.read("model.layers.1.mlp.up_proj.weight")
    path.unlink()
    with pytest.raises(InputError, match=r"cannot be read .*No such file"):
        checkpoint.read("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(InputError, match=r"identify checkpoint .* cannot be read"):
        checkpoint.identity()
    with pytest.raises(InputError, match="has no tensor of that name"):
        checkpoint.read("nothing")


def test_identity_follows_the_content(tmp_path: Path) -> None:
    sharded(tmp_path)
    before = open_checkpoint(tmp_path).identity()
    assert open_checkpoint(tmp_path).identity() == before
    assert len(before) == 64
    path = tmp_path / "model-00002-of-00002.safetensors"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert open_checkpoint(tmp_path).identity() != before


class TestDescribe:
    def test_rows_and_totals(self, tmp_path: Path) -> None:
        embed = torch.zeros(8, 4, dtype=torch.bfloat16)
        save_file(
            {
                "model.embed_tokens.weight": embed,
                "lm_head.weight": embed.clone(),
                "model.layers.0.self_attn.q_proj.weight": torch.zeros(4, 4),
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2),
            },
            tmp_path / "model.safetensors",
        )
        (tmp_path / "config.json").write_text('{"model_type": "qwen3", "tie_word_embeddings": true}')
        found = describe(open_checkpoint(tmp_path))
        assert found.parameters == 32 + 16  # the tied head once, the buffer not at all
        assert found.nbytes == 64 + 64 + 64 + 8
        assert found.largest_nbytes == 64
        assert found.tied == ("model.embed_tokens.weight", "lm_head.weight")
        assert found.by_dtype["BF16"].parameters == 64
        assert {kind: total.parameters for kind, total in found.by_kind.items()} == {
            "embed": 32, "head": 32, "q": 16, "buffer": 2,
        }  # fmt: skip
        row = next(row for row in found.rows if row.kind == "q")
        assert (row.layer, row.linear, row.shape, row.file) == (0, True, (4, 4), "model.safetensors")
        assert (found.model_type, found.family_known) == ("qwen3", True)
        assert json.loads(json.dumps(found.to_dict()))["rows"][0]["shape"] == [8, 4]

    def test_a_fused_tensor_names_all_that_it_holds(self, tmp_path: Path) -> None:
        save_file({"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(3, 8, 4)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
        found = describe(open_checkpoint(tmp_path))
        assert (found.rows[0].kind, found.rows[0].experts, found.rows[0].expert) == ("gate+up", 3, None)
        assert {kind: total.parameters for kind, total in found.by_kind.items()} == {"gate": 48, "up": 48}
        assert found.parameters == 96
