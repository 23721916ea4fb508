import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from offprincipal.measures.stripes import gini, head_split, stripes


def line_counts(runs, lines, width, density=0.3, seed=0):
    """Unstriped counts per run and line, and the moments that a single magnitude code gives."""
    rng = np.random.default_rng(seed)
    masks = rng.random((runs, lines, width)) < density
    return (
        masks,
        torch.from_numpy(masks.sum(axis=2).astype(np.int64)),
        torch.from_numpy(np.bincount(masks.sum(axis=0).reshape(-1), minlength=runs + 1)),
    )


def one_code_moments(masks):
    runs, lines, width = masks.shape
    entries, ones = lines * width, masks.reshape(runs, -1).sum(axis=1)
    mean = np.repeat((ones / lines)[:, None], lines, axis=1)
    variance = width * (entries - width) * ones * (entries - ones) / (entries**2 * (entries - 1.0))
    return torch.from_numpy(mean), torch.from_numpy(np.repeat(variance[:, None], lines, axis=1))


def measured(runs, lines, width, seed=0):
    masks, counts, times = line_counts(runs, lines, width, seed=seed)
    return masks, counts, stripes(counts, width, *one_code_moments(masks), times, np.random.default_rng(1))


def test_shuffled_variance_is_the_mean_over_all_permutations():
    values = [0, 0, 1, 2, 2, 1]
    variances = [np.reshape(order, (2, 3)).mean(axis=1).var() / 4 for order in permutations(values)]
    counts = torch.tensor([[1, 2], [0, 3]])
    flat = torch.ones(2, 2, dtype=torch.float64)
    found = stripes(counts, 3, flat, flat, torch.tensor([2, 2, 2]), np.random.default_rng(0))
    assert found.variance_shuffled.mean == pytest.approx(np.mean(variances), rel=1e-12)


def test_sds_of_both_variances_against_real_shuffles():
    masks, _, found = measured(2, 40, 50)
    rng, shares = np.random.default_rng(3), masks.mean(axis=0)
    shuffled = [rng.permutation(shares.reshape(-1)).reshape(shares.shape).mean(axis=1).var() for _ in range(2000)]
    assert np.mean(shuffled) == pytest.approx(found.variance_shuffled.mean, rel=0.03)
    assert np.std(shuffled) == pytest.approx(found.variance_shuffled.sd, rel=0.08)
    flat = masks.reshape(2, -1)
    apart = [rng.permuted(flat, axis=1).mean(axis=0).reshape(shares.shape).mean(axis=1).var() for _ in range(2000)]
    assert np.mean(apart) == pytest.approx(found.variance_matched.mean, rel=0.03)
    assert np.std(apart) == pytest.approx(found.variance_matched.sd, rel=0.08)


def test_nulls_of_gini_and_correlation_against_real_shuffles():
    masks, _, found = measured(2, 60, 80)
    rng, flat = np.random.default_rng(4), masks.reshape(2, -1)
    ginis, pearsons, spearmans = [], [], []
    for _ in range(400):
        profiles = rng.permuted(flat, axis=1).reshape(masks.shape).sum(axis=2)
        ginis.append(gini(torch.from_numpy(profiles.sum(axis=0).astype(float))))
        pearsons.append(stats.pearsonr(*profiles).statistic)
        spearmans.append(stats.spearmanr(*profiles).statistic)
    for real, null in ((ginis, found.gini_matched), (pearsons, found.pearson_matched)):
        assert abs(np.mean(real) - null.mean) < 4 * null.sd / math.sqrt(30)
        assert np.std(real) == pytest.approx(null.sd, rel=0.35)
    assert np.std(spearmans) == pytest.approx(found.spearman_shuffled.sd, rel=0.1)
    assert np.std(pearsons) == pytest.approx(found.pearson_shuffled.sd, rel=0.1)


def test_correlations_are_scipys_ties_included():
    _, counts, found = measured(2, 30, 12)
    assert found.pearson == pytest.approx(stats.pearsonr(*counts.numpy()).statistic, abs=1e-12)
    assert found.spearman == pytest.approx(stats.spearmanr(*counts.numpy()).statistic, abs=1e-12)


def test_permuting_lines_has_sd_one_over_root():
    rng, left, right = np.random.default_rng(5), np.arange(10.0), np.arange(10.0) ** 2
    found = [np.corrcoef(left, rng.permutation(right))[0, 1] for _ in range(4000)]
    assert np.std(found) == pytest.approx(1 / 3, rel=0.05)


def test_constant_profiles_have_no_correlation_and_one_run_no_pair():
    flat = torch.ones(2, 4, dtype=torch.float64)
    found = stripes(
        torch.ones(2, 4, dtype=torch.int64), 3, flat, flat, torch.tensor([8, 0, 4]), np.random.default_rng(0)
    )
    assert math.isnan(found.pearson)
    assert math.isnan(found.spearman)
    one = stripes(
        torch.tensor([[1, 2, 3]]), 4, flat[:1, :3], flat[:1, :3], torch.tensor([6, 6]), np.random.default_rng(0)
    )
    assert math.isnan(one.pearson)
    assert math.isnan(one.pearson_shuffled.sd)


def test_gini_against_its_definition():
    amounts = np.random.default_rng(0).random(50)
    twin = np.abs(amounts[:, None] - amounts).mean() / (2 * amounts.mean())
    assert gini(torch.from_numpy(amounts)) == pytest.approx(twin)
    assert math.isnan(gini(torch.zeros(3)))


def test_head_split_adds_up_and_is_stable_under_shuffling_lines_within_heads():
    masks, counts, times = line_counts(2, 24, 30)
    lines = one_code_moments(masks)
    heads = one_code_moments(masks.reshape(2, 6, -1))
    found = head_split(counts, 30, lines, heads, times)
    whole = stripes(counts, 30, *lines, times, np.random.default_rng(0))
    assert found.between + found.within == pytest.approx(whole.variance)
    assert found.between_shuffled + found.within_shuffled == pytest.approx(whole.variance_shuffled.mean)
    assert found.between_matched.mean + found.within_matched.mean == pytest.approx(whole.variance_matched.mean)
    means = counts.sum(dim=0).numpy().reshape(6, 4) / 60
    assert found.between == pytest.approx(means.mean(axis=1).var())
    assert found.within == pytest.approx(means.var(axis=1).mean())
    again = head_split(counts.reshape(2, 6, 4).flip(2).reshape(2, 24), 30, lines, heads, times)
    assert again.within == pytest.approx(found.within)


def test_head_split_nulls_against_real_shuffles():
    masks, counts, times = line_counts(1, 24, 30)
    found = head_split(counts, 30, one_code_moments(masks), one_code_moments(masks.reshape(1, 6, -1)), times)
    rng = np.random.default_rng(6)
    shuffled = [rng.permutation(masks.reshape(-1)).reshape(6, 4, 30).mean(axis=2) for _ in range(3000)]
    between, within = [m.mean(axis=1).var() for m in shuffled], [m.var(axis=1).mean() for m in shuffled]
    assert np.mean(between) == pytest.approx(found.between_matched.mean, rel=0.04)
    assert np.mean(between) == pytest.approx(found.between_shuffled, rel=0.04)
    assert np.std(between) == pytest.approx(
        found.between_matched.sd, rel=0.25
    )  # six heads: the approximation is rough
    assert np.mean(within) == pytest.approx(found.within_matched.mean, rel=0.04)
    assert np.std(within) == pytest.approx(found.within_matched.sd, rel=0.25)
