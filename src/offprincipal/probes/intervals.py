"""Bootstrap intervals over prompts, batches and draws, and what a test with this many could have found.

What it is: seeded resampling of ratios of sums. What it is not: a correction for looking at many matrices; one in
twenty 95 % intervals misses by chance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from offprincipal.measures.seeds import numpy_generator

REPLICATES = 2000
"""Bootstrap replicates (*ours*)."""

LEVEL, POWER = 0.95, 0.8
"""Coverage of every interval, and the power at which the smallest detectable ratio is stated."""


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; nan where there are too few units to tell."""

    value: float
    low: float
    high: float


def ratio_of_sums(above: Sequence[float], below: Sequence[float], *, seed: int, name: str) -> Interval:
    """``sum above / sum below`` with a percentile bootstrap over the units that both list.

    >>> ratio_of_sums([1.0, 1.0], [2.0, 2.0], seed=0, name="a")
    Interval(value=0.5, low=0.5, high=0.5)
    """
    top, bottom = np.asarray(above, np.float64), np.asarray(below, np.float64)
    value = float(top.sum() / bottom.sum()) if bottom.sum() else math.nan
    if len(top) < 2 or math.isnan(value):
        return Interval(value, math.nan, math.nan)
    picks = numpy_generator(seed, name, "bootstrap").integers(len(top), size=(REPLICATES, len(top)))
    drawn = top[picks].sum(1) / bottom[picks].sum(1)
    tail = (1 - LEVEL) / 2
    return Interval(value, float(np.quantile(drawn, tail)), float(np.quantile(drawn, 1 - tail)))


@dataclass(frozen=True)
class Contrast:
    """One curvature over another.

    Attributes:
        ratio: of their sums over batches and draws.
        low: of the 95 % interval.
        high: of the 95 % interval.
        detectable: the smallest ratio above 1 that this many batches and draws would call sharper in 80 of 100 cases.
        verdict: "sharper", "flatter" or "cannot tell".
    """

    ratio: float
    low: float
    high: float
    detectable: float
    verdict: str


def contrast(curved: np.ndarray, against: np.ndarray, *, seed: int, name: str) -> Contrast:
    """Is `curved` larger than `against`, beyond what batches and random directions explain?

    Args:
        curved: [batch, draw] curvatures; one draw where the direction is not random.
        against: [batch, draw] curvatures of random directions in the same batches.
        seed: of the bootstrap.
        name: names its stream.

    Returns:
        Batches are resampled, and the random directions too (the same ones on both sides where both are random). The
        interval is ``ratio -+ t s``: s the bootstrap standard deviation, t Student's for the fewer of batches and
        draws less one; a percentile interval of few units is too short. The ratio is taken by logarithms where every
        replicate is positive, as curvatures mostly are; else as it is. "cannot tell" where the interval holds 1, where
        the reference is not positive, or where a unit is alone.

    Source: ours; the criticism that asks for the power is that of a Hessian test undetermined at n = 16.

    >>> contrast(np.full((4, 1), 2.0), np.ones((4, 3)), seed=0, name="a").verdict
    'sharper'
    """
    ratio = float(curved.mean() / against.mean())
    batches, draws = against.shape
    if min(batches, draws) < 2 or not against.mean() > 0:
        return Contrast(ratio, math.nan, math.nan, math.nan, "cannot tell")
    generator = numpy_generator(seed, name, "contrast")
    rows = generator.integers(batches, size=(REPLICATES, batches))
    columns = generator.integers(draws, size=(REPLICATES, draws))
    above = _resampled(curved, rows, columns if curved.shape[1] == draws else np.zeros((REPLICATES, 1), np.int64))
    replicates = above / _resampled(against, rows, columns)
    positive = ratio > 0 and bool((replicates > 0).all())
    spread = float((np.log(replicates) if positive else replicates).std(ddof=1))
    degrees = min(batches, draws) - 1
    reach = student(0.5 + LEVEL / 2, degrees) * spread
    needed = reach + student(POWER, degrees) * spread
    low, high = (ratio * math.exp(-reach), ratio * math.exp(reach)) if positive else (ratio - reach, ratio + reach)
    verdict = "sharper" if low > 1 else "flatter" if high < 1 else "cannot tell"
    return Contrast(ratio, low, high, math.exp(needed) if positive else 1 + needed, verdict)


def _resampled(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Mean of ``values[rows][:, columns]`` per replicate, by counts instead of copies."""
    weights = [_shares(picks, size) for picks, size in zip((rows, columns), values.shape, strict=True)]
    return np.einsum("rb,bd,rd->r", weights[0], values, weights[1])


def _shares(picks: np.ndarray, size: int) -> np.ndarray:
    """How often each of `size` units was picked in each replicate, as a share: [replicate, size]."""
    replicates = len(picks)
    flat = (picks + size * np.arange(replicates)[:, None]).ravel()
    return np.bincount(flat, minlength=replicates * size).reshape(replicates, size) / picks.shape[1]


def student(probability: float, degrees: int) -> float:
    """Quantile of Student's t: exact for one and two degrees of freedom, else by Hill's expansion (within 1 %).

    >>> round(student(0.975, 7), 2), round(student(0.975, 1), 2)
    (2.36, 12.71)
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))
