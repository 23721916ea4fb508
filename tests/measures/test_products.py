"""Products of a step with its base and itself: nonzeros alone and whole slices give the same sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprincipal.measures import _products, _slices, _sparse_pass
from offprincipal.measures._products import step_products
from offprincipal.measures.seeds import torch_generator


def pair(shape: tuple[int, int], density: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A bfloat16 matrix, and the same with this share of its weights changed."""
    generator = torch_generator(seed, "products", str(shape))
    before = torch.randn(shape, generator=generator).bfloat16()
    moved = torch.rand(shape, generator=generator) < density
    return before, torch.where(moved, (before.float() * 1.02).bfloat16(), before)


def literal(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Both products in float64."""
    base, tuned = (w.double() if w.shape[0] >= w.shape[1] else w.double().T for w in (before, after))
    step = tuned - base
    return step.T @ base, (step.T @ step).tril()


def check(before: Tensor, after: Tensor) -> None:
    """Within 2^-20 of the sum of the absolute terms, entry by entry."""
    found = step_products(before, after)
    base, tuned = (w.double() if w.shape[0] >= w.shape[1] else w.double().T for w in (before, after))
    step = tuned - base
    for product, expected, terms in (
        (found.cross, step.T @ base, step.abs().T @ base.abs()),
        (found.square, (step.T @ step).tril(), (step.abs().T @ step.abs()).tril()),
    ):
        assert bool(((product.double() - expected).abs() <= 2.0**-20 * terms).all())


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(1, 1), (7, 3), (3, 7), (64, 64), (300, 20), (20, 300), (257, 128), (130, 129)]),
    st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0]),
    st.integers(0, 3),
)
def test_equal_to_float64(shape, density, seed):
    check(*pair(shape, density, seed))


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(700, 96), (96, 700), (128, 128)])
def test_both_ways_at_any_density(shape, share, monkeypatch):
    monkeypatch.setattr(_products, "SPARSE", share)
    for density in (0.05, 0.5):
        check(*pair(shape, density))


def test_slices_choose_for_themselves(monkeypatch):
    """The upper half is dense, the lower half untouched."""
    monkeypatch.setattr(_slices, "SLICE_ENTRIES", 64 * 96)
    monkeypatch.setattr(_slices, "SLICE_ROWS", 64)
    called = []
    monkeypatch.setattr(_sparse_pass, "columns", lambda *a, own=_sparse_pass.columns: (called.append(1), own(*a)))
    before, after = pair((512, 96), 1.0)
    after[256:] = before[256:]
    after[300, 7] += 1.0
    check(before, after)
    assert len(called) == 4  # of eight


def test_squares_of_square_matrices_are_float64_either_way():
    for density in (0.05, 0.9):
        before, after = pair((64, 64), density)
        square = step_products(before, after).square
        assert square.dtype == torch.float64
        assert torch.allclose(square, literal(before, after)[1], rtol=1e-13, atol=0)


def test_holes_and_signed_zeros_add_nothing():
    before, after = pair((300, 20), 0.05)
    before[0, 0], after[0, 0] = 0.0, -0.0
    holes = torch.zeros(300, 20, dtype=torch.bool)
    holes[5, 5] = holes[250, 1] = True
    expected = literal(before.masked_fill(holes, 0.0), after.masked_fill(holes, 0.0))
    found = step_products(before, after.masked_fill(holes, float("inf")), holes=holes)
    assert torch.allclose(found.cross.double(), expected[0], rtol=1e-5, atol=1e-6)
    assert torch.allclose(found.square.double(), expected[1], rtol=1e-5, atol=1e-9)


@settings(deadline=None)  # the first example may compile
@given(st.sampled_from([1, 9, 128, 129, 300]), st.integers(1, 9), st.integers(0, 1000))
def test_columns_hold_every_nonzero_once(height, width, seed):
    random = np.random.default_rng(seed)
    step = np.where(random.random((height, width)) < 0.4, random.normal(size=(height, width)), 0).astype(np.float32)
    starts = np.full((-(-height // _sparse_pass.HEIGHT), width + 1), 77, np.int32)
    rows, values = np.empty(step.size, np.uint8), np.empty(step.size, np.float32)
    _sparse_pass.columns(step, starts, rows, values)
    for b, first in enumerate(starts):
        block = step[b * _sparse_pass.HEIGHT : (b + 1) * _sparse_pass.HEIGHT]
        for j in range(width):
            part = slice(first[j], first[j + 1])
            assert rows[part].tolist() == np.flatnonzero(block[:, j]).tolist()
            assert values[part].tolist() == block[rows[part], j].tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (300, 5, 131), (128, 200, 64), (40, 3, 256)])
def test_nonzeros_times_any_matrix(shape, dtype):
    """Widths beside and between whole tiles; a total that is not empty is added to."""
    height, size, wide = shape
    random = np.random.default_rng(size)
    step = np.where(random.random((height, size)) < 0.3, random.normal(size=(height, size)), 0).astype(dtype)
    dense, total = (random.normal(size=(rows, wide)).astype(dtype) for rows in (height, size))
    starts = np.empty((-(-height // _sparse_pass.HEIGHT), size + 1), np.int32)
    rows, values = np.empty(step.size, np.uint8), np.empty(step.size, dtype)
    _sparse_pass.columns(step, starts, rows, values)
    expected = total.astype(np.float64) + step.T.astype(np.float64) @ dense.astype(np.float64)
    _sparse_pass.add_products(starts, rows, values, dense, False, total)
    assert np.allclose(total, expected, rtol=0, atol=512 * np.finfo(dtype).eps)  # sums of a hundred
