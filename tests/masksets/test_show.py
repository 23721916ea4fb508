"""Densities per kind and layer, from the header and from fused masks."""

import torch

from offprincipal.masksets import MaskSet, build_masks, densities
from tests.tiny import save_checkpoint


def test_groups_add_up(checkpoint, tmp_path):
    masks = build_masks(checkpoint("base"), tmp_path / "out", include_all=True)
    found = densities(masks)
    assert [group["kind"] for group in found["by_kind"]] == ["embed", "q", "k", "v", "o", "gate", "up", "down", "head"]
    assert [group["layer"] for group in found["by_layer"]] == [0, 1, None]
    for groups in found.values():
        assert sum(group["ones"] for group in groups) == masks.header["ones"]
        assert sum(group["weights"] for group in groups) == masks.header["entries"]
        assert sum(group["matrices"] for group in groups) == len(masks)
        assert all(group["density"] == group["ones"] / group["weights"] for group in groups)


def test_the_header_is_enough_for_plain_weights(checkpoint, tmp_path):
    build_masks(checkpoint("base"), tmp_path / "out")
    file = tmp_path / "out" / "masks.safetensors"
    masks = MaskSet.open(file)
    file.unlink()
    assert len(densities(masks)["by_layer"]) == 2


def test_a_fused_weight_counts_as_its_matrices(tmp_path):
    config = {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    name = "model.layers.0.self_attn.qkv_proj.weight"
    base = save_checkpoint(tmp_path / "base", {name: torch.randn(64, 32).bfloat16()}, config, shards=1)
    found = densities(build_masks(base, tmp_path / "out", "low"))["by_kind"]
    assert [(group["kind"], group["matrices"], group["density"]) for group in found] == [
        ("q", 1, 0.5), ("k", 1, 0.5), ("v", 1, 0.5)]  # fmt: skip
