"""Do changes gather in rows or columns? Profiles of update masks, and what shuffling and magnitude alone would give.

What it is: statistics of the changed count per line (a row, a column or a head) of one matrix in R runs, with the
moments of two nulls. *Shuffled*: the same values of C, the share of runs that changed a weight, anywhere in the
matrix. *Matched*: in each run, independently, the changes of each magnitude code fall anywhere among the entries of
that code (N-magnitude). The expected variances are exact under either null; their standard deviations, and the nulls
of Gini and correlation, take the counts per line as normal, which is good from some thirty entries per line.
What it is not: a picture. Source: paper.md 1.4 and claims L3 to L5; PNT shows stripes and defines no scalar, so all
scalars here are ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

DRAWS = 32
"""Draws of the simulated nulls; at least 20 (DEFINITIONS section 5)."""

Counts = Int[Tensor, "runs lines"]
Moments = Float[Tensor, "runs lines"]


@dataclass(frozen=True)
class Null:
    """Mean and standard deviation of a statistic under a null."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Stripes:
    """How unevenly the changes of R runs lie over the lines of one axis. NaN where a statistic is undefined.

    Attributes:
        lines: rows, columns or heads.
        width: entries per line.
        variance: variance over lines of the mean of C, the share of runs that changed a weight.
        variance_binomial: its expectation for independent entries and independent runs of the same densities.
        variance_shuffled: its null when the values of C are shuffled.
        variance_matched: its null when each run changes each magnitude code at random.
        gini: Gini coefficient of the line means of C, with the same two nulls.
        pearson: mean over pairs of runs of the correlation of their profiles; likewise `spearman`. The shuffled
            null has mean 0 and, for one pair, sd 1/sqrt(lines - 1), exactly.
    """

    lines: int
    width: int
    variance: float
    variance_binomial: float
    variance_shuffled: Null
    variance_matched: Null
    gini: float
    gini_shuffled: Null
    gini_matched: Null
    pearson: float
    pearson_shuffled: Null
    pearson_matched: Null
    spearman: float
    spearman_shuffled: Null
    spearman_matched: Null


@dataclass(frozen=True)
class Heads:
    """The variance of the line means of C, split between heads and within them (claim L5).

    Attributes:
        number: heads along the axis.
        between: variance over heads of the head mean of C.
        within: mean over heads of the variance of the line means inside it; `between` + `within` is the whole.
    """

    number: int
    between: float
    between_shuffled: float
    between_matched: Null
    within: float
    within_shuffled: float
    within_matched: Null


def stripes(
    counts: Counts,
    width: int,
    mean: Moments,
    variance: Moments,
    times: Int[Tensor, " values"],
    generator: np.random.Generator,
) -> Stripes:
    """Measure one axis; see `Stripes`.

    Args:
        counts: changed entries per run and line.
        width: entries per line.
        mean: expected counts under the matched null (float64).
        variance: their variances under that null.
        times: how many entries 0, 1, ... R runs changed.
        generator: of the simulated nulls, seeded by the caller from the tensor's name.

    >>> counts = torch.tensor([[4, 0], [4, 0]])
    >>> flat = torch.full((2, 2), 2.0, dtype=torch.float64)
    >>> found = stripes(counts, 4, flat, flat / 3, torch.tensor([4, 0, 4]), np.random.default_rng(0))
    >>> found.variance, round(found.variance_shuffled.mean, 4), found.gini
    (0.25, 0.0357, 0.5)
    """
    runs, lines = counts.shape
    profiles = counts.to(torch.float64).numpy()
    total, unit = profiles.sum(axis=0), float(width * runs) ** 2  # unit: from counts to the mean of C
    density = profiles.sum(axis=1) / (lines * width)
    spread = _shuffled_variance(times, width)
    matched = [_draw(generator, mean.numpy(), variance.numpy(), width) for _ in range(DRAWS)]
    flat = np.full(lines, total.mean()), np.full(lines, spread)
    shuffled = [_draw(generator, *flat, width * runs) for _ in range(DRAWS)]
    pairs = runs * (runs - 1) // 2
    apart = Null(0.0, 1 / math.sqrt((lines - 1) * pairs)) if lines > 1 and pairs else Null(math.nan, math.nan)
    return Stripes(
        lines=lines,
        width=width,
        variance=float(total.var()) / unit,
        variance_binomial=float((density * (1 - density)).sum()) * width / unit,
        variance_shuffled=Null(spread / unit, _shuffled_sd(times, width, lines) / unit),
        variance_matched=_variance_null(mean.sum(dim=0).numpy(), variance.sum(dim=0).numpy(), unit),
        gini=gini(torch.from_numpy(total)),
        gini_shuffled=_null(lambda sums: gini(torch.from_numpy(sums)), shuffled),
        gini_matched=_null(lambda profile: gini(torch.from_numpy(profile.sum(axis=0))), matched),
        pearson=_mean_correlation(profiles),
        pearson_shuffled=apart,
        pearson_matched=_null(_mean_correlation, matched),
        spearman=_mean_correlation(_ranks(profiles)),
        spearman_shuffled=apart,
        spearman_matched=_null(lambda profile: _mean_correlation(_ranks(profile)), matched),
    )


def head_split(
    counts: Counts,
    width: int,
    lines: tuple[Moments, Moments],
    heads: tuple[Float[Tensor, "runs heads"], Float[Tensor, "runs heads"]],
    times: Int[Tensor, " values"],
) -> Heads:
    """Split the variance of the line means of C between and within heads; see `Heads`.

    Args:
        counts: changed entries per run and line; a head is ``lines / heads`` consecutive lines.
        width: entries per line.
        lines: mean and variance of the lines' counts under the matched null.
        heads: the same of the heads' counts. Not the sums of the former: lines of one head draw from the same codes.
        times: how many entries 0, 1, ... R runs changed.

    >>> counts, flat = torch.tensor([[4, 4, 0, 0]]), torch.full((1, 4), 2.0, dtype=torch.float64)
    >>> pair = 2 * flat[:, :2]
    >>> found = head_split(counts, 4, (flat, flat / 3), (pair, pair / 3), torch.tensor([8, 8]))
    >>> found.between, found.within
    (0.25, 0.0)
    """
    runs, number = counts.shape[0], heads[0].shape[1]
    depth = counts.shape[1] // number
    total = counts.sum(dim=0).to(torch.float64).numpy()
    line_unit, head_unit = float(width * runs) ** 2, float(width * runs * depth) ** 2
    between = float(total.reshape(number, depth).sum(axis=1).var()) / head_unit
    expected, spread = (part.sum(dim=0).numpy() for part in lines)
    whole = _variance_null(expected, spread, line_unit)
    grouped = _variance_null(heads[0].sum(dim=0).numpy(), heads[1].sum(dim=0).numpy(), head_unit)
    inside = expected.reshape(number, depth)
    offset = (inside - inside.mean(axis=1, keepdims=True)).reshape(-1)
    whole_shuffled = _shuffled_variance(times, width) / line_unit
    grouped_shuffled = _shuffled_variance(times, width * depth) / head_unit
    return Heads(
        number=number,
        between=between,
        between_shuffled=grouped_shuffled,
        between_matched=grouped,
        within=float(total.var()) / line_unit - between,
        within_shuffled=whole_shuffled - grouped_shuffled,
        within_matched=Null(whole.mean - grouped.mean, _normal_sd(offset, spread) / line_unit),
    )


def gini(amounts: Float[Tensor, " lines"]) -> float:
    """Gini coefficient of non-negative amounts: 0 when all are equal, 1 - 1/n when one holds everything.

    NaN when nothing is there to share.

    >>> gini(torch.tensor([0.0, 0.0, 0.0, 4.0]))
    0.75
    """
    ordered = np.sort(amounts.to(torch.float64).numpy())
    n, whole = len(ordered), ordered.sum()
    place = 2 * np.arange(1, n + 1) - n - 1
    return float((place * ordered).sum() / (n * whole)) if whole > 0 else math.nan


def _shuffled_variance(times: Tensor, width: int) -> float:
    """Variance of a line's sum when the matrix's values 0..R are shuffled: drawing `width` without replacement."""
    number = times.to(torch.float64).numpy()
    entries, value = number.sum(), np.arange(len(number))
    average = (number * value).sum() / entries
    spread = (number * (value - average) ** 2).sum() / entries
    return float(width * spread * (entries - width) / max(entries - 1, 1))


def _shuffled_sd(times: Tensor, width: int, lines: int) -> float:
    """Sd of the variance over `lines` such sums: normal theory with the excess kurtosis of a sum of `width` values."""
    number = times.to(torch.float64).numpy()
    value = np.arange(len(number)) - (number * np.arange(len(number))).sum() / number.sum()
    second, fourth = ((number * value**power).sum() / number.sum() for power in (2, 4))
    if lines < 2 or second == 0:
        return math.nan
    excess = (fourth / second**2 - 3) / width
    return _shuffled_variance(times, width) * math.sqrt(max(2 / (lines - 1) + excess / lines, 0.0))


def _variance_null(expected: np.ndarray, spread: np.ndarray, unit: float) -> Null:
    """Null of the variance over lines of sums with these means and variances, whose total is fixed.

    Exact mean: the average of the sums is the same in every draw, so E (S - average)^2 = variance + offset^2.
    """
    offset = expected - expected.mean()
    return Null(float((spread + offset**2).mean()) / unit, _normal_sd(offset, spread) / unit)


def _normal_sd(offset: np.ndarray, spread: np.ndarray) -> float:
    """Sd of the mean of squares of independent normals with these means and variances."""
    return math.sqrt(float((2 * spread**2 + 4 * spread * offset**2).sum())) / len(spread)


def _draw(generator: np.random.Generator, mean: np.ndarray, variance: np.ndarray, most: int) -> np.ndarray:
    drawn = mean + np.sqrt(np.maximum(variance, 0.0)) * generator.standard_normal(mean.shape)
    return np.clip(np.rint(drawn), 0, most)


def _null(statistic: Callable[[np.ndarray], float], draws: list[np.ndarray]) -> Null:
    found = np.array([statistic(draw) for draw in draws])
    return Null(float(found.mean()), float(found.std(ddof=1)))


def _mean_correlation(profiles: np.ndarray) -> float:
    """Mean over pairs of rows of Pearson's correlation; NaN where a row is constant or there is no pair."""
    offset = profiles - profiles.mean(axis=1, keepdims=True)
    length = np.sqrt((offset**2).sum(axis=1))
    if len(profiles) < 2 or not np.all(length > 0):
        return math.nan
    number, whole = len(profiles), (offset / length[:, None]).sum(axis=0)
    return float((whole**2).sum() - number) / (number * (number - 1))  # |sum of unit rows|^2 has every pair twice


def _ranks(profiles: np.ndarray) -> np.ndarray:
    """Ranks within each row, ties averaged; the entries are counts, so that counting replaces sorting."""
    ranks = np.empty_like(profiles)
    for row, counts in zip(ranks, profiles.astype(np.int64), strict=True):
        number = np.bincount(counts)
        row[:] = (np.cumsum(number) - (number - 1) / 2)[counts]
    return ranks
