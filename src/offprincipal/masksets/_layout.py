"""Canonical matrices in and out of a stored tensor in memory: the twin of what ``pairs.Part`` reads from a file."""

import torch
from torch import Tensor

from offprincipal.checkpoint import columns_of, rows_of
from offprincipal.names import Cut


def take(stored: Tensor, cut: Cut) -> Tensor:
    """The canonical matrix out of a stored tensor; a view where it lies in one piece.

    >>> take(torch.arange(6).view(2, 3), Cut(1, 2, transposed=True)).tolist()
    [[1, 4], [2, 5]]
    """
    if cut.transposed:
        return stored.T[cut.start : cut.start + cut.length].contiguous()
    rows = stored.reshape(rows_of(stored.shape), columns_of(stored.shape))
    parts = [rows[start:stop] for start, stop in cut.runs()]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def put(stored: Tensor, cut: Cut, matrix: Tensor) -> None:
    """Write a canonical matrix into its place in a stored tensor.

    >>> whole = torch.zeros(4, 1)
    >>> put(whole, Cut(0, 1, stride=2, count=2), torch.ones(2, 1))
    >>> whole.flatten().tolist()
    [1.0, 0.0, 1.0, 0.0]
    """
    if cut.transposed:
        stored.T[cut.start : cut.start + cut.length] = matrix
        return
    rows = stored.view(rows_of(stored.shape), columns_of(stored.shape))
    for index, (start, stop) in enumerate(cut.runs()):
        rows[start:stop] = matrix[index * cut.length : (index + 1) * cut.length]
