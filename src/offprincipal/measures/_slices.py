"""A matrix or a difference of two, read in float64 a few rows of its long side at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

SLICE_ENTRIES = 1 << 22
"""Entries per slice (32 MiB in float64): long ones keep the matrix product busy, and one buffer serves them all."""

SLICE_ROWS = 256
"""Rows that a slice has at least: fewer starve the matrix product."""

NARROW = (torch.float8_e4m3fn, torch.float8_e5m2)
"""Types that torch cannot test for NaN or subtract; they are exact in float32."""


def tall(weight: Tensor) -> Tensor:
    """A view with the long side first: ``weight`` itself when out >= in, else its transpose."""
    return weight if weight.shape[0] >= weight.shape[1] else weight.T


def widened(part: Tensor, device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """A slice in float64 (exact for every stored floating type) or `dtype` on the device."""
    return _plain(part.to(device)).to(dtype)


def slices(
    weight: Tensor,
    minus: Tensor | None = None,
    *,
    device: str | torch.device = "cpu",
    holes: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Iterator[tuple[int, int, Tensor]]:
    """Rows ``start..stop`` of the tall view in float64 or `dtype`, of ``weight`` or of ``weight - minus``.

    ``holes`` (bool, the shape of ``weight``) marks entries that read as zero: nonfinite ones, measured around. A slice
    is overwritten by the next one.
    """
    device = torch.device(device)
    left, right = tall(weight), None if minus is None else tall(minus)
    gaps = None if holes is None else tall(holes)
    rows = min(left.shape[0], max(SLICE_ROWS, SLICE_ENTRIES // max(1, left.shape[1])))
    buffers = [_buffer(left, rows, device, dtype) for _ in range(1 if right is None else 2)]
    for start in range(0, left.shape[0], max(1, rows)):
        stop = min(start + rows, left.shape[0])
        part = buffers[0][: stop - start].copy_(_plain(left[start:stop]))
        if right is not None:
            part -= buffers[1][: stop - start].copy_(_plain(right[start:stop]))
        if gaps is not None:
            part.masked_fill_(gaps[start:stop].to(device), 0.0)
        yield start, stop, part


def _buffer(like: Tensor, rows: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Room for rows of a matrix, laid out as the matrix is, so that filling it transposes nothing."""
    if like.stride(0) < like.stride(1):
        return torch.empty(like.shape[1], rows, dtype=dtype, device=device).T
    return torch.empty(rows, like.shape[1], dtype=dtype, device=device)


def _plain(part: Tensor) -> Tensor:
    return part.to(torch.float32) if part.dtype in NARROW else part
