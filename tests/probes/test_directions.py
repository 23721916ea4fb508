"""Parts of a direction add up to it and are orthogonal; matrices come out of parameters and go back, fused or not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.measures import masks
from offprincipal.probes.directions import PARTS, Direction, Region, joined, matrices_of, unit, wanted
from tests.probes.conftest import loaded

shapes = st.tuples(st.integers(2, 12), st.integers(2, 12))


def drawn(shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)  # the first mask compiles
@given(shapes, st.integers(0, 5), st.integers(1, 8))
def test_parts_add_up_and_are_orthogonal(shape, seed, rank):
    region, v = Region.of(drawn(shape, seed), rank), drawn(shape, seed + 100)
    parts = {name: region.part(name, v) for name in PARTS}
    for one, other in (("on", "off"), ("principal", "other")):
        assert torch.allclose(parts[one] + parts[other], v)
        assert abs(float((parts[one] * parts[other]).sum())) < 1e-9
    k = masks.principal_rank(shape, rank)
    left, _, right = torch.linalg.svd(drawn(shape, seed), full_matrices=False)
    literal = left[:, :k] @ left[:, :k].T @ v @ right[:k].T @ right[:k]
    assert torch.allclose(parts["on"], literal, atol=1e-8)
    assert int(region.mask.sum()) == masks.count(0.5, v.numel())


@settings(deadline=None, max_examples=30)
@given(shapes, st.integers(0, 5))
def test_units_have_norm_one_and_draws_do_not_depend_on_the_update(shape, seed):
    region, delta = Region.of(drawn(shape, seed)), drawn(shape, seed + 1).float()
    for direction in wanted(2):
        found = unit(direction, delta, region, 0, "x")
        assert found is not None
        assert float(found.norm()) == pytest.approx(1, rel=1e-5)
        assert found.dtype == delta.dtype
        if direction.random:
            assert torch.equal(found, unit(direction, 3 * delta, region, 0, "x"))
    whole = (unit(Direction("whole", 0), delta, region, seed, "x") for seed in (0, 1))
    assert not torch.equal(*whole)
    assert unit(Direction("whole", -1), torch.zeros(shape), region, 0, "x") is None


def test_the_parts_of_a_draw_are_parts_of_one_draw():
    region = Region.of(drawn((6, 5), 0))
    delta = torch.zeros(6, 5, dtype=torch.float64)
    whole, on, off = (unit(Direction(part, 0), delta, region, 0, "x") for part in ("whole", "on", "off"))
    assert torch.allclose(on * (on * whole).sum() + off * (off * whole).sum(), whole)


@pytest.mark.parametrize(
    ("family", "config", "kinds"),
    [
        ("qwen3", {}, {"q", "k", "v", "o", "gate", "up", "down"}),
        ("phi3", {}, {"q", "k", "v", "o", "gate", "up", "down"}),  # fused projections
        ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}, {"q", "k", "v", "o", "up", "down"}),
    ],
)
def test_matrices_are_taken_and_put_back(model, family, config, kinds):
    found = loaded(model("base", family=family, **config))
    matrices = matrices_of(found)
    assert {matrix.piece.place.kind for matrix in matrices} == kinds
    again = {name: torch.full_like(weight, torch.nan) for name, weight in found.weights().items()}
    for matrix in matrices:
        taken = matrix.take(found.weights()[matrix.parameter])
        assert tuple(taken.shape) == matrix.piece.shape
        matrix.put(taken, again[matrix.parameter])
    for name in {matrix.parameter for matrix in matrices}:
        assert torch.equal(again[name], found.weights()[name])


def test_one_direction_through_all_matrices(folders):
    base, tuned = loaded(folders["base"]), loaded(folders["rl"])
    matrices = matrices_of(base)
    deltas = {m: m.take(tuned.weights()[m.parameter]) - m.take(base.weights()[m.parameter]) for m in matrices}
    regions = {m: Region.of(m.take(base.weights()[m.parameter])) for m in matrices}
    for direction in wanted(1):
        found = joined(direction, deltas, regions, 0, base)
        total = sum(float(each.square().sum()) for each in found.values()) ** 0.5
        assert total == pytest.approx(1, rel=1e-4)
        one = matrices[3]
        share = float(deltas[one].norm()) / sum(float(d.square().sum()) for d in deltas.values()) ** 0.5
        assert float(found[one.parameter].norm()) == pytest.approx(share, rel=1e-4)
    update = joined(Direction("whole", -1), deltas, regions, 0, base)
    flat, delta = (torch.cat([x[m.parameter].flatten() for m in matrices]) for x in (
        update, {m.parameter: deltas[m] for m in matrices}))  # fmt: skip
    assert torch.allclose(flat, delta / delta.norm(), atol=1e-6)
