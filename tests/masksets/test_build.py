"""A base to a set end to end: values, fused weights, equal bytes however it ran, resuming, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError, UsageError
from offprincipal.fanout import engine
from offprincipal.masksets import MaskSet, build_masks, save_masks
from offprincipal.masksets._rules import KINDS, Rule, choose
from offprincipal.measurement import content_hash
from offprincipal.measures import bits
from offprincipal.measures.seeds import torch_generator
from offprincipal.pairs import pair
from tests.tiny import CONFIG, save_checkpoint, tiny_weights

UP = "model.layers.0.mlp.up_proj.weight"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def drawn(*shape: int) -> torch.Tensor:
    return (torch.randn(shape, generator=torch_generator(0, *map(str, shape))) * 0.02).bfloat16()


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_inside_blocks_gets_its_mask(kind, checkpoint, tmp_path):
    base, weights, tuned = checkpoint("base"), tiny_weights(), tiny_weights(delta=1e-4)
    options = {"tuned": checkpoint("rl", delta=1e-4)} if kind == "update" else {}
    masks = build_masks(base, tmp_path / "out", kind, **options)
    inside = [name for name in sorted(weights) if "layers" in name and weights[name].ndim == 2]
    assert masks.names == tuple(inside)
    constants = {"rank": 64, "alpha": 0.5} if kind in ("safe", "principal", "nonprincipal") else {"alpha": 0.5}
    rule = Rule(kind, **({} if kind == "update" else constants | ({"seed": 0} if kind == "random" else {})))
    for name in inside:
        wanted = choose(rule, name, weights[name], tuned=tuned[name])
        assert torch.equal(masks[name], wanted)
        assert masks.header["tensors"][name]["base_xxh3"] == content_hash(weights[name])
    assert masks.header["left_out"] == {
        "embed": {"tensors": 1, "weights": 1600}, "norm": {"tensors": 5, "weights": 160},
        "head": {"tensors": 1, "weights": 1600},
    }  # fmt: skip
    assert masks.header["base"]["config"] == CONFIG
    assert sorted(os.listdir(tmp_path / "out")) == ["masks.safetensors"]


def test_serial_parallel_and_resumed_write_the_same_bytes(checkpoint, tmp_path):
    base = checkpoint("base")
    build_masks(base, tmp_path / "serial")
    build_masks(base, tmp_path / "parallel", engine=engine("processes", 2), cache=False)

    def stop_early(done: int, total: int, name: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_masks(base, tmp_path / "resumed", progress=stop_early)
    assert not list((tmp_path / "resumed").glob("*.safetensors"))
    done: list[int] = []
    build_masks(base, tmp_path / "resumed", progress=lambda n, total, name: done.append(n))
    assert done[0] == 5
    assert bytes_of(tmp_path / "serial") == bytes_of(tmp_path / "parallel") == bytes_of(tmp_path / "resumed")
    build_masks(base, tmp_path / "resumed", progress=lambda n, total, name: done.append(n))
    assert done[-1] == 14  # nothing was left to do
    assert bytes_of(tmp_path / "serial") == bytes_of(tmp_path / "resumed")


@pytest.mark.slow
def test_killed_without_warning_and_run_again(checkpoint, tmp_path):
    base, killed = checkpoint("base"), tmp_path / "killed"
    build_masks(base, tmp_path / "whole")
    command = [sys.executable, "-m", "offprincipal", "mask", "build", str(base), "-o", str(killed)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and len(list((killed / ".masks.parts").glob("*.safetensors"))) < 3:
        time.sleep(0.002)
    if child.poll() is None:
        os.kill(child.pid, signal.SIGKILL)
    child.wait()
    build_masks(base, killed)
    assert bytes_of(killed) == bytes_of(tmp_path / "whole")


FUSED = {
    "phi3": (
        {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32},
        {"model.layers.0.self_attn.qkv_proj.weight": (64, 32), "model.layers.0.mlp.gate_up_proj.weight": (96, 32)},
    ),
    "gpt_neox": (
        {"num_attention_heads": 4, "hidden_size": 32},
        {"gpt_neox.layers.0.attention.query_key_value.weight": (96, 32)},
    ),
    "gpt2": (
        {"n_head": 4, "n_embd": 32},
        {"transformer.h.0.attn.c_attn.weight": (32, 96), "transformer.h.0.mlp.c_fc.weight": (32, 128)},
    ),
    "qwen3_moe": (
        {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32},
        {"model.layers.0.mlp.experts.gate_up_proj": (4, 48, 32), "model.layers.0.mlp.experts.down_proj": (4, 32, 24)},
    ),
}


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("kind", ["safe", "random"])
def test_a_fused_weight_is_masked_matrix_by_matrix(family, kind, tmp_path):
    config, shapes = FUSED[family]
    weights = {name: drawn(*shape) for name, shape in shapes.items()}
    base = save_checkpoint(tmp_path / "base", weights, {"model_type": family, **config}, shards=1)
    masks = build_masks(base, tmp_path / "out", kind)
    opened = open_checkpoint(base)
    rule, seen = Rule(kind, 64 if kind == "safe" else None, 0.5, seed=0), 0
    parts = {each.name: each.base.load() for each in pair(opened, opened).pairs}
    for name in masks:
        assert masks[name].shape == weights[name].shape
        for piece, mask in masks.matrices(name):
            assert torch.equal(mask, choose(rule, piece.name, parts[piece.name])), piece.name
            seen += mask.numel()
    assert seen == sum(weight.numel() for weight in weights.values())
    again = build_masks(base, tmp_path / "like", "random", like=masks, seed=7)
    for name in masks:
        pairs = zip(masks.matrices(name), again.matrices(name), strict=True)
        assert all(int(left.sum()) == int(right.sum()) for (_, left), (_, right) in pairs)


def test_update_of_a_fused_weight_lies_in_the_stored_layout(tmp_path):
    config, shapes = FUSED["gpt2"]
    before = {name: drawn(*shape) for name, shape in shapes.items()}
    after = {name: (weight.float() * 1.004).bfloat16() for name, weight in before.items()}
    full = {"model_type": "gpt2", **config}
    base = save_checkpoint(tmp_path / "base", before, full, shards=1)
    masks = build_masks(
        base, tmp_path / "out", "update", tuned=save_checkpoint(tmp_path / "rl", after, full, shards=2)
    )
    for name in before:
        assert torch.equal(masks[name], bits.changed(before[name], after[name]))


def test_random_like_another_set_has_its_density_in_each_matrix(checkpoint, tmp_path):
    base = checkpoint("base")
    safe = build_masks(base, tmp_path / "safe")
    like = build_masks(base, tmp_path / "like", "random", like=tmp_path / "safe", seed=3)
    assert [like.ones(name) for name in like] == [safe.ones(name) for name in safe]
    assert like.header["rule"]["like"]["rule"]["kind"] == "safe"
    assert not any(torch.equal(like[name], safe[name]) for name in safe)
    with pytest.raises(InputError, match=r"differ in '.*' \(2 names or shapes\); give masks of this base"):
        build_masks(base, tmp_path / "other", "random", like=safe, include_all=True)


def test_include_all_takes_embedding_and_head(checkpoint, tmp_path):
    masks = build_masks(checkpoint("base"), tmp_path / "out", "low", include_all=True)
    assert {"model.embed_tokens.weight", "lm_head.weight"} < set(masks)
    assert set(masks.header["left_out"]) == {"norm"}


def test_a_tied_head_that_the_run_untied_is_masked_once(tmp_path):
    weights = tiny_weights()
    head = weights.pop("lm_head.weight")
    base = save_checkpoint(tmp_path / "base", weights, {**CONFIG, "tie_word_embeddings": True})
    moved = {name: (weight.float() * 1.01).bfloat16() for name, weight in weights.items()}
    tuned = save_checkpoint(tmp_path / "tuned", {**moved, "lm_head.weight": head})
    masks = build_masks(base, tmp_path / "out", "update", tuned=tuned, include_all=True)
    embedding = "model.embed_tokens.weight"
    assert torch.equal(masks[embedding], bits.changed(weights[embedding], moved[embedding]))
    assert "lm_head.weight" not in masks
    assert masks.header["left_out"]["head"] == {"tensors": 1, "weights": 1600}


def test_rows_without_a_partner_are_not_in_an_update_mask(tmp_path):
    weights, longer = tiny_weights(), tiny_weights(delta=1e-3)
    weights["model.embed_tokens.weight"] = torch.cat([weights["model.embed_tokens.weight"], drawn(6, 32)])
    del longer["model.layers.1.mlp.up_proj.weight"]
    base, tuned = save_checkpoint(tmp_path / "base", weights), save_checkpoint(tmp_path / "tuned", longer)
    masks = build_masks(base, tmp_path / "out", "update", tuned=tuned, include_all=True)
    mask = masks["model.embed_tokens.weight"]
    assert mask.shape == (56, 32)
    assert int(mask[:50].sum()) > 0
    assert int(mask[50:].sum()) == 0
    assert masks.header["left_out"]["without a partner"] == {"tensors": 2, "weights": 6 * 32 + 48 * 32}
    assert "model.layers.1.mlp.up_proj.weight" not in masks


def test_an_adapter_is_masked_on_what_it_changes(checkpoint, tmp_path):
    base, folder = checkpoint("base"), tmp_path / "adapter"
    folder.mkdir()
    module = "base_model.model.model.layers.0.mlp.up_proj"
    save_file({f"{module}.lora_A.weight": drawn(2, 32).float(), f"{module}.lora_B.weight": drawn(48, 2).float()},
              folder / "adapter_model.safetensors")  # fmt: skip
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    masks = build_masks(base, tmp_path / "out", "update", tuned=folder)
    changed = {name for name in masks if masks.ones(name)}
    assert changed == {UP}


def test_a_folder_in_use_or_of_something_else_is_refused(checkpoint, tmp_path):
    base, out = checkpoint("base"), tmp_path / "out"

    def again(done: int, total: int, name: str) -> None:
        build_masks(base, out, "low")

    with pytest.raises(InputError, match="another process is building masks"):
        build_masks(base, out, "low", progress=again)
    assert not out.exists()
    build_masks(base, out, "low")
    with pytest.raises(InputError, match=r"holds another mask set \(different rule\): rule .*'low'"):
        build_masks(base, out, "random")
    with pytest.raises(InputError, match=r"different base\)"):
        build_masks(checkpoint("other", delta=1e-3), out, "low")
    with pytest.raises(InputError, match=r"holds a checkpoint \(model-00001-of-00002.safetensors\)"):
        build_masks(base, base, "low")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds a checkpoint \(config.json\)"):
        build_masks(base, tmp_path / "config", "low")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the system says"):
        build_masks(base, tmp_path / "file", "low")


def test_parts_of_another_job_are_refused(checkpoint, tmp_path):
    base, out = checkpoint("base"), tmp_path / "out"

    def stop(done: int, total: int, name: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_masks(base, out, "low", progress=stop)
    with pytest.raises(InputError, match=r"holds another mask set \(different rule\)"):
        build_masks(base, out, "safe")
    (out / ".masks.parts" / "job.json").write_text("{")
    with pytest.raises(InputError, match=r"job.json cannot be read"):
        build_masks(base, out, "low")


def test_a_damaged_part_is_made_again_and_said(checkpoint, tmp_path, caplog):
    base, out = checkpoint("base"), tmp_path / "out"

    def stop(done: int, total: int, name: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_masks(base, out, "low", progress=stop)
    parts = sorted((out / ".masks.parts").glob("*.safetensors"))
    parts[0].write_bytes(parts[0].read_bytes()[:-3])
    content = bytearray(parts[1].read_bytes())
    content[-1] ^= 1
    parts[1].write_bytes(content)
    done: list[int] = []
    build_masks(base, out, "low", progress=lambda n, total, name: done.append(n))
    assert done[0] == 4
    assert caplog.text.count("is damaged") == 2
    build_masks(base, tmp_path / "whole", "low")
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_a_part_that_vanishes_is_said(checkpoint, tmp_path):
    base, out = checkpoint("base"), tmp_path / "out"

    def remove(done: int, total: int, name: str) -> None:
        if done == total:
            next((out / ".masks.parts").glob("*.safetensors")).unlink()

    with pytest.raises(InputError, match=r"has gone from .*; run the same command again"):
        build_masks(base, out, "low", progress=remove)


def test_an_empty_mask_and_a_base_without_matrices_are_refused(checkpoint, tmp_path):
    base = checkpoint("base")
    with pytest.raises(InputError, match="the mask is empty: no weight is in it"):
        build_masks(base, tmp_path / "out", "update", tuned=checkpoint("same"))
    assert not list((tmp_path / "out").glob("*.safetensors"))
    save_file({"w": drawn(4, 4)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"no 2-D weight inside a block.*add --include-all"):
        build_masks(tmp_path / "w.safetensors", tmp_path / "w", "low")
    assert build_masks(tmp_path / "w.safetensors", tmp_path / "w", "low", include_all=True).ones("w") == 8


def test_bad_requests_touch_nothing(checkpoint, tmp_path):
    with pytest.raises(UsageError, match="there is no such kind"):
        build_masks("nowhere", tmp_path / "out", "best")
    with pytest.raises(InputError, match="open checkpoint 'nowhere'"):
        build_masks("nowhere", tmp_path / "out")
    with pytest.raises(InputError, match=r"build a safe mask of density 0\.4"):
        build_masks(checkpoint("base"), tmp_path / "out", density=0.4)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_rename_is_finished(checkpoint, tmp_path, monkeypatch):
    """Killed between the renames of two shards: the parts are still there, and the next run ends the work."""
    monkeypatch.setattr("offprincipal.masksets._draft.SHARD_BYTES", 700)
    base, out = checkpoint("base"), tmp_path / "out"
    build_masks(base, tmp_path / "whole", "low")
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) > 3
    real, count = os.replace, iter(range(10_000))

    def dying(source, target):
        if Path(target).parent == out and next(count) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        build_masks(base, out, "low")
    monkeypatch.setattr(os, "replace", real)
    with pytest.raises(InputError):
        MaskSet.open(out)
    build_masks(base, out, "low")
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_leftover_parts_of_a_finished_set_are_cleared(tmp_path, checkpoint):
    base, out = checkpoint("base"), tmp_path / "out"
    masks = build_masks(base, out, "low")
    (out / ".masks.parts").mkdir()
    (out / ".masks.parts" / "lock").touch()
    assert build_masks(base, out, "low").header == masks.header
    assert sorted(os.listdir(out)) == ["masks.safetensors"]


def test_masks_of_a_single_file_base(tmp_path):
    weights = {name: weight for name, weight in tiny_weights().items() if name == UP}
    save_file(weights, tmp_path / "one.safetensors")
    masks = build_masks(tmp_path / "one.safetensors", tmp_path / "out", "low", alpha=0.1)
    assert masks.ones(UP) == round(0.1 * weights[UP].numel())
    assert save_masks(tmp_path / "copy", {UP: masks[UP]}).ones(UP) == masks.ones(UP)
