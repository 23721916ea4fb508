"""Matrices close to diagonal ones, taken apart: the eigenvalues and vectors of the whole, within the bound."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprincipal.measures import _cut
from offprincipal.measures._cut import NearlyDiagonal, cut, eigenvalues
from offprincipal.measures.seeds import torch_generator

KEPT = 2.0**-20
"""Of R, what float32 products may lose."""


def near(size: int, step: float, seed: int = 0, spread: float = 1.0) -> NearlyDiagonal:
    """Random falling values, some of them close, and a symmetric step."""
    generator = torch_generator(seed, "cut", str(size))
    values = 1 + spread * torch.rand(size, generator=generator, dtype=torch.float64).sort(descending=True).values
    rest = step * torch.randn(size, size, generator=generator)
    return NearlyDiagonal.of(values, (rest + rest.T) / 2)


def true(whole: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(whole).flip(0)


def size_of(each: NearlyDiagonal) -> float:
    return float(torch.linalg.matrix_norm(each.rest.double(), 2))


steps = st.sampled_from([0.0, 1e-7, 1e-5, 1e-4, 1e-3])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([(2, 1), (40, 13), (150, 75), (300, 128), (300, 290)]), steps, st.integers(0, 5))
def test_both_parts_have_the_eigenvalues_of_the_whole(shape, step, seed):
    size, k = shape
    given_near = near(size, step, seed)
    made = cut(given_near, k)
    if made is None:
        return
    expected, room = true(given_near.whole()), KEPT * size_of(given_near) + 1e-14
    (above, first), (below, second) = made.above(), made.below()
    found = torch.cat([true(above.whole()), true(below.whole())]).sort(descending=True).values
    assert float((found - expected).abs().max()) <= max(first, second) + room
    values, vectors = made.leading()
    assert float((values - expected[:k]).abs().max()) <= room
    assert float((vectors.T @ vectors - torch.eye(k)).abs().max()) <= 1e-13
    residual = given_near.whole() @ vectors - vectors * values
    assert float(torch.linalg.matrix_norm(residual, 2)) <= 4 * room


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_above_the_error_and_not_far(seed, monkeypatch):
    """With hardly an exact turn at the cut Z is so large that the error shows beside rounding."""
    monkeypatch.setattr(_cut, "WINDOW", 1)
    given_near = NearlyDiagonal(torch.linspace(2.0, 1.0, 200).double(), near(200, 3e-4, seed).rest)
    made = cut(given_near, 100)
    assert made is not None
    expected = true(given_near.whole())
    for (part, bound), own in ((made.above(), expected[:100]), (made.below(), expected[100:])):
        assert bound / 100 < float((true(part.whole()) - own).abs().max()) <= bound


def small_end(size: int, step: float, seed: int) -> NearlyDiagonal:
    """The small end of a square matrix, leading: close values, which a step couples strongly to large ones."""
    values = torch.linspace(0.01, 1.0, size, dtype=torch.float64)
    rest = torch.randn(size, size, generator=torch_generator(seed, "end", str(size)))
    return NearlyDiagonal.of(-values.square(), step * (rest + rest.T) * (values[:, None] + values).to(torch.float32))


@pytest.mark.parametrize("window", [2, 8, 64])
@pytest.mark.parametrize("step", [1e-6, 3e-5, 1e-4, 2e-4])
def test_the_block_solves_its_equation(step, window, monkeypatch):
    """Also where the window is narrow, or its part of Z settles long after the rest."""
    monkeypatch.setattr(_cut, "WINDOW", window)
    settled, own = [], _cut._window_settles
    monkeypatch.setattr(_cut, "_window_settles", lambda *a: settled.append(own(*a)) or settled[-1])
    found = [(cut(make(300, step, seed), k), k) for seed in range(4) for make, k in ((near, 128), (small_end, 30))]
    for made, k in ((made, k) for made, k in found if made is not None):
        d, R, Z = made.near.diagonal, made.near.rest.double(), made.block.double()
        once = (R[k:, :k] + R[k:, k:] @ Z - Z @ (R[:k, :k] + R[:k, k:] @ Z)) / (d[:k] - d[k:, None])
        assert float((once - Z).norm()) <= 1.2 * _cut.SETTLED * float(Z.norm())
    assert len(settled) >= sum(made is not None for made, _ in found) > 0


@settings(deadline=None, max_examples=30)
@given(steps, st.integers(0, 5), st.sampled_from([0.0, 1e-9, 1.0]))
def test_eigenvalues_of_many_cuts_are_those_of_the_whole(step, seed, allowed):
    given_near, whole = near(300, step, seed), _cut.WHOLE
    try:
        _cut.WHOLE = 20
        values, error = eigenvalues(given_near, allowed)
    finally:
        _cut.WHOLE = whole
    expected = true(given_near.whole())
    assert float((values - expected).abs().max()) <= error + 4 * KEPT * size_of(given_near) + 1e-14
    assert error <= 5 * allowed  # a value lies behind at most five cuts


def test_a_step_larger_than_the_gaps_is_not_cut():
    assert cut(near(200, 0.1), 100) is None
    given_near = near(700, 0.1)
    values, error = eigenvalues(given_near, 1.0)
    assert error == 0.0
    assert torch.equal(values, true(given_near.whole()))


def test_equal_values_away_from_a_cut_do_no_harm():
    """In the middle of either part, and across the cut, where the window turns them apart."""
    base = near(300, 1e-5)
    values = base.diagonal.sort(descending=True).values
    values[40:44], values[148:152] = values[40], values[150]
    given_near = NearlyDiagonal(values, base.rest)
    made = cut(given_near, 150)
    assert made is not None
    assert float((made.leading()[0] - true(given_near.whole())[:150]).abs().max()) <= KEPT * size_of(base)


def test_the_diagonal_of_the_step_is_kept_in_float64():
    values, rest = torch.tensor([2.0, 1.0], dtype=torch.float64), torch.tensor([[1e-9, 3.0], [3.0, -1e-9]])
    found = NearlyDiagonal.of(values, rest)
    assert float(found.rest.diagonal().abs().max()) == 0.0
    assert found.diagonal.tolist() == pytest.approx([2.0 + 1e-9, 1.0 - 1e-9], abs=1e-16)
    assert found.whole()[0, 1] == 3.0
