"""Masks against literal sorting; the principal mask against a float64 svd; ties by flat index."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.measures import bits, masks, spectrum
from offprincipal.measures.seeds import torch_generator


def weights(shape: tuple[int, int], seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(shape, generator=torch_generator(seed, "weights")) * 0.02).to(dtype)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_smallest_and_largest_equal_a_stable_sort(out, into, alpha, seed):
    weight = weights((out, into), seed)
    weight[: out // 2] = weight[out - out // 2 :]  # ties
    ones = masks.count(alpha, weight.numel())
    order = torch.sort(bits.magnitude_code(weight).flatten(), stable=True).indices
    literal = torch.zeros(weight.numel(), dtype=torch.bool)
    literal[order[:ones]] = True
    assert torch.equal(masks.smallest(weight, ones).flatten(), literal)
    score = weight.double().abs()
    order = torch.sort(-score.flatten(), stable=True).indices
    literal = torch.zeros(weight.numel(), dtype=torch.bool)
    literal[order[:ones]] = True
    assert torch.equal(masks.largest(score, ones).flatten(), literal)


@pytest.mark.parametrize("shape", [(130, 70), (70, 130), (64, 64)])
@pytest.mark.parametrize("rank", [4, 16, 32])
@pytest.mark.parametrize("alpha", masks.ALPHAS)
def test_principal_mask_equals_the_svd_twin(shape, rank, alpha):
    weight = weights(shape)
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    score = (u[:, :rank] * s[:rank] @ v[:rank]).abs()
    literal = masks.largest(score, masks.count(alpha, weight.numel()))
    found = masks.principal(spectrum.factorise(weight, rank), rank, alpha)
    assert int(found.sum()) == masks.count(alpha, weight.numel())
    assert torch.equal(found, literal)


def test_overlap_lift_and_feasible_range():
    mask, changed = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool()
    assert masks.overlap(mask, changed) == 0.5
    assert masks.lift(1, 2, 2, 4) == 1.0
    assert masks.feasible(90, 50, 100) == pytest.approx((40 / 90, 50 / 90))
    assert masks.jaccard(mask, changed) == pytest.approx(1 / 3)
    assert masks.safe(~mask, mask).tolist() == [False, False, True, True]


def test_rank_is_capped_at_half_the_short_side():
    assert masks.principal_rank((1000, 1000)) == 64
    assert masks.principal_rank((1000, 20)) == 10


def test_nonfinite_is_found_in_every_dtype():
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e5m2):
        weight = torch.tensor([1.0, float("nan"), float("inf")]).to(dtype)
        assert masks.nonfinite(weight).tolist() == [False, True, True]
        assert masks.nonfinite(torch.ones(3).to(dtype)) is None
