"""Products measured without forming them, against the dense matrix."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.train.adapters._lowrank import Product, shorten

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9))


def product(sizes: tuple[int, int, int], seed: int, scaling: float = 1.0) -> Product:
    draw = torch.Generator().manual_seed(seed)
    out, into, rank = sizes
    a = torch.randn(rank, into, generator=draw, dtype=torch.float64)
    return Product(a, torch.randn(out, rank, generator=draw, dtype=torch.float64), scaling)


def dense(found: Product) -> torch.Tensor:
    return found.scaling * found.b @ found.a


@given(SIZES, st.integers(0, 99), st.floats(0.1, 4.0))
@settings(max_examples=40, deadline=None)
def test_norms_and_energies_are_those_of_the_dense_matrix(sizes, seed, scaling) -> None:
    found = product(sizes, seed, scaling)
    whole = dense(found)
    torch.testing.assert_close(torch.tensor(found.norm()), whole.norm().float(), rtol=1e-6, atol=1e-9)
    left = torch.linalg.qr(product((sizes[0], 1, 1), seed + 1).b).Q
    right = torch.linalg.qr(product((1, sizes[1], 1), seed + 2).a.T).Q
    inside = found.inside(left, right)
    expected = float((left.T @ whole).square().sum()), float((whole @ right).square().sum())
    torch.testing.assert_close(torch.tensor(inside), torch.tensor(expected), rtol=1e-9, atol=1e-9)


@given(SIZES, st.integers(0, 99), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_shortened_is_the_nearest_and_says_how_far(sizes, seed, rank) -> None:
    found = product(sizes, seed, 2.0)
    short, lost = shorten(found, rank)
    s = torch.linalg.svdvals(dense(found))
    assert len(short.a) == min(rank, sizes[2], sizes[0], sizes[1])
    expected = float(s[rank:].norm())
    assert abs(lost - expected) <= 1e-9 * float(s[0])
    assert abs(float((dense(short) - dense(found)).norm()) - expected) <= 1e-9 * float(s[0])


@given(SIZES, st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_difference_of_equals_vanishes_to_rounding(sizes, seed) -> None:
    found = product(sizes, seed)
    assert found.minus(found).norm() <= 1e-13 * found.norm()
    assert not found.is_zero()
    assert Product(torch.zeros_like(found.a), found.b).is_zero()
    assert Product(found.a, torch.zeros_like(found.b)).is_zero()
