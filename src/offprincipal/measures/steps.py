"""How large steps are: one size, Gaussian, or as they were counted.

What it is: two questions to a distribution of ``|d|``, all that the precision ladder asks of a step. What it is not: a
model of an optimizer; signs are random, each with probability one half, wherever they matter.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from offprincipal.measures import bits


@dataclass(frozen=True)
class Constant:
    """Every step has one size, as Adam's when it follows the sign of the gradient."""

    size: float

    def beyond(self, distance: Tensor, tie: Tensor) -> Tensor:
        """P(|d| > distance), where `tie` P(|d| >= distance); float64.

        >>> Constant(1.0).beyond(torch.tensor([1.0, 1.0]).double(), torch.tensor([True, False])).tolist()
        [1.0, 0.0]
        """
        return ((distance < self.size) | (tie & (distance == self.size) & (self.size > 0))).to(torch.float64)

    def across(self, width: Tensor) -> Tensor:
        """E[min(1, |d| / width)], the chance of crossing an edge from anywhere in a cell; float64."""
        return (self.size / width).clamp(max=1.0)

    def times(self, factor: float) -> "Constant":
        """Every step times a factor."""
        return Constant(self.size * factor)


@dataclass(frozen=True)
class Gaussian:
    """Steps are Gaussian, as the sum of many of random sign."""

    sd: float

    def beyond(self, distance: Tensor, tie: Tensor) -> Tensor:
        """P(|d| > distance); ties have measure zero."""
        return torch.special.erfc(distance / (self.sd * 2**0.5)) if self.sd else torch.zeros_like(distance)

    def across(self, width: Tensor) -> Tensor:
        """E[min(1, |d| / width)]; float64.

        ``sqrt(2/pi) (1 - exp(-u^2)) sd / width + erfc(u)`` with ``u = width / (sd sqrt 2)``.

        >>> round(float(Gaussian(1e-3).across(torch.tensor(1.0).double())), 7)
        0.0007979
        """
        if not self.sd:
            return torch.zeros_like(width)
        u = width / (self.sd * 2**0.5)
        return -torch.special.expm1(-u.square()) * (2 / torch.pi) ** 0.5 * self.sd / width + torch.special.erfc(u)

    def times(self, factor: float) -> "Gaussian":
        """Every step times a factor."""
        return Gaussian(self.sd * factor)


@dataclass(frozen=True)
class Sampled:
    """Steps as they were counted: a histogram of ``|d|`` over bfloat16 magnitude codes (to 0.4 % of each size).

    Attributes:
        counts: int64 [32768]; nonfinite codes are ignored.
        factor: every step times this.
    """

    counts: Int[Tensor, " codes"]
    factor: float = 1.0

    def beyond(self, distance: Tensor, tie: Tensor) -> Tensor:
        """P(|d| > distance), where `tie` P(|d| >= distance); float64."""
        sizes, above, _ = self._cumulative
        from_here, past = (torch.searchsorted(sizes, distance, right=right) for right in (False, True))
        return above[torch.where(tie, from_here, past).clamp(min=1)]  # a step of size zero is never visible

    def across(self, width: Tensor) -> Tensor:
        """E[min(1, |d| / width)]; float64."""
        sizes, above, below = self._cumulative
        first = torch.searchsorted(sizes, width)
        return below[first] / width + above[first]

    def times(self, factor: float) -> "Sampled":
        """Every step times a factor."""
        return Sampled(self.counts, self.factor * factor)

    @cached_property
    def _cumulative(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sizes in rising order; the share of steps from each on; the sum of sizes before each, per step."""
        sizes = bits.value(torch.arange(bits.FIRST_NONFINITE_CODE)) * self.factor
        counted = self.counts[: bits.FIRST_NONFINITE_CODE].to(torch.float64)
        share, nothing = counted / counted.sum().clamp(min=1), counted.new_zeros(1)
        above = torch.cat([share.flip(0).cumsum(0).flip(0), nothing])
        return sizes, above, torch.cat([nothing, (share * sizes).cumsum(0)])


Step = Constant | Gaussian | Sampled
"""How large the steps are; their signs are random, each with probability one half."""
