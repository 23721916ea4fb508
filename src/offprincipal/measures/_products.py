"""A step multiplied by its base and by itself: what `carried` is made of.

What it is: ``D^T W0`` and ``D^T D`` of the tall view. An update by reinforcement learning leaves most bfloat16 weights
as they were, so where D is mostly zeros only its nonzeros are multiplied, and read from the codes: 5 % of them take
.14 s of one core for 8960 x 1536 and 20 % .26 s, where whole products take .48 s (*ours*, measured). What it is not:
another result. Both ways add a hundred terms at a time, and a zero adds nothing.
"""

import numpy as np
import torch
from torch import Tensor

from offprincipal.measures import _sparse_pass
from offprincipal.measures._gram import add_lower
from offprincipal.measures._slices import slices, tall
from offprincipal.measures.bits import flat_codes
from offprincipal.measures.delta import Products, quick

DEPTH = 128
"""Terms that float32 products add at a time: half the error of long sums at the same speed."""

SPARSE = 0.4
"""Share of nonzeros up to which they are multiplied one by one (*ours*: even at .4 to .5, measured)."""


def step_products(
    before: Tensor, after: Tensor, *, holes: Tensor | None = None, device: str | torch.device = "cpu"
) -> Products:
    """``D^T W0`` and the lower triangle of ``D^T D`` of a pair. Without `holes`, entries must be finite.

    Peak memory beside the results: a slice of either side, or 9 to 13 bytes for each nonzero.

    >>> step_products(torch.eye(2), torch.eye(2) * 3).cross.tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    n, single = min(before.shape), torch.float32
    cross = torch.zeros(n, n, dtype=single, device=device)
    square = torch.zeros(n, n, dtype=single if quick(before, after) else torch.float64, device=device)
    if not (cross.device.type == "cpu" and holes is None and _add_sparse(before, after, cross, square)):
        _add_whole(before, after, holes, cross, square)
    return Products(square.tril_(), cross)


def _add_whole(before: Tensor, after: Tensor, holes: Tensor | None, cross: Tensor, square: Tensor) -> None:
    sides = [slices(each, device=cross.device, holes=holes, dtype=cross.dtype) for each in (before, after)]
    for (start, stop, rows), (_, _, step) in zip(*sides, strict=True):
        step -= rows
        for top in range(0, stop - start, DEPTH):
            cross.addmm_(step[top : top + DEPTH].T, rows[top : top + DEPTH])
        own = step.to(square.dtype)
        add_lower(square, own, own)


def _add_sparse(before: Tensor, after: Tensor, cross: Tensor, square: Tensor) -> bool:
    """The same sums from the weights that changed, read from their codes; False where they are many, or wider."""
    if not before.dtype == after.dtype == torch.bfloat16:
        return False
    first, second = (flat_codes(each).reshape(each.shape) for each in (before, after))
    lying = tall(before) is not before
    starts = np.empty((-(-max(before.shape) // _sparse_pass.HEIGHT), min(before.shape) + 1), np.int64)
    found = _sparse_pass.count(first, second, lying, starts)
    if found > SPARSE * before.numel():
        return False
    places, old, new = np.empty(found, np.uint8), np.empty(found, np.uint32), np.empty(found, np.uint32)
    _sparse_pass.columns(first, second, lying, starts, places, old, new)
    values = new.view(np.float32)
    values -= old.view(np.float32)
    del old
    _sparse_pass.add_cross(starts, places, values, first, lying, cross.numpy())
    own = square.numpy()
    _sparse_pass.add_square(starts, places, values.astype(own.dtype, copy=False), own)
    return True
