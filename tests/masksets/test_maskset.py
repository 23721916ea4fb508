"""A set on disk: what it tells without loading, what it loads, and everything that is refused with words."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError
from offprincipal.masksets import MaskSet, build_masks, save_masks
from offprincipal.masksets._files import HEADER
from offprincipal.measures.seeds import torch_generator
from tests.tiny import save_checkpoint, tiny_weights

UP = "model.layers.0.mlp.up_proj.weight"


def some_masks() -> dict[str, torch.Tensor]:
    shapes = {"a.weight": ((33, 17), 0.5), "b.weight": ((100, 10), 0.01), "c.weight": ((5, 5), 0.0)}
    return {
        name: torch.rand(shape, generator=torch_generator(0, name)) < density
        for name, (shape, density) in shapes.items()
    }


def rewritten(folder: Path, change) -> Path:
    """The set's file again with another header."""
    file = folder / "masks.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    header = json.loads(metadata[HEADER])
    metadata[HEADER] = json.dumps(change(header) or header)
    tensors = load_file(file)
    save_file(tensors, folder / "masks.safetensors", metadata=metadata)
    return folder


def test_names_counts_and_masks(tmp_path):
    wanted = some_masks()
    saved = save_masks(tmp_path / "set", wanted)
    for path in (tmp_path / "set", tmp_path / "set" / "masks.safetensors"):
        masks = MaskSet.open(path)
        assert masks.header == saved.header
        assert masks.names == tuple(wanted)
        assert list(masks) == list(wanted)
        assert len(masks) == 3
        assert "a.weight" in masks
        assert "d" not in masks
        for name, mask in wanted.items():
            assert torch.equal(masks[name], mask)
            assert masks.shape(name) == tuple(mask.shape)
            assert masks.ones(name) == int(mask.sum())
            assert masks.density(name) == int(mask.sum()) / mask.numel()
        total = sum(int(mask.sum()) for mask in wanted.values())
        assert masks.density() == total / sum(mask.numel() for mask in wanted.values())
    assert MaskSet.open(saved) is saved


def test_an_iterable_is_saved_as_a_mapping_is(tmp_path):
    save_masks(tmp_path / "mapping", some_masks())
    save_masks(tmp_path / "iterable", iter(some_masks().items()))
    first, second = (tmp_path / name / "masks.safetensors" for name in ("mapping", "iterable"))
    assert first.read_bytes() == second.read_bytes()


def test_opening_reads_no_mask(tmp_path):
    save_masks(tmp_path / "set", some_masks())
    file = tmp_path / "set" / "masks.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    masks = MaskSet.open(tmp_path / "set")
    with pytest.raises(InputError, match="its bytes are not those that its header promises; the file is damaged"):
        [masks[name] for name in masks]


def test_a_file_that_lies_about_its_ones_is_refused(tmp_path):
    from offprincipal.measurement import content_hash

    save_masks(tmp_path / "set", {"w": torch.arange(16) < 5})

    def lie(header):
        header["tensors"]["w"]["ones"] += 1

    with pytest.raises(InputError, match=r"it has 5 ones and its header promises 6"):
        MaskSet.open(rewritten(tmp_path / "set", lie))["w"]
    bits = torch.tensor([255], dtype=torch.uint8)
    save_file({"w": bits}, tmp_path / "set" / "masks.safetensors", metadata={
        HEADER: json.dumps({"schema_version": 1, "rule": {"kind": "given"}, "base": {}, "density": 1.0, "tensors": {
            "w": {"shape": [5], "ones": 5, "base_xxh3": None, "mask_xxh3": content_hash(bits)}}})})  # fmt: skip
    with pytest.raises(InputError, match="bits are set beyond its last entry"):
        MaskSet.open(tmp_path / "set")["w"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: {**h, "schema_version": 2}, "schema version 2, this program reads 1"),
        (lambda h: [h], "schema version None"),
        (lambda h: {**h, "tensors": {}}, "does not list the masks that its files hold"),
        (lambda h: {**h, "base": None}, "does not list the masks"),
        (lambda h: {**h, "tensors": {**h["tensors"], "a.weight": {"shape": [3]}}}, "says too little of 'a.weight'"),
        (
            lambda h: {**h, "tensors": {**h["tensors"], "a.weight": {**h["tensors"]["a.weight"], "shape": [9]}}},
            "'a.weight' is stored as U8",
        ),
        (
            lambda h: {**h, "tensors": {**h["tensors"], "c.weight": {**h["tensors"]["c.weight"], "ones": 1}}},
            r"'c.weight' is stored as I32 \[0\], no mask of 1 ones",
        ),
    ],
)
def test_a_foreign_or_damaged_header_is_refused(tmp_path, change, words):
    save_masks(tmp_path / "set", some_masks())
    with pytest.raises(InputError, match=words):
        MaskSet.open(rewritten(tmp_path / "set", change))


def test_what_is_not_a_mask_set_is_refused(tmp_path, checkpoint):
    with pytest.raises(InputError, match="there is no such folder or file"):
        MaskSet.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="they hold something else; give a mask set"):
        MaskSet.open(checkpoint("base"))
    save_masks(tmp_path / "set", some_masks())
    file = tmp_path / "set" / "masks.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = {**opened.metadata(), HEADER: "{"}
    save_file(load_file(file), file, metadata=metadata)
    with pytest.raises(InputError, match="its header is not valid JSON"):
        MaskSet.open(tmp_path / "set")
    with pytest.raises(InputError, match="quantised"):  # masks are never taken for weights
        open_checkpoint(tmp_path / "set")


def test_a_cut_off_file_and_a_missing_shard_are_refused(tmp_path, monkeypatch):
    save_masks(tmp_path / "one", some_masks())
    file = tmp_path / "one" / "masks.safetensors"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match="ends at byte"):
        MaskSet.open(tmp_path / "one")
    monkeypatch.setattr("offprincipal.masksets._draft.SHARD_BYTES", 1)
    masks = save_masks(tmp_path / "many", some_masks())
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 3
    assert all(torch.equal(masks[name], mask) for name, mask in some_masks().items())
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    save_masks(tmp_path / "other", {**some_masks(), "b.weight": torch.ones(100, 10, dtype=torch.bool)})
    own = shards[1].read_bytes()
    shards[1].write_bytes((tmp_path / "other" / shards[1].name).read_bytes())
    with pytest.raises(InputError, match="its files belong to different mask sets"):
        MaskSet.open(tmp_path / "many")
    shards[1].write_bytes(own)
    shards[0].unlink()
    with pytest.raises(InputError, match="2 of 3 shards are there"):
        MaskSet.open(tmp_path / "many")


def test_a_mask_that_is_not_there(tmp_path):
    masks = save_masks(tmp_path / "set", some_masks())
    for read in (masks.__getitem__, masks.shape, masks.ones, masks.density):
        with pytest.raises(InputError, match="it has no mask of that name"):
            read("d.weight")


def test_check_base_knows_names_shapes_and_content(checkpoint, tmp_path):
    base = checkpoint("base")
    masks = build_masks(base, tmp_path / "low", "low")
    masks.check_base(base)
    masks.check_base(open_checkpoint(base))
    other = tiny_weights()
    other[UP][3, 4] *= 2
    with pytest.raises(InputError, match=f"the values of '{UP}' are others than those of"):
        masks.check_base(save_checkpoint(tmp_path / "other", other))
    with pytest.raises(InputError, match=f"has '{UP}' in shape"):
        masks.check_base(save_checkpoint(tmp_path / "shape", {**other, UP: other[UP].T.contiguous()}))
    del other[UP]
    with pytest.raises(InputError, match=f"has no tensor '{UP}'"):
        masks.check_base(save_checkpoint(tmp_path / "name", other))


def test_masks_saved_without_a_base_know_names_and_shapes(checkpoint, tmp_path):
    base = checkpoint("base")
    masks = save_masks(tmp_path / "set", {UP: torch.ones(48, 32, dtype=torch.bool)})
    masks.check_base(base)
    wrong = save_masks(tmp_path / "wrong", {UP: torch.ones(32, 48, dtype=torch.bool)})
    with pytest.raises(InputError, match="give the base that they were made for"):
        wrong.check_base(base)
    opened = open_checkpoint(base)
    known = save_masks(tmp_path / "known", {UP: torch.ones(48, 32, dtype=torch.bool)}, base=opened)
    assert known.header["base"]["ref"] == str(base)
    known.check_base(base)
    with pytest.raises(InputError, match="values of"):
        known.check_base(checkpoint("tuned", delta=1e-2))


def test_one_commit_of_the_hub_is_believed(checkpoint, tmp_path):
    from dataclasses import replace

    opened = open_checkpoint(checkpoint("base"))
    on_hub = replace(opened, ref="org/name@main", kind="hub", commit="c" * 40)
    masks = save_masks(tmp_path / "set", {UP: torch.ones(48, 32, dtype=torch.bool)}, base=on_hub)
    elsewhere = open_checkpoint(checkpoint("tuned", delta=1e-2))  # its values differ, so it passes only unread
    masks.check_base(replace(elsewhere, ref="hf://org/name", kind="hub", commit="c" * 40))
    with pytest.raises(InputError, match="values of"):
        masks.check_base(replace(elsewhere, ref="org/name", kind="hub", commit="d" * 40))


def test_what_cannot_be_saved(tmp_path, checkpoint):
    with pytest.raises(InputError, match=r"the mask of 'w' is torch\.float32; give boolean tensors"):
        save_masks(tmp_path / "set", {"w": torch.ones(3)})
    assert not (tmp_path / "set").exists()
    save_masks(tmp_path / "set", {"w": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(InputError, match="it holds a mask set already"):
        save_masks(tmp_path / "set", {"w": torch.zeros(3, dtype=torch.bool)})
    with pytest.raises(InputError, match=r"has no tensor 'w' of shape \[3\]"):
        save_masks(tmp_path / "b", {"w": torch.ones(3, dtype=torch.bool)}, base=open_checkpoint(checkpoint("base")))


def test_a_file_that_goes_while_in_use(tmp_path):
    masks = save_masks(tmp_path / "set", some_masks())
    (tmp_path / "set" / "masks.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        masks["a.weight"]
