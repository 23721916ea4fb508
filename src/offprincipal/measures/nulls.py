"""What chance, magnitude and rounding alone would give: the number that stands beside every overlap.

What it is: null models of the update mask, computed from counts per magnitude code, so that they are exact (or exactly
sampled) without touching the weights again. What it is not: a test of significance by itself; z is reported beside the
excess, and the choice of the null decides what the excess means.

An update mask M is compared with a mask A chosen from the base. Per magnitude code c of the base: n entries, m of them
changed, a of them in A. Three nulls, from weakest to strongest:

* chance: entries change independently of everything (N-chance);
* rounding: every entry gets an independent Gaussian step of one scale, and bfloat16 hides what it hides (N-rounding);
* magnitude: P(changed | magnitude code) is taken from the pair itself, all else is random (N-magnitude).
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprincipal.measures import _gaussian, bits

DRAWS = 20
"""Draws of a simulated null: the least that DEFINITIONS section 5 allows."""

Counts = Int[Tensor, " codes"]


@dataclass(frozen=True)
class Magnitude:
    """N-magnitude of one pair: change depends on the magnitude code alone. Made once, asked about any mask.

    Attributes:
        codes: int64 [used], the magnitude codes that occur in the base.
        total: float64 [used], entries per code.
        moved: float64 [used], changed entries per code.
    """

    codes: np.ndarray
    total: np.ndarray
    moved: np.ndarray

    @cached_property
    def spread(self) -> np.ndarray:
        """Variance per code, but for ``a (n - a)``: ``m (n - m) / (n^2 (n - 1))``, float64 [used]."""
        return self.moved * (self.total - self.moved) / (self.total**2 * np.maximum(self.total - 1, 1))

    def overlap(self, a: Counts) -> tuple[float, float]:
        """Expected overlap count with a mask of `a` entries per code, and its variance.

        Returns:
            ``sum m a / n`` and the sum of hypergeometric variances ``a (n - a) m (n - m) / (n^2 (n - 1))``. Exact, no
            sampling. For a mask that is itself a function of the code (low magnitude) the expectation equals the
            observation up to ties: this null then says nothing, and `RoundingDraws` is the one to read.

        >>> magnitude(torch.tensor([4, 6]), torch.tensor([2, 0])).overlap(torch.tensor([2, 3]))
        (1.0, 0.3333333333333333)
        """
        inside = a.numpy()[self.codes].astype(np.float64)
        expected, variance = self.moved * inside / self.total, inside * (self.total - inside) * self.spread
        return float(expected.sum()), float(variance.sum())


def magnitude(n: Counts, m: Counts) -> Magnitude:
    """N-magnitude from `n` entries per code, `m` of them changed. Source: DEFINITIONS section 5 (ours); paper.md N3.

    >>> magnitude(torch.tensor([4, 0, 6]), torch.tensor([2, 0, 0])).codes.tolist()
    [0, 2]
    """
    codes = n.nonzero().flatten().numpy()
    return Magnitude(codes, *(counts.numpy()[codes].astype(np.float64) for counts in (n, m)))


def visible_probability(scale: float) -> Float[Tensor, " codes"]:
    """P(a Gaussian step of standard deviation `scale` is visible in bfloat16), per magnitude code of the weight.

    float64 [32768]; zero for nonfinite codes. The step is visible beyond half the gap to the next value outward, or
    half the gap to the next value inward (ulp/2 and, at powers of two, ulp/4: PNT Corollary 3.6). The sign of the
    step is random, so each side has probability one half. Ties have measure zero and are left out.

    >>> p = visible_probability(0.004)
    >>> round(float(p[bits.magnitude_code(torch.tensor(1.0))]), 4)
    0.4771
    """
    return torch.from_numpy(_visible(scale, np.arange(bits.MAGNITUDE_CODES)))


def _visible(scale: float, codes: np.ndarray) -> np.ndarray:
    result, finite = np.zeros(len(codes)), codes < bits.FIRST_NONFINITE_CODE
    result[finite] = _gaussian.beyond(scale, *(gap[codes[finite]] for gap in _half_gaps()))
    return result


@cache
def _half_gaps() -> tuple[np.ndarray, np.ndarray]:
    """Half the gap from each finite magnitude to its neighbour outward and inward (float64)."""
    outward = np.diff(bits.value(torch.arange(bits.FIRST_NONFINITE_CODE + 1)).numpy()) / 2
    outward[-1] = outward[-2]  # beyond the largest finite value rounding acts as if the grid went on
    return outward, np.concatenate([outward[:1], outward[:-1]])


def rounding_scale(n: Counts, changed: int) -> float:
    """The scale of a Gaussian step at which rounding to bfloat16 leaves `changed` visible entries in expectation.

    Solved by bisection to 1e-12 relative. Zero when nothing changed; infinite when no finite scale suffices. Matching
    the count rather than the norm keeps this null usable when only bfloat16 is stored, where small steps are lost.

    >>> n = torch.zeros(32768, dtype=torch.int64)
    >>> n[bits.magnitude_code(torch.tensor(1.0))] = 100
    >>> round(rounding_scale(n, 50), 6)
    0.00423
    """
    if changed <= 0:
        return 0.0
    used = n[: bits.FIRST_NONFINITE_CODE].nonzero().flatten().numpy()
    outward, inward = (gap[used] for gap in _half_gaps())
    bottom, top = -320.0, 40.0  # natural logarithms, beyond both ends of what rounding can tell
    found = _gaussian.log_scale_for(changed, n.numpy()[used].astype(np.float64), outward, inward, bottom, top)
    return math.inf if found == top else math.exp(found)


@dataclass(frozen=True)
class RoundingDraws:
    """Simulated updates of one Gaussian scale, seen through bfloat16, as changed entries per code that occurs.

    Attributes:
        scale: standard deviation of the step, in the units of the weights.
        codes: int64 [used], the magnitude codes that occur in the base.
        total: float64 [used], entries per code.
        moved: float64 [draws, used], changed entries per draw and code.
    """

    scale: float
    codes: np.ndarray
    total: np.ndarray
    moved: np.ndarray

    @cached_property
    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """Per draw that changed something and per code, what an entry of the mask adds to the share, and its variance.

        Both float64 [draws, used]; the variance but for ``a (n - a)``.
        """
        moved = self.moved[self.moved.sum(axis=1) > 0]
        size = moved.sum(axis=1, keepdims=True)
        spread = moved * (self.total - moved) / (self.total**2 * np.maximum(self.total - 1, 1))
        return moved / self.total / size, spread / size**2

    def share(self, a: Counts) -> tuple[float, float]:
        """Mean and variance of the overlap share ``|A and M| / |M|`` over the draws; the mask has `a` per code.

        Given the drawn counts per code, the overlap is hypergeometric within each code; its mean and variance are used
        in closed form (law of total variance), so that only the counts per code are simulated. NaN when every draw is
        empty.

        >>> one = RoundingDraws(1.0, np.array([0, 1]), np.array([10.0, 10.0]), np.array([[3.0, 1.0], [3.0, 1.0]]))
        >>> one.share(torch.tensor([10, 0]))
        (0.75, 0.0)
        """
        per_entry, spread = self.shares
        if not len(per_entry):
            return math.nan, math.nan
        inside = a.numpy()[self.codes].astype(np.float64)
        # no matrix products: theirs end in other last bits with another number of threads
        mean, within = (per_entry * inside).sum(axis=1), (spread * (inside * (self.total - inside))).sum(axis=1)
        return float(mean.mean()), float(within.mean() + (mean.var(ddof=1) if len(mean) > 1 else 0.0))


def rounding_draws(n: Counts, changed: int, generator: np.random.Generator, draws: int = DRAWS) -> RoundingDraws:
    """Simulate the rounding null (N-rounding): independent Gaussian steps of one scale, then bfloat16.

    Args:
        n: entries per magnitude code of the base.
        changed: observed number of changes; the scale is matched to it (`rounding_scale`).
        generator: seeded by the caller, per tensor name.
        draws: how many updates to simulate.

    Returns:
        Changed entries per draw and code. Exact in distribution: entries of one code are exchangeable under an
        independent step, so a binomial count per code is all that simulating the whole tensor would add. Source:
        ours, after paper.md 8.0 N2.

    >>> n = torch.zeros(32768, dtype=torch.int64)
    >>> n[16256] = 1000
    >>> bool(480 < rounding_draws(n, 500, np.random.default_rng(0)).moved.mean() < 520)
    True
    """
    scale = rounding_scale(n, changed)
    codes = n.nonzero().flatten().numpy()
    chance = np.ones(len(codes)) if math.isinf(scale) else _visible(scale, codes)
    total = n.numpy()[codes]
    moved = generator.binomial(total, np.minimum(chance, 1.0), size=(draws, len(codes)))
    return RoundingDraws(scale, codes, total.astype(np.float64), moved.astype(np.float64))


def bernoulli_jaccard(p: float, q: float) -> float:
    """Expected Jaccard of two independent masks of densities p and q: ``p q / (p + q - p q)`` (PNT section 2.2).

    >>> bernoulli_jaccard(0.5, 0.5)
    0.3333333333333333
    """
    union = p + q - p * q
    return p * q / union if union > 0 else 0.0


def low_magnitude(n: Counts, ones: int) -> Counts:
    """The mask of the `ones` smallest magnitudes as counts per code: whole codes from below, then part of one.

    Which entries of the last code it takes (the first by flat index) the counts cannot see: `sweep.low_changed` does.
    Source: DEFINITIONS section 2.

    >>> low_magnitude(torch.tensor([3, 4, 5]), 5)
    tensor([3, 2, 0])
    """
    return (ones - (torch.cumsum(n, 0) - n)).clamp(min=0).minimum(n)
