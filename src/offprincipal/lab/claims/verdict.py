"""From samples to a verdict: intervals over seeds, the rule, and the number of seeds that would decide.

What it is: the statistics that all claims share. A sample holds, per seed, the values of one effect in several
matrices (or task families), signed so that positive is what the claim says. What it is not: the measures themselves.

The interval is a bootstrap over seeds and then over matrices. Its variance needs no resampling: drawing S seeds and
then, in each, its M matrices with replacement has variance ``(between + mean(within / M)) / S``. Few seeds make a
plain bootstrap too narrow (with three the variance is two thirds of what it should be), so it is widened by
S / (S - 1) and by Student's factor for S - 1 degrees of freedom. All this is *ours*.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

Sample = Sequence[np.ndarray]
"""Per seed, the values of one effect."""

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
EXPLAINED, CANNOT_TELL = "explained by the null", "cannot tell"

MIN_SEEDS = 3
"""Fewer seeds than this decide nothing (*ours*): with two, Student's factor is 12.7."""

MOST_SEEDS = 1000
"""Where the search for a sufficient number of seeds ends."""

LEVEL, POWER = 0.95, 0.80


@dataclass(frozen=True)
class Estimate:
    """The mean of a sample with its interval.

    Attributes:
        mean: over seeds, of the means over matrices.
        low: lower end of the 95 % interval; None for a single value.
        high: upper end.
        sd: standard deviation of one seed, between seeds and from its matrices; None with a single seed.
        seeds: how many seeds.
        over: "seeds", or "matrices" where there is only one seed: such an interval decides nothing.
        per_seed: the mean of each seed.
    """

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    seeds: int
    over: str
    per_seed: tuple[float, ...]

    def row(self) -> dict[str, Any]:
        """The mean, its interval and how many seeds, as the tables of a study keep them."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "seeds": self.seeds}


def estimate(sample: Sample) -> Estimate:
    """Mean and interval of a sample; seeds without a value are left out.

    >>> found = estimate([np.array([1.0]), np.array([2.0]), np.array([3.0])])
    >>> found.mean, round(found.low, 3), round(found.high, 3)  # Student's interval, as every seed has one value
    (2.0, -0.484, 4.484)
    """
    kept = [np.asarray(values, np.float64) for values in sample if len(values)]
    if not kept:
        return Estimate(math.nan, None, None, None, 0, "seeds", ())
    means = np.array([values.mean() for values in kept])
    within = float(np.mean([values.var() / len(values) for values in kept]))
    mean, seeds = float(means.mean()), len(kept)
    if seeds > 1:
        sd, units, over = math.sqrt((float(means.var()) + within) * seeds / (seeds - 1)), seeds, "seeds"
        error = sd / math.sqrt(seeds)
    else:
        sd, units, over = None, len(kept[0]), "matrices"
        error = math.sqrt(within * units / max(units - 1, 1))
    if units < 2:
        return Estimate(mean, None, None, None, seeds, over, (mean,))
    reach = student((1 + LEVEL) / 2, units - 1) * error
    return Estimate(mean, mean - reach, mean + reach, sd, seeds, over, tuple(means.tolist()))


def state(found: Estimate, least: float, *, equal: bool = False) -> str:
    """``"present"``, ``"absent"`` or ``"open"``: is there an effect of at least `least`?

    Present: the interval lies above zero and reaches `least`. Absent: it ends below `least`. With `equal` the effect
    is a difference that should vanish: present (they are equal) when the interval lies within ``+- least``, absent
    when it lies outside.

    >>> state(Estimate(0.3, 0.1, 0.5, 0.1, 5, "seeds", ()), 0.2)
    'present'
    >>> state(Estimate(0.0, -0.1, 0.1, 0.1, 5, "seeds", ()), 0.2)
    'absent'
    """
    if found.low is None or found.high is None:
        return "open"
    if equal:
        if found.low > -least and found.high < least:
            return "present"
        return "absent" if found.low >= least or found.high <= -least else "open"
    if found.high < least:
        return "absent"
    return "present" if found.low > 0 else "open"


@dataclass(frozen=True)
class Measured:
    """One effect as a claim function returns it, before it is judged.

    Attributes:
        effect: what was measured, in words, with its unit.
        sample: its values.
        over_nulls: null to the sample of what exceeds it (effect minus what the null gives), same signs.
        decisive: nulls that must be exceeded; the others are only reported.
        least: the least effect that counts, in the unit of the effect (*ours*, chosen before looking).
        equal: the claim is that the effect vanishes within ``+- least``.
    """

    effect: str
    sample: Sample
    over_nulls: Mapping[str, Sample] = field(default_factory=dict)
    decisive: tuple[str, ...] = ()
    least: float = 0.0
    equal: bool = False


@dataclass(frozen=True)
class Judged:
    """One effect with its interval, its nulls and the verdict on it alone.

    Attributes:
        expected: null to what it alone would give.
        over: null to the estimate of what exceeds it.
        open_over: the null at which the decision is open; None where it is the effect itself.
    """

    effect: str
    estimate: Estimate
    expected: Mapping[str, float]
    over: Mapping[str, Estimate]
    decisive: tuple[str, ...]
    least: float
    equal: bool
    verdict: str
    open_over: str | None = None


def judge(measured: Measured, *, few: bool = False) -> Judged:
    """The verdict on one effect: is it there, and does it exceed every decisive null?

    Not supported: it is absent. Explained by the null: it is there, and what exceeds some decisive null is absent.
    Supported: it is there and exceeds them all. Cannot tell: fewer than `MIN_SEEDS` seeds, or an interval that
    leaves it open.

    Args:
        measured: the samples.
        few: decide from the matrices of too few seeds as well; for controls, whose truth is known.

    >>> strong = [np.array([1.0, 1.1]), np.array([0.9, 1.0]), np.array([1.0, 1.2])]
    >>> none = [np.array([0.01, -0.01]), np.array([0.0, 0.01]), np.array([0.0, -0.01])]
    >>> judge(Measured("x", strong, {"null": none}, ("null",), 0.1)).verdict
    'explained by the null'
    """
    effect = estimate(measured.sample)
    over = {name: estimate(sample) for name, sample in measured.over_nulls.items()}
    states = {None: state(effect, measured.least, equal=measured.equal)}
    states |= {name: state(over[name], measured.least) for name in measured.decisive}
    still_open = next((name for name, found in states.items() if found == "open"), None)
    if effect.seeds < (1 if few else MIN_SEEDS):
        verdict = CANNOT_TELL
    elif states[None] == "absent":
        verdict = NOT_SUPPORTED
    elif states[None] == "present" and "absent" in states.values():
        verdict = EXPLAINED
    else:
        verdict = SUPPORTED if set(states.values()) == {"present"} else CANNOT_TELL
    expected = {name: effect.mean - found.mean for name, found in over.items()}
    settled = (measured.effect, effect, expected, over, measured.decisive, measured.least, measured.equal)
    return Judged(*settled, verdict, still_open if verdict == CANNOT_TELL else None)


def together(verdicts: Sequence[str]) -> str:
    """The verdict on a claim of several effects, all of which it needs: the worst of theirs.

    >>> together(["supported", "cannot tell"]), together(["explained by the null", "not supported"])
    ('cannot tell', 'not supported')
    """
    order = (NOT_SUPPORTED, EXPLAINED, CANNOT_TELL, SUPPORTED)
    return min(verdicts, key=order.index)


def seeds_needed(judged: Sequence[Judged]) -> int | None:
    """Seeds with which an effect of `least` beyond the widest open null would show with 80 % power.

    The least n with ``(t_{.975} + t_{.80}) sd / sqrt(n) <= least``; `MIN_SEEDS` where a single seed says nothing about
    the spread, None where no effect is open, `MOST_SEEDS` where that many are not enough. An effect whose least size
    is zero asks for a sign alone, which no number of seeds is sure to show: it gives no number.
    """
    needed = []
    for each in judged:
        if each.verdict == CANNOT_TELL and (each.least or each.estimate.seeds < MIN_SEEDS):
            spread = (each.over[each.open_over] if each.open_over else each.estimate).sd
            needed.append(MIN_SEEDS if spread is None or not each.least else enough(spread, each.least))
    return max(needed, default=None)


def enough(sd: float, least: float) -> int:
    """The least number of seeds, at least `MIN_SEEDS`, that shows an effect of `least` with 80 % power.

    >>> enough(1.0, 1.0), enough(0.0, 1.0)
    (10, 3)
    """

    def shows(seeds: int) -> bool:
        return (student((1 + LEVEL) / 2, seeds - 1) + student(POWER, seeds - 1)) * sd <= least * math.sqrt(seeds)

    return bisect_left(range(MOST_SEEDS), True, lo=MIN_SEEDS, key=shows)


@cache
def student(probability: float, freedom: int) -> float:
    """Quantile of Student's t by bisection of its distribution (finite series for whole degrees of freedom).

    Source: Abramowitz and Stegun 26.7.3 and 26.7.4.

    >>> round(student(0.975, 2), 3), round(student(0.8, 30), 3)
    (4.303, 0.854)
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _below(angle, freedom) < probability else (low, angle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _below(angle: float, freedom: int) -> float:
    """P(t <= sqrt(freedom) tan(angle)) for angle >= 0."""
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for step in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (step - 1) / step
        total += term
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + inside / 2
