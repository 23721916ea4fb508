"""Where the factors start: each construction against a literal twin, and exact zeros."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprincipal.measures.spectrum import factorise
from offprincipal.train.adapters import _starts
from offprincipal.train.adapters._starts import Start

SHAPES = st.tuples(st.integers(2, 24), st.integers(2, 24))


def weight(shape: tuple[int, int], seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1).to(dtype)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def projector(vectors: Tensor) -> Tensor:
    return vectors @ vectors.T


@given(SHAPES, st.integers(0, 99), st.data())
@settings(max_examples=40, deadline=None)
def test_rows_are_orthonormal_and_off_the_principal_directions(shape, seed, data) -> None:
    short = min(shape)
    k = data.draw(st.integers(1, short - 1))
    rank = data.draw(st.integers(1, short - k))
    factors = factorise(weight(shape, seed), short)
    start = _starts.off_principal(factors.right[:, :k], rank, generator(seed))
    assert start.b is None
    torch.testing.assert_close(start.a @ start.a.T, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-13)
    assert float((start.a @ factors.right[:, :k]).abs().max()) < 1e-13
    top = _starts.right_rows(factors, rank).a
    torch.testing.assert_close(top @ top.T, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-11)


def test_random_directions_are_seeded_and_differ() -> None:
    right = torch.eye(8, dtype=torch.float64)[:, :2]
    first, again, other = (_starts.off_principal(right, 3, generator(seed)).a for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@given(SHAPES, st.integers(0, 99), st.data())
@settings(max_examples=40, deadline=None)
def test_trailing_triplets_are_those_of_an_svd(shape, seed, data) -> None:
    rank = data.draw(st.integers(1, min(shape)))
    matrix = weight(shape, seed)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = _starts.last(matrix, rank)
    torch.testing.assert_close(found.values, s[-rank:], rtol=0, atol=1e-10 * float(s[0]))
    ours = found.left * found.values @ found.right.T
    torch.testing.assert_close(ours, u[:, -rank:] * s[-rank:] @ vh[-rank:], rtol=0, atol=1e-6 * float(s[0]))
    gap = float(s[-rank - 1] - s[-rank]) if rank < len(s) else math.inf
    if gap > 1e-3 * float(s[0]):
        torch.testing.assert_close(projector(found.right), projector(vh[-rank:].T), rtol=0, atol=1e-8)
        torch.testing.assert_close(projector(found.left), projector(u[:, -rank:]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_trailing_vectors_of_a_singular_matrix_stay_off_all_others(shape) -> None:
    low = weight((shape[0], 3), 0, torch.float64) @ weight((3, shape[1]), 1, torch.float64)
    found, whole = _starts.last(low, 2), factorise(low, 3)
    for side in ("left", "right"):
        trailing, leading = getattr(found, side), getattr(whole, side)
        torch.testing.assert_close(trailing.T @ trailing, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)
        assert float((trailing.T @ leading).abs().max()) < 1e-7
    assert float(found.values.abs().max()) < 1e-12


@given(SHAPES, st.integers(0, 99), st.floats(0.25, 8.0), st.data())
@settings(max_examples=40, deadline=None)
def test_pissa_and_milora_hold_their_part_of_the_weight(shape, seed, scaling, data) -> None:
    rank = data.draw(st.integers(1, min(shape)))
    matrix = weight(shape, seed)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    for found, part in (
        (_starts.first(factorise(matrix, rank), rank), slice(None, rank)),
        (_starts.last(matrix, rank), slice(len(s) - rank, None)),
    ):
        start = _starts.scaled_triplets(found, found.values, scaling)
        assert start.b is not None
        expected = u[:, part] * s[part] @ vh[part]
        torch.testing.assert_close(scaling * start.b @ start.a, expected, rtol=0, atol=1e-6 * float(s[0]))
        balance = (start.a @ start.a.T).diagonal() - (start.b.T @ start.b).diagonal()
        assert float(balance.abs().max()) < 1e-8


def literal_geora(matrix: Tensor, rank: int, rho: float) -> tuple[Tensor, Tensor]:
    """The paper's four lines, dense, by full SVDs and a sort."""
    wide = matrix.double()
    u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    low_rank = (u[:, :rank] * s[:rank] @ vh[:rank]).abs()
    ones = round(rho * wide.numel())
    limits = [each.flatten().sort().values[ones - 1] if ones else -1.0 for each in (low_rank, wide.abs())]
    mask = (low_rank <= limits[0]) | (wide.abs() <= limits[1])
    u, s, vh = torch.linalg.svd(wide * mask, full_matrices=False)
    return mask, u[:, :rank] * s[:rank] @ vh[:rank]


@given(st.integers(8, 24), st.integers(8, 24), st.integers(1, 4), st.sampled_from([0.1, 0.2, 0.5]), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_geora_is_the_paper_read_literally(out, into, rank, rho, seed) -> None:
    matrix = weight((out, into), seed, torch.float32)
    mask, expected = literal_geora(matrix, rank, rho)
    factors = factorise(matrix, rank)
    assert torch.equal(_starts.geora_mask(matrix, factors, rank, rho), mask)
    start = _starts.geora(matrix, factors, rank, rho)
    assert start.b is not None
    torch.testing.assert_close(start.b @ start.a, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(start.a @ start.a.T, start.b.T @ start.b, rtol=0, atol=1e-7)


def test_geora_mask_covers_what_the_paper_reports_on_a_trained_looking_matrix() -> None:
    """Independent masks of .2 would make a union of .36; the paper reports 35.45 % and a Jaccard of .128."""
    matrix = weight((192, 256), 3, torch.float32)
    inside = _starts.geora_mask(matrix, factorise(matrix, 16), 16, 0.2)
    assert 0.33 < float(inside.double().mean()) < 0.37


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_doubled_start_is_exactly_zero_in_every_arithmetic(rank, out, into, seed, bf16) -> None:
    start = Start(weight((rank, into), seed, torch.float32), weight((out, rank), seed + 1, torch.float32))
    a, b = _starts.doubled(start)
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b = a.to(dtype), b.to(dtype)
    x = weight((5, into), seed + 2, torch.float32).to(dtype) * 1e3
    assert float((b @ a).abs().max()) == 0.0
    assert float(((x @ a.T) @ b.T).abs().max()) == 0.0


def test_the_textbook_form_is_not_exactly_zero() -> None:
    """The control: [B, -B0] [A; A0] leaves rounding, which is why ``doubled`` is written as it is."""
    a, b = weight((64, 512), 0, torch.float32), weight((512, 64), 1, torch.float32)
    x = weight((32, 512), 2, torch.float32)
    left = x @ torch.cat([a, a]).T @ torch.cat([b, -b], dim=1).T
    assert 0 < float(left.abs().max()) < 1e-4


def test_kaiming_is_peft_s_default() -> None:
    expected = torch.empty(4, 30)
    torch.nn.init.kaiming_uniform_(expected, a=math.sqrt(5), generator=generator(7))
    assert torch.equal(_starts.kaiming(30, 4, generator(7)).a.float(), expected)
    assert float(expected.abs().max()) <= 30**-0.5
