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

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprincipal.measures import bits

DRAWS = 20
"""Draws of a simulated null: the least that DEFINITIONS section 5 allows."""

Counts = Int[Tensor, " codes"]


def magnitude(n: Counts, m: Counts, a: Counts) -> tuple[float, float]:
    """Expected overlap count and its variance when change depends on the magnitude code alone (N-magnitude).

    Args:
        n: entries per code.
        m: changed entries per code.
        a: entries of the mask per code.

    Returns:
        ``sum m a / n`` and the sum of hypergeometric variances ``a (n - a) m (n - m) / (n^2 (n - 1))``. Exact, no
        sampling. For a mask that is itself a function of the code (low magnitude) the expectation equals the
        observation up to ties: this null then says nothing, and `rounding` is the one to read.

    Source: DEFINITIONS section 5 (ours); paper.md 8.0 calls it N3.

    >>> magnitude(torch.tensor([4, 6]), torch.tensor([2, 0]), torch.tensor([2, 3]))
    (1.0, 0.3333333333333333)
    """
    used = n > 0
    total, moved, inside = (t[used].to(torch.float64) for t in (n, m, a))
    spread = inside * (total - inside) * moved * (total - moved) / (total.square() * (total - 1).clamp(min=1))
    return float((moved * inside / total).sum()), float(spread.sum())


def z_score(observed: float, expected: float, variance: float) -> float:
    """(observed - expected) / sd; zero when both the excess and the variance vanish, infinite when only the latter.

    >>> z_score(3.0, 1.0, 4.0)
    1.0
    """
    excess = observed - expected
    if variance <= 0:
        return 0.0 if abs(excess) < 1e-9 * max(1.0, abs(expected)) else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def visible_probability(scale: float) -> Float[Tensor, " codes"]:
    """P(a Gaussian step of standard deviation `scale` is visible in bfloat16), per magnitude code of the weight.

    float64 [32768]; zero for nonfinite codes. The step is visible beyond half the gap to the next value outward, or
    half the gap to the next value inward (ulp/2 and, at powers of two, ulp/4: PNT Corollary 3.6). The sign of the
    step is random, so each side has probability one half. Ties have measure zero and are left out.

    >>> p = visible_probability(0.004)
    >>> round(float(p[bits.magnitude_code(torch.tensor(1.0))]), 4)
    0.4771
    """
    grid = bits.value(torch.arange(bits.FIRST_NONFINITE_CODE + 1))
    outward = torch.diff(grid) / 2
    inward = torch.cat([outward[:1], outward[:-1]])
    result = torch.zeros(bits.MAGNITUDE_CODES, dtype=torch.float64)
    root = scale * math.sqrt(2)
    if root > 0:
        result[: grid.numel() - 1] = (torch.special.erfc(outward / root) + torch.special.erfc(inward / root)) / 2
    return result


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
    used = n.nonzero().flatten()
    weights = n[used].to(torch.float64)
    low, high = -320.0, 40.0  # natural logarithms of the scale, beyond both ends of the bfloat16 range
    for _ in range(60):
        middle = (low + high) / 2
        hit = float((weights * visible_probability(math.exp(middle))[used]).sum()) < changed
        low, high = (middle, high) if hit else (low, middle)
    return math.inf if high == 40.0 else math.exp(high)


def rounding_draws(
    n: Counts, changed: int, generator: np.random.Generator, draws: int = DRAWS
) -> Int[Tensor, "draws codes"]:
    """Changed entries per code in `draws` simulated updates of one Gaussian scale, seen through bfloat16 (N-rounding).

    Args:
        n: entries per magnitude code of the base.
        changed: observed number of changes; the scale is matched to it (`rounding_scale`).
        generator: seeded by the caller, per tensor name.
        draws: how many updates to simulate.

    Returns:
        int64 [draws, 32768]. Exact in distribution: entries of one code are exchangeable under an independent step,
        so a binomial count per code is all that the simulation of the whole tensor would add. Source: ours, after
        paper.md 8.0 N2.

    >>> n = torch.zeros(32768, dtype=torch.int64)
    >>> n[16256] = 1000
    >>> int(rounding_draws(n, 500, np.random.default_rng(0)).sum(dim=1).float().mean().round()) in range(480, 520)
    True
    """
    scale = rounding_scale(n, changed)
    chance = (n > 0).to(torch.float64) if math.isinf(scale) else visible_probability(scale)
    used = ((n > 0) & (chance > 0)).nonzero().flatten()
    drawn = torch.zeros(draws, n.numel(), dtype=torch.int64)
    drawn[:, used] = torch.from_numpy(
        generator.binomial(n[used].numpy(), chance[used].clamp(max=1.0).numpy(), size=(draws, used.numel()))
    )
    return drawn


def rounding(drawn: Int[Tensor, "draws codes"], n: Counts, a: Counts) -> tuple[float, float]:
    """Mean and variance of the overlap share ``|A and M| / |M|`` over the draws of the rounding null.

    Given the drawn counts per code, the overlap is hypergeometric within each code; its mean and variance are used in
    closed form (law of total variance), so that only the counts per code are simulated. NaN when a draw is empty.

    >>> n, a = torch.tensor([10, 10]), torch.tensor([10, 0])
    >>> rounding(torch.tensor([[3, 1], [3, 1]]), n, a)
    (0.75, 0.0)
    """
    used = n > 0
    total, inside = n[used].to(torch.float64), a[used].to(torch.float64)
    moved = drawn[:, used].to(torch.float64)
    size = moved.sum(dim=1)
    mean = (moved * inside / total).sum(dim=1) / size
    within = inside * (total - inside) * moved * (total - moved) / (total.square() * (total - 1).clamp(min=1))
    between = mean.var(correction=1) if len(mean) > 1 else torch.zeros(())
    return float(mean.mean()), float((within.sum(dim=1) / size.square()).mean() + between)


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
