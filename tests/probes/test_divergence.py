"""Exact divergences against a literal sum, their laws, and how many positions are met at a time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offprincipal.probes import divergence
from offprincipal.probes.divergence import divergences, pieces

logits = st.lists(st.lists(st.floats(-30, 30), min_size=4, max_size=4), min_size=2, max_size=2)


def literal(first: list[float], second: list[float]) -> tuple[float, float, float]:
    """Python's own sums over the vocabulary, one term at a time."""
    p, q = ([math.exp(x) / math.fsum(map(math.exp, row)) for x in row] for row in (first, second))
    pairs = list(zip(p, q, strict=True))
    kl, back = (math.fsum(a * math.log(a / b) for a, b in part) for part in (pairs, [(b, a) for a, b in pairs]))
    return kl, back, math.fsum(abs(a - b) for a, b in pairs) / 2


@given(logits)
def test_equals_the_literal_sum(rows):
    found = divergences(torch.tensor(rows[:1], dtype=torch.float64), torch.tensor(rows[1:], dtype=torch.float64))
    assert found[0].tolist() == pytest.approx(literal(*rows), rel=1e-9, abs=1e-12)


@given(logits)
def test_laws(rows):
    first, second = torch.tensor(rows[:1]), torch.tensor(rows[1:])
    (kl, back, tv), (_, _, same) = divergences(first, second)[0].tolist(), divergences(second, first)[0].tolist()
    assert min(kl, back) >= 2 * tv**2 - 1e-12  # Pinsker
    assert tv == pytest.approx(same, rel=1e-12, abs=1e-15)
    assert divergences(first, first).tolist() == [[0.0, 0.0, 0.0]]
    assert divergences(first + 3, second)[0].tolist() == pytest.approx([kl, back, tv], rel=1e-4, abs=1e-5)


def test_float32_logits_are_summed_in_float64():
    first = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0))
    second = first + 1e-4 * torch.randn(3, 50_000, generator=torch.Generator().manual_seed(1))
    exact = divergences(first.double(), second.double())
    assert torch.equal(divergences(first, second), exact)
    assert exact.dtype == torch.float64
    assert 4e-9 < float(exact[0, 0]) < 6e-9  # half the variance of the difference


def test_a_large_vocabulary_is_met_a_few_positions_at_a_time():
    for vocabulary in (50, 150_000, 10_000_000):
        parts = list(pieces(1000, vocabulary))
        assert sum(len(range(*part.indices(1000))) for part in parts) == 1000
        assert all(vocabulary * (p.stop - p.start) <= max(divergence.BUDGET, vocabulary) for p in parts)
