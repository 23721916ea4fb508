import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.measures import _leading
from offprincipal.measures._leading import leading


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def with_spectrum(out, into, values, seed=0):
    left = torch.linalg.qr(torch.randn(out, len(values), generator=generator(seed), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(into, len(values), generator=generator(seed + 1), dtype=torch.float64)).Q
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


def sine(left, right):
    return float((left - right @ (right.T @ left)).norm())


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 8), st.integers(0, 2**20))
def test_small_matrices_against_the_svd(out, into, k, seed):
    matrix = torch.randn(out, into, generator=generator(seed), dtype=torch.float64)
    k = min(k, min(out, into) - 1)
    found = leading(matrix, k, generator())
    _, values, right = torch.linalg.svd(matrix)
    assert found.squares.tolist() == pytest.approx(values[:k].square().tolist(), rel=1e-9, abs=1e-9)
    gap = float(values[k - 1] ** 2 - values[k] ** 2)
    assert found.gap_sq == pytest.approx(gap, abs=1e-9 * float(values[0] ** 2))
    if gap > 1e-4 * values[0] ** 2:
        assert sine(found.vectors, right[:k].T) < 1e-8


@pytest.mark.parametrize("shape", [(600, 560), (560, 600)])
def test_krylov_finds_the_subspace_of_a_decaying_spectrum(shape):
    matrix = with_spectrum(*shape, [0.93**i for i in range(200)])
    found = leading(matrix, 16, generator())
    assert not found.exact
    right = torch.linalg.svd(matrix, full_matrices=False).Vh[:16].T
    assert sine(found.vectors, right) < 2e-6
    assert sine(torch.eye(16, dtype=torch.float64), found.vectors.T @ found.vectors) < 1e-12


def test_a_closed_gap_is_factored_exactly_and_said():
    values = [2.0] * 15 + [1.0] * 300
    found = leading(with_spectrum(560, 540, values), 16, generator())
    assert found.exact
    assert found.gap_sq == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("side", [30, 560])
def test_rank_below_k_and_zero(side):
    matrix = with_spectrum(side, side, [3.0, 1.0])
    found = leading(matrix, 16, generator())
    assert found.vectors.shape == (side, 2)
    assert found.squares.tolist() == pytest.approx([9.0, 1.0])
    assert leading(torch.zeros(side, side, dtype=torch.float64), 16, generator()).vectors.shape == (side, 0)


def test_the_start_does_not_matter():
    matrix = with_spectrum(600, 560, [0.9**i for i in range(100)])
    assert sine(leading(matrix, 16, generator(1)).vectors, leading(matrix, 16, generator(2)).vectors) < 4e-6
    assert _leading.BLOCKS * (16 + _leading.EXTRA) < _leading.SHORT
