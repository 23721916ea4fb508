"""The nulls against brute force: permutations, literal simulations, scipy."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from tests.literal import joint

from offprincipal.measures import bits, nulls
from offprincipal.measures.excess import z_score
from offprincipal.measures.seeds import numpy_generator, torch_generator
from offprincipal.measures.sweep import sweep


def toy(seed: int = 0, shape: tuple[int, int] = (60, 50)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch_generator(seed, "toy")
    before = (torch.randn(shape, generator=generator) * 0.02).bfloat16()
    after = (before.double() + torch.randn(shape, generator=generator) * 5e-5).bfloat16()
    return before, after, torch.rand(shape, generator=generator) < 0.3


def test_magnitude_null_equals_hypergeometric_moments_per_code():
    before, after, mask = toy()
    n, m, a, _ = joint(before, after, mask)
    used = (n > 0).nonzero().flatten().tolist()
    law = [scipy.stats.hypergeom(int(n[c]), int(m[c]), int(a[c])) for c in used]
    expected, variance = nulls.magnitude(n, m).overlap(a)
    support = np.arange(int(n.max()) + 1)
    moments = [(float(p @ support), float(p @ support**2)) for p in (each.pmf(support) for each in law)]
    assert expected == pytest.approx(sum(mean for mean, _ in moments))
    assert variance == pytest.approx(sum(square - mean**2 for mean, square in moments))


def test_magnitude_null_equals_shuffling_changes_within_each_code():
    before, after, mask = toy(1)
    code, moved = bits.magnitude_code(before).flatten(), bits.changed(before, after).flatten().numpy()
    random, hits = np.random.default_rng(0), []
    groups = [np.flatnonzero(code.numpy() == c) for c in np.unique(code.numpy())]
    for _ in range(400):
        shuffled = moved.copy()
        for group in groups:
            shuffled[group] = random.permutation(moved[group])
        hits.append(int((shuffled & mask.flatten().numpy()).sum()))
    n, m, a, _ = joint(before, after, mask)
    expected, variance = nulls.magnitude(n, m).overlap(a)
    assert abs(np.mean(hits) - expected) < 4 * math.sqrt(variance / 400)
    assert np.var(hits) == pytest.approx(variance, rel=0.25)


def test_a_mask_of_whole_codes_leaves_the_magnitude_null_nothing_to_explain():
    before, after, _ = toy(2)
    n, m, a, k = joint(before, after, bits.magnitude_code(before) < 15_400)
    assert nulls.magnitude(n, m).overlap(a) == (pytest.approx(float(k.sum())), 0.0)


@pytest.mark.parametrize("scale", [1e-5, 1e-4, 3e-3])
def test_visible_probability_equals_rounding_a_million_gaussian_steps(scale):
    weights = torch.tensor([0.02, 0.015625, 1.0, 1e-3, 0.0]).bfloat16()
    chance = nulls.visible_probability(scale)[bits.magnitude_code(weights).long()]
    step = torch.randn(5, 200_000, generator=torch_generator(0, str(scale)), dtype=torch.float64) * scale
    seen = bits.visible(weights[:, None].expand(5, 200_000), step).double().mean(dim=1)
    assert torch.allclose(seen, chance, atol=4 * math.sqrt(0.25 / 200_000))


def test_rounding_scale_recovers_the_scale_that_made_the_update():
    generator = torch_generator(0, "recover")
    before = (torch.randn(400, 500, generator=generator) * 0.02).bfloat16()
    after = bits.round_to_bf16(
        before.double() + torch.randn(400, 500, generator=generator, dtype=torch.float64) * 4e-5
    )
    counts = sweep(before, after)
    assert nulls.rounding_scale(counts.code_total, counts.changed) == pytest.approx(4e-5, rel=0.02)


def test_rounding_scale_at_the_ends():
    n = torch.zeros(32_768, dtype=torch.int64)
    n[16_256] = 10
    assert nulls.rounding_scale(n, 0) == 0.0
    assert nulls.rounding_scale(n, 10) > 1.0
    n[0x7FC0] = 5  # five NaN never become visible, so 15 changes cannot be matched
    assert nulls.rounding_scale(n, 15) == math.inf
    assert nulls.rounding_draws(n, 15, numpy_generator(0, "x")).moved.sum(axis=1).tolist() == [15] * nulls.DRAWS


def test_rounding_null_equals_simulating_the_whole_tensor():
    """The count-level simulation against steps drawn entry by entry, on a mask that depends on the weights."""
    before, after, _ = toy(3, (120, 100))
    counts = sweep(before, after)
    scale = nulls.rounding_scale(counts.code_total, counts.changed)
    mask = before.abs() < 0.01
    generator, shares = torch_generator(3, "literal"), []
    for _ in range(200):
        step = torch.randn(before.shape, generator=generator, dtype=torch.float64) * scale
        moved = bits.visible(before, step)
        shares.append(float((moved & mask).sum() / moved.sum()))
    a = joint(before, after, mask)[2]
    drawn = nulls.rounding_draws(counts.code_total, counts.changed, numpy_generator(3, "draws"), draws=200)
    mean, variance = drawn.share(a)
    assert mean == pytest.approx(np.mean(shares), abs=4 * np.std(shares) / math.sqrt(100))
    assert math.sqrt(variance) == pytest.approx(np.std(shares), rel=0.3)


def test_rounding_null_of_a_real_gaussian_update_finds_no_excess():
    """Control: when rounding is all there is, the low-magnitude overlap is what the rounding null says."""
    before, after, _ = toy(4, (300, 200))
    counts = sweep(before, after)
    ones = nulls.low_magnitude(counts.code_total, counts.counted // 2)
    drawn = nulls.rounding_draws(counts.code_total, counts.changed, numpy_generator(4, "draws"))
    mean, variance = drawn.share(ones)
    observed = float((counts.code_changed * ones / counts.code_total.clamp(min=1)).sum() / counts.changed)
    assert mean > 0.7
    assert abs(z_score(observed, mean, variance)) < 4


def test_draws_depend_on_the_name_and_not_on_the_order():
    n = torch.zeros(32_768, dtype=torch.int64)
    n[16_000:16_100] = 50
    one = nulls.rounding_draws(n, 2000, numpy_generator(0, "a"))
    assert (one.moved == nulls.rounding_draws(n, 2000, numpy_generator(0, "a")).moved).all()
    assert not (one.moved == nulls.rounding_draws(n, 2000, numpy_generator(0, "b")).moved).all()


def test_rounding_null_of_no_change_is_undefined():
    n = torch.zeros(32_768, dtype=torch.int64)
    n[16_000] = 50
    mean, variance = nulls.rounding_draws(n, 0, numpy_generator(0, "a")).share(n)
    assert math.isnan(mean)
    assert math.isnan(variance)


def test_z_score_edges():
    assert z_score(2.0, 2.0, 0.0) == 0.0
    assert z_score(3.0, 2.0, 0.0) == math.inf
    assert z_score(1.0, 2.0, 0.0) == -math.inf


def test_bernoulli_baseline_of_table_2():
    """PNT Table 2, Q: baseline .430 is the Bernoulli Jaccard at the implied density .60."""
    assert nulls.bernoulli_jaccard(0.6014, 0.6014) == pytest.approx(0.430, abs=5e-4)
    assert nulls.bernoulli_jaccard(0.0, 0.0) == 0.0
