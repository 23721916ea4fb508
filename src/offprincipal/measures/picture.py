"""A mask small enough to look at: the share of ones in each cell of a coarse grid. Nothing is thresholded again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

if TYPE_CHECKING:
    from torch import Tensor

CELLS = 64
"""Cells along each axis at most (*ours*): as many as a page shows without moire."""


def grid(shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of cells for a matrix of this shape.

    >>> grid((1536, 40))
    (64, 40)
    """
    return min(CELLS, shape[0]), min(CELLS, shape[1])


def cells(mask: Bool[Tensor, "out in"]) -> Float[np.ndarray, "rows columns"]:
    """Share of ones per cell (float64), cells as equal as can be; a small matrix keeps one cell per entry.

    Averaging is honest where picking every n-th entry is not: stripes and blocks keep their density. Source: ours.

    >>> import torch
    >>> cells(torch.tensor([[True, False], [True, True]])).tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    counted = mask.cpu().numpy()
    sizes = np.ones(counted.shape)
    edges = [np.arange(n) * size // n for n, size in zip(grid(counted.shape), counted.shape, strict=True)]
    for axis in (0, 1):
        counted, sizes = (np.add.reduceat(part, edges[axis], axis=axis, dtype=np.float64) for part in (counted, sizes))
    return counted / sizes
