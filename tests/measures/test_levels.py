"""One byte per weight against the single masks; the table and the sums of |D| against literal counting."""

import numpy as np
import pytest
import torch

from offprincipal.measures import bits, masks, spectrum
from offprincipal.measures.levels import abs_on_mask, cross, levels
from offprincipal.measures.seeds import torch_generator


def weights(shape: tuple[int, int]) -> torch.Tensor:
    return (torch.randn(shape, generator=torch_generator(0, "weights")) * 0.02).bfloat16()


def test_levels_hold_every_mask_at_once():
    weight = weights((96, 80))
    factors = spectrum.factorise(weight, masks.principal_rank((96, 80), 512))
    found = levels(weight, factors)
    level = found.level.to(torch.int64).reshape(96, 80)
    rank = masks.principal_rank((96, 80))
    for alpha in masks.ALPHAS:
        assert torch.equal(found.principal(alpha)[level], masks.principal(factors, rank, alpha))
    assert torch.equal(found.low()[level], masks.smallest(weight, masks.count(0.5, weight.numel())))
    assert found.ties[found.ranks.index(rank)] <= 1


def test_cross_counts_code_level_and_change():
    weight = weights((40, 36))
    after = (weight.float() + 1e-4 * torch.randn(40, 36, generator=torch_generator(0, "x"))).bfloat16()
    found = levels(weight, spectrum.factorise(weight, 18))
    table = cross(weight, after, found.level)
    moved = bits.changed(weight, after).flatten()
    literal = np.zeros(tuple(table.shape), np.int64)
    np.add.at(
        literal, (bits.magnitude_code(weight).flatten().numpy(), found.level.flatten().numpy(), moved.int().numpy()), 1
    )
    assert np.array_equal(table.to(torch.int64).numpy(), literal)


@pytest.mark.parametrize("shape", [(300, 290), (130, 1100), (1, 9), (9, 1), (2, 2)])
def test_every_rank_in_use_has_its_mask(shape):
    weight = weights(shape)
    factors = spectrum.factorise(weight, masks.principal_rank(shape, 512))
    found = levels(weight, factors)
    level = found.level.to(torch.int64)
    for rank in found.ranks:
        assert torch.equal(found.at_rank(rank)[level], masks.principal(factors, rank))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("rank", [None, 1, 3])
def test_levels_are_those_of_float64_at_any_scale(scale, rank):
    """Large enough for the float32 way; of low rank many scores are equal or zero, which float64 has to settle."""
    shape, generator = (400, 300), torch_generator(0, "scale", str(rank))
    if rank is None:
        weight = torch.randn(shape, generator=generator)
    else:
        weight = torch.randint(-2, 3, (shape[0], rank), generator=generator).float()
        weight = weight @ torch.randint(-2, 3, (rank, shape[1]), generator=generator).float()
    weight = (weight * scale).bfloat16()
    factors = spectrum.factorise(weight, 150)
    found = levels(weight, factors)
    level = found.level.to(torch.int64)
    for each in found.ranks:
        differ = int((found.at_rank(each)[level] != masks.principal(factors, each)).sum())
        assert differ <= (found.ties[found.ranks.index(each)] if rank else 0)


def test_equal_scores_are_all_reported_as_ties():
    weight = torch.full((30, 20), 0.5).bfloat16()
    found = levels(weight, spectrum.factorise(weight, 10))
    assert found.ties == (600,)
    assert int(found.principal()[found.level.to(torch.int64)].sum()) == 300


def test_sums_of_steps_on_a_mask_equal_a_loop_over_codes():
    weight = weights((30, 20))
    delta = torch.rand(30, 20, generator=torch_generator(0, "delta"), dtype=torch.float64)
    mask = torch.rand(30, 20, generator=torch_generator(0, "mask")) < 0.4
    code = bits.magnitude_code(weight)
    expected = sum(float((mask & (code == c)).sum() * delta[code == c].mean()) for c in code.unique())
    assert abs_on_mask(weight, delta, mask) == pytest.approx((float(delta[mask].sum()), expected))
