"""A step multiplied by its base and by itself: what `carried` is made of.

What it is: ``D^T W0`` and ``D^T D`` of the tall view in one pass. An update by reinforcement learning leaves most
bfloat16 weights as they were, so where D is mostly zeros only its nonzeros are multiplied: 5 % of them take .19 s of
one core for 8960 x 1536 and 20 % .32 s, where whole products take .49 s (*ours*, measured). What it is not: another
result. Both ways add a hundred terms at a time, and a zero adds nothing.
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

SPARSE = 1 / 3
"""Share of nonzeros of a slice up to which they are multiplied one by one (*ours*: even at .3 to .42, measured)."""


def step_products(
    before: Tensor, after: Tensor, *, holes: Tensor | None = None, device: str | torch.device = "cpu"
) -> Products:
    """``D^T W0`` and the lower triangle of ``D^T D`` of a pair, in one pass. Without `holes`, entries must be finite.

    Peak memory: a slice of either side, copies of both where the matrix lies, and the nonzeros, beside the results.

    >>> step_products(torch.eye(2), torch.eye(2) * 3).cross.tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    n, single = min(before.shape), torch.float32
    cross = torch.zeros(n, n, dtype=single, device=device)
    square = torch.zeros(n, n, dtype=single if quick(before, after) else torch.float64, device=device)
    sides = [slices(each, device=device, holes=holes, dtype=single) for each in (before, after)]
    for (start, stop, rows), (_, _, step) in zip(*sides, strict=True):
        step -= rows
        found = int(np.count_nonzero(step.numpy())) if step.device.type == "cpu" else step.numel()
        if found <= SPARSE * step.numel():
            _add_sparse(step, rows, found, cross, square)
            continue
        for top in range(0, stop - start, DEPTH):
            cross.addmm_(step[top : top + DEPTH].T, rows[top : top + DEPTH])
        own = step.to(square.dtype)
        add_lower(square, own, own)
    return Products(square.tril_(), cross)


def _add_sparse(step: Tensor, rows: Tensor, found: int, cross: Tensor, square: Tensor) -> None:
    """The same sums, from the `found` nonzeros of the step."""
    own = step.contiguous().numpy()
    starts = np.empty((-(-own.shape[0] // _sparse_pass.HEIGHT), own.shape[1] + 1), np.int32)
    places, values = np.empty(found, np.uint8), np.empty(found, own.dtype)
    _sparse_pass.columns(own, starts, places, values)
    for total, dense, lower in ((cross, rows.contiguous().numpy(), False), (square, own, True)):
        into = total.numpy()
        factor, other = values.astype(into.dtype, copy=False), dense.astype(into.dtype, copy=False)
        _sparse_pass.add_products(starts, places, factor, other, lower, into)
