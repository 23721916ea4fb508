"""A step multiplied by its base and by itself: what `carried` is made of.

What it is: ``D^T W0`` and ``D^T D`` of the tall view in one pass. An update by reinforcement learning leaves most
bfloat16 weights as they were, so where D is mostly zeros only its nonzeros are multiplied: 5 % of them take .18 s of
one core for 8960 x 1536 where whole products take .45 s (*ours*, measured). What it is not: another result. Both ways
round a sum about as often, and a zero adds nothing.
"""

import numpy as np
import torch
from torch import Tensor

from offprincipal.measures import _sparse_pass
from offprincipal.measures._gram import add_lower
from offprincipal.measures._slices import slices
from offprincipal.measures.delta import Products, quick

DEPTH = 128
"""Terms that float32 products add at a time: half the error of long sums at the same speed."""

SPARSE = 1 / 6
"""Share of nonzeros of a slice up to which they are multiplied one by one (*ours*: even at .18 to .22, measured)."""

CACHED = 400_000
"""Entries of the base that stay near the core while each column of the step picks its rows among them (*ours*)."""


def step_products(
    before: Tensor, after: Tensor, *, holes: Tensor | None = None, device: str | torch.device = "cpu"
) -> Products:
    """``D^T W0`` and the lower triangle of ``D^T D`` of a pair, in one pass. Without `holes`, entries must be finite.

    Peak memory: a slice of either side beside the results.

    >>> step_products(torch.eye(2), torch.eye(2) * 3).cross.tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    n, single = min(before.shape), torch.float32
    cross = torch.zeros(n, n, dtype=single, device=device)
    square = torch.zeros(n, n, dtype=single if quick(before, after) else torch.float64, device=device)
    sides = [slices(each, device=device, holes=holes, dtype=single) for each in (before, after)]
    for (start, stop, rows), (_, _, step) in zip(*sides, strict=True):
        step -= rows
        if cross.device.type == "cpu" and int(step.count_nonzero()) <= SPARSE * step.numel():
            _add_sparse(step, rows, cross, square)
            continue
        for top in range(0, stop - start, DEPTH):
            cross.addmm_(step[top : top + DEPTH].T, rows[top : top + DEPTH])
        own = step.to(square.dtype)
        add_lower(square, own, own)
    return Products(square.tril_(), cross)


def _add_sparse(step: Tensor, rows: Tensor, cross: Tensor, square: Tensor) -> None:
    """The same sums, a few rows at a time."""
    n = step.shape[1]
    height = max(16, CACHED // n)
    starts, places, values = np.empty(n + 1, np.int32), np.empty(height * n, np.int32), np.empty(0)
    for top in range(0, step.shape[0], height):
        part, base = (each[top : top + height].contiguous() for each in (step, rows))
        for total, dense, lower in ((cross, base, False), (square, part, True)):
            into, own, other = (each.to(total.dtype).numpy() for each in (total, part, dense))
            if not lower or into.dtype != values.dtype:
                values = np.empty(own.size, own.dtype)
                _sparse_pass.columns(own, starts, places, values)
            _sparse_pass.add_products(starts, places, values, other, lower, into)
