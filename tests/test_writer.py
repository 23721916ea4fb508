"""Shards on disk: as the library writes them, whole or absent, the same bytes after any stop."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError, UsageError
from offprincipal.measures.seeds import torch_generator
from offprincipal.writer import JOB, Writer

KEY = {"what": "rotate", "layers": (1, 2)}
ROOT = Path(__file__).parents[1]


def weights(count: int = 7) -> dict[str, torch.Tensor]:
    return {f"w{i}": torch.randn(5, 8, generator=torch_generator(i, "w")).bfloat16() for i in range(count)}


def write(folder: Path, tensors: dict[str, torch.Tensor], key=KEY, **options) -> Path:
    with Writer(folder, key, **options) as writer:
        for name, tensor in tensors.items():
            if name not in writer:
                writer.add(name, tensor)
        writer.finish()
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_shards_index_and_metadata(tmp_path):
    wanted = weights()
    folder = write(tmp_path / "out", wanted, shard_bytes=200, metadata={"note": "é"})
    names = [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    assert sorted(os.listdir(folder)) == [*names, "model.safetensors.index.json"]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in wanted.values())
    assert index["weight_map"] == {f"w{i}": names[i // 2] for i in range(7)}
    with safe_open(folder / names[0], "pt") as opened:
        metadata = opened.metadata()
    assert metadata.items() >= {"format": "pt", "note": "é"}.items()
    assert json.loads(metadata[JOB])["key"] == {"what": "rotate", "layers": [1, 2]}
    opened = open_checkpoint(folder)
    assert all(torch.equal(opened.read(name), tensor) for name, tensor in wanted.items())


def test_one_shard_is_one_file_laid_out_as_the_library_does(tmp_path):
    mixed = {
        "half": torch.randn(3, 4).bfloat16(),
        "scalar": torch.tensor(2.0),
        "empty": torch.empty(0, 4),
        "fp8": torch.randn(5).to(torch.float8_e4m3fn),
        "wide": torch.randn(2, dtype=torch.float64),
        "ünicode": torch.ones(1),
    }
    folder = write(tmp_path / "out", mixed)
    assert os.listdir(folder) == ["model.safetensors"]
    ours = folder / "model.safetensors"
    save_file(mixed, tmp_path / "theirs")  # no metadata: the library would order it at random
    headers = []
    for file in (ours, tmp_path / "theirs"):
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        assert length % 8 == 0
        headers.append((list(header.items()), content[8 + length :]))
    assert headers[0] == headers[1]
    assert all(torch.equal(load_file(ours)[n].float(), t.float()) for n, t in mixed.items())


def test_views_are_copied_and_a_tensor_larger_than_a_shard_has_its_own(tmp_path):
    large = torch.arange(100.0)
    views = {"head": large[:2], "even": large[::2], "whole": large, "turned": large.view(10, 10).T}
    folder = write(tmp_path / "out", views, shard_bytes=210)
    found = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert found.keys() == views.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in views.items())
    assert len(list(folder.glob("*.safetensors"))) == 3


@pytest.mark.parametrize("stop_after", range(8))
def test_a_stopped_job_goes_on_and_writes_the_same_bytes(tmp_path, stop_after):
    whole = files(write(tmp_path / "whole", weights(), shard_bytes=200))
    part = tmp_path / "part"
    with Writer(part, KEY, shard_bytes=200) as writer:
        for name, tensor in list(weights().items())[:stop_after]:
            writer.add(name, tensor)
    with pytest.raises(InputError):
        open_checkpoint(part)  # nothing half-written passes for a checkpoint
    assert files(write(part, weights(), shard_bytes=200)) == whole


@pytest.mark.parametrize("survived", range(6))
def test_a_job_killed_between_two_renames_goes_on(tmp_path, survived, monkeypatch):
    whole = files(write(tmp_path / "whole", weights(), shard_bytes=200))
    real, done = os.replace, []

    def killed(source, target):
        if Path(target).parent == tmp_path / "part":
            if len(done) == survived:
                raise KeyboardInterrupt
            done.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    if survived < 5:  # the index and four shards
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "part", weights(), shard_bytes=200)
        with pytest.raises(InputError):
            open_checkpoint(tmp_path / "part")
    monkeypatch.undo()
    assert files(write(tmp_path / "part", weights(), shard_bytes=200)) == whole


def test_a_finished_job_is_left_as_it_is(tmp_path):
    before = files(write(tmp_path / "out", weights(), shard_bytes=200))
    with Writer(tmp_path / "out", KEY, shard_bytes=200) as writer:
        assert all(name in writer for name in weights())
        writer.finish()
    assert files(tmp_path / "out") == before


def test_a_damaged_shard_and_those_after_it_are_written_again(tmp_path, caplog):
    whole = files(write(tmp_path / "whole", weights(), shard_bytes=200))
    with Writer(tmp_path / "part", KEY, shard_bytes=200) as writer:
        for name, tensor in weights().items():
            writer.add(name, tensor)
    shards = tmp_path / "part" / ".model.partial"
    (shards / "00009.tmp").write_bytes(b"half")
    with (shards / "00002.safetensors").open("r+b") as file:
        file.truncate(100)
    assert files(write(tmp_path / "part", weights(), shard_bytes=200)) == whole
    assert "00002.safetensors is damaged" in caplog.text


@pytest.mark.parametrize("finished", [True, False])
def test_another_job_is_told_what_differs(tmp_path, finished):
    with Writer(tmp_path, {**KEY, "seed": 1}, shard_bytes=100) as writer:
        for name, tensor in weights().items():
            writer.add(name, tensor)
        if finished:
            writer.finish()
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"of another job \(different seed, shard_bytes\)"):
        Writer(tmp_path, {**KEY, "seed": 2})
    after = files(tmp_path)
    assert {name for name in before if "lock" not in name} == {name for name in after if "lock" not in name}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.safetensors", "which another program wrote"),
        ("model-00001-of-00002.safetensors", "which another program wrote"),
        ("model.safetensors.index.json", "of another checkpoint"),
    ],
)
def test_foreign_checkpoints_are_never_touched(tmp_path, name, words):
    if name.endswith("json"):
        (tmp_path / name).write_text("{}")
    else:
        save_file({"a": torch.ones(1)}, tmp_path / name)
    before = files(tmp_path)
    with pytest.raises(InputError, match=words):
        Writer(tmp_path, KEY)
    assert files(tmp_path) == before


def test_a_damaged_file_of_that_name_is_said(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match=r"it holds a damaged model\.safetensors"):
        Writer(tmp_path, KEY)


def test_two_stems_share_a_folder(tmp_path):
    with Writer(tmp_path, KEY) as one, Writer(tmp_path, KEY, stem="masks") as two:
        one.add("w", torch.ones(2))
        two.add("m", torch.ones(2, dtype=torch.bool))
        two.finish()
        one.finish()
    assert sorted(os.listdir(tmp_path)) == ["masks.safetensors", "model.safetensors"]


def test_the_second_writer_is_told(tmp_path):
    with Writer(tmp_path, KEY), pytest.raises(InputError, match="another process is writing into it right now"):
        Writer(tmp_path, KEY)
    with Writer(tmp_path, KEY):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write(tmp_path / "out", weights())
    assert "make sure that nobody else writes there" in caplog.text


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write into .*: the system says: Not a directory"):
        Writer(tmp_path / "file" / "out", KEY)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        Writer(tmp_path / "out", KEY)


def test_wrong_use_is_said(tmp_path):
    with pytest.raises(UsageError, match="shards of 0 bytes"):
        Writer(tmp_path / "none", KEY, shard_bytes=0)
    with Writer(tmp_path / "out", KEY) as writer:
        with pytest.raises(UsageError, match="no tensor was added"):
            writer.finish()
        with pytest.raises(UsageError, match=r"safetensors has no torch\.complex128"):
            writer.add("w", torch.ones(1, dtype=torch.complex128))
        writer.add("w", torch.ones(1))
        with pytest.raises(UsageError, match="it was added before"):
            writer.add("w", torch.ones(1))
    assert not (tmp_path / "out").exists()  # an unused folder does not stay


def job(folder: Path, limit: int = 0, pause: float = 0.0) -> None:
    """Forty tensors, two to a shard, the last one large."""
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # to a program the same as a full disk
    with Writer(folder, {}, shard_bytes=400_000) as writer:
        for i in range(40):
            if f"w{i:02d}" not in writer:
                writer.add(f"w{i:02d}", torch.full((100_000 if i < 39 else 300_000,), i, dtype=torch.int16))
                time.sleep(pause)
        try:
            writer.finish()
        except InputError as problem:
            sys.exit(str(problem))


def elsewhere(call: str) -> subprocess.Popen[str]:
    program = f"from pathlib import Path; from tests.test_writer import job; {call}"
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_killed_it_goes_on_with_the_same_bytes(tmp_path):
    job(tmp_path / "whole")
    with elsewhere(f"job(Path({str(tmp_path / 'part')!r}), pause=0.02)") as running:
        while len(list(tmp_path.glob("part/.model.partial/*.safetensors"))) < 7:
            assert running.poll() is None
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
    job(tmp_path / "part")
    assert files(tmp_path / "part") == files(tmp_path / "whole")


def test_a_full_disk_is_said_and_nothing_half_written_stays(tmp_path):
    with elsewhere(f"job(Path({str(tmp_path / 'part')!r}), limit=500_000)") as full:
        said = full.communicate()[1]
    assert full.returncode == 1
    assert "the system says: File too large; free space" in said
    assert "Traceback" not in said
    names = {name for name in files(tmp_path / "part") if "lock" not in name}
    assert names == {f".model.partial/000{i:02d}.safetensors" for i in range(1, 21)}  # 39 tensors, whole
    job(tmp_path / "part")
    job(tmp_path / "whole")
    assert files(tmp_path / "part") == files(tmp_path / "whole")
