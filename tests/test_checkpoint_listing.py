"""Indexes, borders of the folder, and quantised weights."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError, OffprincipalError

INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def sharded(folder: Path, weight_map: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"a": torch.ones(2)}, folder / ONE)
    save_file({"b": torch.ones(3)}, folder / TWO)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/x.safetensors", "s/../../x.safetensors", "x.bin", "", 3,
                                  "..\\x.safetensors", "C:\\x.safetensors", "a\0.safetensors", "./x.safetensors",
                                  "\ud800.safetensors"])  # fmt: skip
def test_an_index_may_not_point_out_of_the_folder(tmp_path: Path, file: object) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    folder = sharded(tmp_path / "model", {"a": ONE, "b": file})
    with pytest.raises(InputError, match=r"puts tensor 'b' into .*, which is no \.safetensors file of the folder"):
        open_checkpoint(folder)


def test_a_symbolic_link_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", {"a": ONE, "b": TWO})
    save_file({"b": torch.ones(3)}, tmp_path / "secret.safetensors")
    (folder / TWO).unlink()
    (folder / TWO).symlink_to("../secret.safetensors")
    with pytest.raises(InputError, match=f"'{TWO}' leads out of the folder; a checkpoint may not point elsewhere"):
        open_checkpoint(folder)
    (folder / TWO).unlink()
    save_file({"b": torch.ones(3)}, folder / "blob")
    (folder / TWO).symlink_to("blob")  # a link that stays inside is fine
    assert set(open_checkpoint(folder).tensors) == {"a", "b"}
    (folder / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match=r"'config\.json' leads out of the folder"):
        open_checkpoint(folder)


def test_a_link_in_a_circle(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", {"a": ONE, "b": TWO})
    (folder / TWO).unlink()
    (folder / TWO).symlink_to(TWO)
    with pytest.raises(InputError, match=r"leads out of the folder|which is not there"):
        open_checkpoint(folder)


def test_a_linked_folder_is_the_folder_itself(tmp_path: Path) -> None:
    sharded(tmp_path / "model", {"a": ONE, "b": TWO})
    (tmp_path / "latest").symlink_to("model")
    assert set(open_checkpoint(tmp_path / "latest").tensors) == {"a", "b"}


def cached(root: Path, commit: str) -> Path:
    """The layout of the Hub's cache: snapshots of links into blobs."""
    repository = root / "models--org--name"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / commit
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file({"a": torch.ones(2)}, blobs / "0123abcd")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123abcd")
    return snapshot


def test_a_snapshot_of_the_hub_cache_works(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "hub", "f" * 40)
    checkpoint = open_checkpoint(snapshot)
    assert checkpoint.commit == "f" * 40
    assert checkpoint.read("a").tolist() == [1, 1]
    assert open_checkpoint(snapshot / "model.safetensors").read("a").tolist() == [1, 1]


def test_blobs_shared_by_all_repositories_of_the_cache(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "hub", "f" * 40)
    shared = tmp_path / "hub" / "blobs" / "01"
    shared.mkdir(parents=True)
    blob = snapshot.parent.parent / "blobs" / "0123abcd"
    blob.rename(shared / "0123")
    blob.symlink_to("../../blobs/01/0123")
    assert open_checkpoint(snapshot).read("a").tolist() == [1, 1]


def test_a_snapshot_may_not_lead_elsewhere(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "hub", "f" * 40)
    save_file({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(InputError, match="leads out of the folder"):
        open_checkpoint(snapshot)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a": ONE, "b": "model-00003-of-00002.safetensors"},
            "names 'model-00003-of-00002.safetensors', which is not",
        ),
        ({"a": ONE, "b": ONE}, f"says that {ONE} has tensor 'b', and it has not"),
        ({"a": TWO, "b": ONE}, f"says that {TWO} has tensor 'a', and it has not"),
        ({"a": ONE, "b": TWO, "c": TWO}, f"says that {TWO} has tensor 'c', and it has not"),
        ({}, "has no weight_map"),
        ([1], "has no weight_map"),
    ],
)
def test_index_and_shards_that_disagree(tmp_path: Path, weight_map: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(sharded(tmp_path / "model", weight_map))


def test_a_tensor_that_the_index_does_not_know(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", {"a": ONE, "b": TWO})
    save_file({"b": torch.ones(3), "c": torch.ones(1), "d": torch.ones(1)}, folder / TWO)
    with pytest.raises(
        InputError, match=r"the shards hold 'c' \(and 1 more\) and .* does not; index and shards are of"
    ):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", {"a": ONE, "b": TWO})
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, folder / TWO)
    with pytest.raises(InputError, match=f"tensor 'a' is in {TWO} and in another shard"):
        open_checkpoint(folder)


def test_an_index_that_is_no_json(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", {"a": ONE, "b": TWO})
    (folder / INDEX).write_text('{"weight_map": {"a": "x", "a": "y"}}')
    with pytest.raises(InputError, match=r"is not valid JSON .the key 'a' stands twice"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("l.qweight", torch.int32, "packed tensor 'l.qweight'"),
        ("l.weight.absmax", torch.float32, "packed tensor 'l.weight.absmax'"),
        ("l.weight_packed", torch.int32, "packed tensor 'l.weight_packed'"),
        ("l.weight_scale_inv", torch.float32, "scales in tensor 'l.weight_scale_inv'"),
        ("l.weight", torch.int8, "tensor 'l.weight' is I8"),
        ("l.weight", torch.uint8, "tensor 'l.weight' is U8"),
    ],
)
def test_quantised_weights_are_refused(tmp_path: Path, name: str, dtype: torch.dtype, message: str) -> None:
    save_file({name: torch.zeros(2, 2, dtype=dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"the weights are quantised \({message}\); give the unquantised checkpoint"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_a_quantiser_in_the_config_is_refused(tmp_path: Path, method: str) -> None:
    save_file({"l.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method}}))
    with pytest.raises(InputError, match=rf"quant_method '{method}'"):
        open_checkpoint(tmp_path)


def test_integer_buffers_are_no_sign_of_a_quantiser(tmp_path: Path) -> None:
    save_file({"l.weight": torch.zeros(2), "position_ids": torch.arange(3)}, tmp_path / "model.safetensors")
    assert not open_checkpoint(tmp_path).tensors["position_ids"].is_float


FILES = st.sampled_from([ONE, TWO, "../x.safetensors", "sub/x.safetensors", "x.bin"]) | st.text(max_size=12)
MAPS = st.dictionaries(
    st.sampled_from("abc") | st.text(max_size=3), FILES | FILES.map(lambda name: name + ".safetensors")
)


@settings(max_examples=200)
@given(MAPS | st.lists(st.integers(), max_size=2) | st.text(max_size=3))
def test_any_index_is_read_or_refused(weight_map: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = open_checkpoint(sharded(Path(folder), weight_map))
        except OffprincipalError:
            return
        assert isinstance(weight_map, dict)
        assert found.tensors.keys() == weight_map.keys()
