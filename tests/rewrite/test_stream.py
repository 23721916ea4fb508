"""Canonical tensors out of stored ones and back, for every layout of every family."""

import pytest
import torch

from offprincipal.names import Cut, locate
from offprincipal.rewrite._stream import put, take

CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16, "head_dim": 4}


@pytest.mark.parametrize(
    ("model_type", "name", "shape"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.weight", (16, 16)),
        ("llama", "model.layers.0.input_layernorm.weight", (16,)),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight", (32, 16)),
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight", (20, 16)),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight", (48, 16)),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.bias", (48,)),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", (16, 48)),
        ("gpt2", "transformer.h.0.attn.c_attn.bias", (48,)),
        ("gpt2", "transformer.h.0.mlp.c_proj.weight", (20, 16)),
        ("qwen3_moe", "model.layers.0.mlp.experts.gate_up_proj", (3, 10, 16)),
        ("qwen3_moe", "model.layers.0.mlp.experts.down_proj", (3, 16, 5)),
    ],
)
def test_pieces_taken_and_put_back_make_the_tensor(model_type, name, shape):
    stored = torch.randn(shape)
    rebuilt = torch.full(shape, torch.nan)
    pieces = locate(name, shape, {**CONFIG, "model_type": model_type})
    for piece in pieces:
        taken = take(stored, piece)
        assert taken.shape == piece.shape
        assert taken.is_contiguous()
        put(rebuilt, piece.cut, taken)
    assert torch.equal(rebuilt, stored)


def test_put_changes_its_rows_only():
    stored = torch.zeros(6, 2)
    put(stored, Cut(start=1, length=1, stride=3, count=2), torch.ones(2, 2))
    assert stored.sum(1).tolist() == [0, 2, 0, 0, 2, 0]
