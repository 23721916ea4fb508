"""Updates whose truth is known: the nulls of a run, and its controls.

What it is: functions from a base matrix and an update D to another D (float64, ``[out, in]``). What it is not: a
measure. Every planted update is measured by the same code as a real one, so a null or a control is a run like any
other. All constants are *ours*.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from offprincipal.geometry import Base
from offprincipal.measures import bits
from offprincipal.measures.masks import ALPHAS

NEIGHBOURS = 64
"""Entries of neighbouring magnitude among which `within_magnitude` shuffles."""

OFF, SMALL, LINES = 0.5, 0.7, 0.5
"""Controls: step kept on principal weights; on those not small; sd of its logarithm over lines and heads."""

ON = 1.5
"""Control: growth of the step on principal weights."""

SEEN = 0.1
"""Control: share of the entries that hold the whole update."""


def even(delta: Tensor, generator: np.random.Generator) -> Tensor:
    """N1: the same steps, signs included, at shuffled places.

    >>> even(torch.tensor([[1.0, 2.0]]).double(), np.random.default_rng(0)).sum().item()
    3.0
    """
    order = torch.from_numpy(generator.permutation(delta.numel()))
    return delta.flatten()[order].reshape(delta.shape)


def within_magnitude(before: Tensor, delta: Tensor, generator: np.random.Generator) -> Tensor:
    """N3 for steps: shuffled among `NEIGHBOURS` entries of about the same ``|W0|``, so that only magnitude is kept."""
    codes = bits.magnitude_code(before).flatten().numpy()
    order = np.lexsort((generator.random(codes.size), codes))
    taken = order.copy()
    whole = codes.size // NEIGHBOURS * NEIGHBOURS
    taken[:whole] = generator.permuted(order[:whole].reshape(-1, NEIGHBOURS), axis=1).reshape(-1)
    taken[whole:] = generator.permutation(order[whole:])
    found = torch.empty_like(delta).flatten()
    found[torch.from_numpy(order)] = delta.flatten()[torch.from_numpy(taken)]
    return found.reshape(delta.shape)


def gauss(delta: Tensor, generator: np.random.Generator) -> Tensor:
    """N0: Gaussian steps of the same Frobenius norm."""
    drawn = torch.from_numpy(generator.standard_normal(tuple(delta.shape)))
    return drawn * (delta.norm() / drawn.norm())


def principal_mask(base: Base) -> Tensor:
    """M_princ of default rank and size, boolean ``[out, in]``."""
    return base.levels.principal(ALPHAS[-1])[base.levels.level.to(torch.int64)]


def low_mask(base: Base) -> Tensor:
    """M_low of default size, boolean ``[out, in]``."""
    return base.levels.low()[base.levels.level.to(torch.int64)]


def outside(delta: Tensor, base: Base, amount: float) -> Tensor:
    """D without `amount` of its part in both principal subspaces: ``D - amount U U^T D V V^T`` (rank of the mask)."""
    left, right = (side[:, : base.levels.rank] for side in (base.factors.left, base.factors.right))
    return delta - amount * left @ (left.T @ delta @ right) @ right.T


def avoiding(delta: Tensor, base: Base) -> Tensor:
    """Control: half the step on principal weights, less on large ones, half of the principal-subspace part."""
    scale = torch.where(principal_mask(base), OFF, 1.0) * torch.where(low_mask(base), 1.0, SMALL)
    return outside(delta * scale, base, OFF)


def aiming(delta: Tensor, base: Base) -> Tensor:
    """Control: larger steps on principal weights."""
    return torch.where(principal_mask(base), ON, 1.0) * delta


def striped(delta: Tensor, axis: int, heads: int, generator: np.random.Generator) -> Tensor:
    """Control: every line along `axis`, and every head of lines, has a scale of its own."""
    lines = delta.shape[axis]
    whole = heads if heads and lines % heads == 0 else 1
    logs = LINES * generator.standard_normal(lines)
    # heads alternate, so that two heads differ as surely as many
    logs += LINES * np.repeat(np.where(np.arange(whole) % 2, -1.0, 1.0), lines // whole)
    scale = torch.from_numpy(np.exp(logs))
    return delta * (scale[:, None] if axis == 0 else scale[None, :])


def turned(delta: Tensor, base: Base, sizes: Sequence[int]) -> Tensor:
    """Control: an update of the same norm that turns the leading subspace of each size and stretches its spectrum.

    D itself where the matrix has no direction outside.
    """
    left, right, values = base.factors.left, base.factors.right, base.factors.values
    found = torch.zeros_like(delta)
    sizes = [k for k in sizes if k < left.shape[1]]
    for k in sizes:
        stretched = (left[:, :k] * values[:k]) @ right[:, :k].T
        # the last direction inside and the first outside are mixed, which turns both sides by up to 45 degrees
        mixed = torch.outer(left[:, k - 1], right[:, k]) + torch.outer(left[:, k], right[:, k - 1])
        found = found + stretched / stretched.norm() + mixed / mixed.norm()
    return found * (delta.norm() / found.norm()) if sizes else delta


def apart(delta: Tensor, first: bool, generator: np.random.Generator) -> Tensor:
    """Control: only one half of the entries, chosen at random, moves; `first` says which half."""
    half = torch.from_numpy(generator.random(tuple(delta.shape)) < 0.5)
    return torch.where(half == first, delta, 0.0)


def seen(delta: Tensor, generator: np.random.Generator) -> Tensor:
    """Control: the norm of D spread evenly over a tenth of the entries, chosen at random, with random signs."""
    signs = np.sign(generator.standard_normal(delta.numel()))
    signs[generator.random(delta.numel()) > SEEN] = 0
    found = torch.from_numpy(signs).reshape(delta.shape)
    return found * (delta.norm() / found.norm().clamp(min=1))
