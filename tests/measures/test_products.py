"""Products of a step with its base and itself: nonzeros alone and whole slices give the same sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprincipal.measures import _products, _sparse_pass
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


def test_what_is_not_bfloat16_or_dense_is_multiplied_whole(monkeypatch):
    called = []
    monkeypatch.setattr(_sparse_pass, "columns", lambda *a, own=_sparse_pass.columns: (called.append(1), own(*a)))
    before, after = pair((300, 96), 0.05)
    for first, second in ((before.half(), after.half()), (before, after.half()), pair((300, 96), 0.5)):
        check(first, second)
    assert not called
    check(before, after)
    assert called


def test_changed_weights_may_lie_together():
    """Whole blocks without a change, a full one, and one weight in the last, incomplete block."""
    before, after = pair((5 * _sparse_pass.HEIGHT + 3, 96), 1.0)
    after[_sparse_pass.HEIGHT : -3], after[-2:] = before[_sparse_pass.HEIGHT : -3], before[-2:]
    check(before, after)
    check(before.T.contiguous(), after.T.contiguous())


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


def noted(before: np.ndarray, after: np.ndarray, lying: bool) -> tuple[np.ndarray, ...]:
    """What `count` and `columns` make of two arrays of codes: starts, rows and both bit patterns."""
    height, width = before.shape[::-1] if lying else before.shape
    starts = np.full((-(-height // _sparse_pass.HEIGHT), width + 1), 77, np.int64)
    found = _sparse_pass.count(before, after, lying, starts)
    rows, first, second = np.empty(found, np.uint8), np.empty(found, np.uint32), np.empty(found, np.uint32)
    _sparse_pass.columns(before, after, lying, starts, rows, first, second)
    return starts, rows, first, second


@settings(deadline=None)  # the first example may compile
@given(st.sampled_from([1, 9, 128, 129, 300]), st.integers(1, 9), st.booleans(), st.integers(0, 1000))
def test_columns_hold_every_change_once(height, width, lying, seed):
    random = np.random.default_rng(seed)
    before = random.integers(0, 1 << 16, (height, width)).astype(np.uint16)
    after = np.where(random.random((height, width)) < 0.4, before + np.uint16(1), before)
    stored = [np.ascontiguousarray(each.T if lying else each) for each in (before, after)]
    starts, rows, first, second = noted(*stored, lying)
    assert starts[0, 0] == 0
    assert starts[-1, -1] == len(rows) == (before != after).sum()
    assert (starts[1:, 0] == starts[:-1, -1]).all()
    for b, start in enumerate(starts):
        block = slice(b * _sparse_pass.HEIGHT, (b + 1) * _sparse_pass.HEIGHT)
        for j in range(width):
            part = slice(start[j], start[j + 1])
            assert rows[part].tolist() == np.flatnonzero(before[block, j] != after[block, j]).tolist()
            for bits, codes in ((first, before), (second, after)):
                assert (bits[part] >> 16).tolist() == codes[block][rows[part], j].tolist()
                assert not (bits[part] & 0xFFFF).any()


@pytest.mark.parametrize("lying", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (300, 5), (300, 131), (140, 128), (40, 256), (7000, 3)])
def test_nonzeros_times_base_and_times_themselves(shape, lying):
    """Widths beside and between whole tiles, more rows than two runs; a total that is not empty is added to."""
    before, after = pair(shape, 0.3)
    stored = [
        (each.T if lying else each).contiguous().view(torch.uint16).numpy()  # exact codes
        for each in (before, after)
    ]
    starts, rows, first, second = noted(*stored, lying)
    values = second.view(np.float32) - first.view(np.float32)
    step, random = (after.double() - before.double()).numpy(), np.random.default_rng(0)
    total = random.normal(size=(shape[1], shape[1])).astype(np.float32)
    expected = total + step.T @ before.double().numpy()
    _sparse_pass.add_cross(starts, rows, values, stored[0], lying, total)
    assert np.allclose(total, expected, rtol=0, atol=512 * np.finfo(np.float32).eps)  # sums of a hundred
    for dtype in (np.float32, np.float64):
        total = random.normal(size=(shape[1], shape[1])).astype(dtype)
        expected = np.tril(total + step.T @ step)
        _sparse_pass.add_square(starts, rows, values.astype(dtype), total)
        assert np.allclose(np.tril(total), expected, rtol=0, atol=512 * np.finfo(dtype).eps)
