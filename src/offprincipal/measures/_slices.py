"""A matrix or a difference of two, read in float64 a few rows of its long side at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

SLICE_ENTRIES = 1 << 20
"""Entries per float64 slice (8 MiB): above it every slice is fresh memory from the kernel, and page faults show."""

SLICE_ROWS = 256
"""Rows that a slice has at least: fewer starve the matrix product."""

NARROW = (torch.float8_e4m3fn, torch.float8_e5m2)
"""Types that torch cannot test for NaN or subtract; they are exact in float32."""


def tall(weight: Tensor) -> Tensor:
    """A view with the long side first: ``weight`` itself when out >= in, else its transpose."""
    return weight if weight.shape[0] >= weight.shape[1] else weight.T


def widened(part: Tensor, device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """A slice in float64 (exact for every stored floating type) or `dtype` on the device."""
    part = part.to(device)
    return (part.to(torch.float32) if part.dtype in NARROW else part).to(dtype)


def slices(
    weight: Tensor,
    minus: Tensor | None = None,
    *,
    device: str | torch.device = "cpu",
    holes: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Iterator[tuple[int, int, Tensor]]:
    """Rows ``start..stop`` of the tall view in float64 or `dtype`, of ``weight`` or of ``weight - minus``.

    ``holes`` (bool, the shape of ``weight``) marks entries that read as zero: nonfinite ones, measured around.
    """
    device = torch.device(device)
    left, right = tall(weight), None if minus is None else tall(minus)
    gaps = None if holes is None else tall(holes)
    rows = max(SLICE_ROWS, SLICE_ENTRIES // max(1, left.shape[1]))
    for start in range(0, left.shape[0], rows):
        stop = min(start + rows, left.shape[0])
        part = widened(left[start:stop], device, dtype)
        if right is not None:
            part = part - widened(right[start:stop], device, dtype)
        if gaps is not None:
            part = part.masked_fill(gaps[start:stop].to(device), 0.0)
        yield start, stop, part
