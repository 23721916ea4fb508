"""One mask as it lies in a file: bits, or a list of positions where few are set. The dtype says which.

Bits are ``numpy.packbits(mask, bitorder="little")``: entry i (row after row) is bit ``i % 8`` of byte ``i // 8``, and
what is left of the last byte is zero. Positions are flat indices, rising, int32, int64 where 2^31 is not enough.
"""

import numpy as np
import torch
from torch import Tensor

SPARSE = 0.03
"""Density below which int32 positions are kept: at 1/32 they take as much as bits. Half of it for int64."""


def pack(mask: Tensor) -> Tensor:
    """A boolean mask of any shape as flat uint8 bits, or as int32 or int64 positions where that is smaller.

    >>> pack(torch.tensor([True, False, True])), pack(torch.arange(100) == 7)
    (tensor([5], dtype=torch.uint8), tensor([7], dtype=torch.int32))
    """
    flat = mask.cpu().contiguous().view(-1).numpy()
    wide = flat.size > 1 << 31
    ones = int(np.count_nonzero(flat))
    if ones < (SPARSE / 2 if wide else SPARSE) * flat.size:
        positions = torch.empty(ones, dtype=torch.int64 if wide else torch.int32)
        positions.numpy()[:] = np.flatnonzero(flat)
        return positions
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def unpack(stored: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean mask of this shape; inverse of `pack`.

    Raises:
        ValueError: positions outside the shape or not rising, bits beyond its end, or too few or too many of them.

    >>> unpack(torch.tensor([5], dtype=torch.uint8), (3,)).tolist()
    [True, False, True]
    """
    entries = int(np.prod(shape, dtype=np.int64))
    values = stored.numpy()
    if stored.dtype != torch.uint8:
        if values.size and (values[0] < 0 or values[-1] >= entries or (np.diff(values) <= 0).any()):
            raise ValueError(f"its positions do not rise within its {entries:,} entries")
        mask = np.zeros(entries, np.bool_)
        mask[values] = True
        return torch.from_numpy(mask).reshape(shape)
    if values.size != -(-entries // 8):
        raise ValueError(f"it has {values.size:,} bytes of bits for {entries:,} entries")
    if entries % 8 and values[-1] >> (entries % 8):
        raise ValueError("bits are set beyond its last entry")
    bits = np.unpackbits(values, count=entries, bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).reshape(shape)
