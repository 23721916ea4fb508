"""Principal angles against scipy, near zero where cosines are blind, and the corrected Wedin bound."""

import math

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.measures import angles
from offprincipal.measures.seeds import torch_generator


def basis(n: int, k: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, k, generator=torch_generator(seed, "basis"), dtype=torch.float64)).Q


@given(st.integers(2, 40), st.integers(0, 1000), st.sampled_from([1e-12, 1e-9, 1e-6, 1e-3, 0.3, 3.0]))
@settings(max_examples=60, deadline=None)
def test_angles_equal_scipy(n, seed, tilt):
    k = max(1, n // 2)
    before = basis(n, k, seed)
    after = torch.linalg.qr(before + tilt * basis(n, k, seed + 1)).Q
    expected = sorted(scipy.linalg.subspace_angles(before.numpy(), after.numpy()))
    found = sorted(angles.principal_angles(before, after).tolist())
    assert found == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("degrees", [1e-6, 1e-4, 0.02, 1.0, 45.0, 89.9999, 90.0])
def test_a_planted_rotation_is_found_to_1e_7_radians(degrees):
    turn = math.radians(degrees)
    before = torch.eye(6, 2, dtype=torch.float64)
    after = before.clone()
    after[0, 0], after[4, 0] = math.cos(turn), math.sin(turn)
    assert float(angles.principal_angles(before, after).max()) == pytest.approx(turn, abs=1e-7)


def test_nested_angles_are_those_of_each_size():
    before, after = basis(60, 20, 0), basis(60, 20, 1)
    found = angles.nested_angles(before, after, (4, 10, 20))
    for k, several in found.items():
        alone = angles.principal_angles(before[:, :k], after[:, :k])
        assert torch.allclose(several.sort().values, alone.sort().values, atol=1e-7)


def test_grid_stops_at_half_the_short_side():
    assert angles.grid((1000, 300)) == (16, 64, 128)
    assert angles.grid((31, 300)) == ()
    assert angles.grid((4096, 1024)) == (16, 64, 128, 512)


def test_the_published_bound_fails_and_the_corrected_one_holds():
    """The 2 x 2 counterexample to PNT Theorem 3.3 with constant 1: ||D|| = .45, gap 1, sine .531."""
    worst = 0.0
    base = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    for turn in torch.linspace(0, math.pi, 721, dtype=torch.float64):
        c, s = math.cos(turn), math.sin(turn)
        step = 0.45 * torch.tensor([[-c, s], [s, c]], dtype=torch.float64)
        left = torch.linalg.svd(base + step).U[:, :1]
        worst = max(worst, math.sin(float(angles.principal_angles(base[:, :1], left)[0])))
    assert worst > 0.45
    assert worst <= angles.sine_bound(1.0, 0.45)


def test_closed_gaps_are_told():
    values = torch.cat([torch.full((20,), 2.0), torch.linspace(1, 0.1, 20)]).double()
    assert angles.gap_closed(values, values, 16)
    assert not angles.gap_closed(values, values, 20)


def test_vacuous_counts_sizes_whose_bound_says_nothing():
    values = torch.tensor([10.0, 5.0, 4.9, 1.0]).double()
    assert angles.vacuous(values, 1.0, 2) == 1
