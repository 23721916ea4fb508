"""What depends on the base alone: its factors and its masks, made once and worth keeping."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from offprincipal.measures import angles, masks, spectrum
from offprincipal.measures.carried import serves
from offprincipal.measures.levels import Levels, levels
from offprincipal.measures.spectrum import Factors


@dataclass(frozen=True)
class Base:
    """What depends on the base alone, and is worth keeping.

    Attributes:
        factors: all singular values, leading vectors on both sides.
        levels: every mask of the report, one byte per weight.
    """

    factors: Factors
    levels: Levels


def base_of(
    weight: Shaped[Tensor, "out in"],
    *,
    holes: Bool[Tensor, "out in"] | None = None,
    device: str | torch.device = "cpu",
) -> Base:
    """Factors and masks of a base matrix, as a comparison makes and keeps them.

    Args:
        weight: ``[out, in]``, any floating dtype, neither side empty.
        holes: entries that count as zero (nonfinite ones).
        device: where to factorise.

    Returns:
        Leading vectors up to the largest size of `angles.GRID` that the shape allows; contiguous, as a cache gives
        them back, so that kept and fresh factors take the same path through products.

    >>> base_of(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).factors.values.tolist()
    [3.0, 1.0]
    """
    shape = (weight.shape[0], weight.shape[1])
    rank = masks.principal_rank(shape, max(angles.GRID))
    found = spectrum.factorise(weight, rank, holes=holes, device=device, frame=serves(shape))
    found = Factors(found.values.contiguous(), found.left.contiguous(), found.right.contiguous(), found.frame)
    return Base(found, levels(weight, found))
