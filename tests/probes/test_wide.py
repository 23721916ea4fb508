"""Whole float64 inside a model whose norms and softmax would step down."""

import torch

from offprincipal.probes.wide import Wide
from tests.probes.conftest import loaded


def test_a_small_step_is_seen_below_the_floor_of_float32(folders):
    model = loaded(folders["base"], dtype=torch.float64, derivatives=True)
    ids = torch.tensor([[3, 4, 5, 6]])
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = model.weights()[name]

    def moved(step):
        hidden = model.hidden(ids, ids > 0, {name: weight + step})[0]
        return model.logits(hidden)

    def curved(step):  # |f(s) + f(-s) - 2 f(0)| falls with s^2 unless rounding stands under it
        return float((moved(step) + moved(-step) - 2 * moved(0.0)).abs().max())

    with Wide():
        assert 0.9 < curved(1e-3) / curved(1e-4) / 100 < 1.1
    assert curved(1e-4) > 1e-9


def test_only_while_active():
    with Wide():
        assert torch.zeros(1, dtype=torch.float32).dtype == torch.float64
    assert torch.zeros(1, dtype=torch.float32).dtype == torch.float32
