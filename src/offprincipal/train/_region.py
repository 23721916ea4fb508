"""The allowed entries of one parameter, as bits: what is packed, in which order, and where a block of it starts.

Packed order is flat order. One bit per parameter, bit ``i % 8`` of byte ``i // 8``, and one int64 per `BLOCK` entries.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor

BLOCK = 512
"""Entries per block: weights, gradient and their packed copies take 8 kB, so a block stays in the L1 cache."""

CHUNK = BLOCK << 13
"""Entries that torch unpacks at once (4 M): bounds the memory of everything that is not compiled."""


@dataclass(frozen=True)
class Region:
    """The allowed entries of the part of a parameter that this process holds.

    Attributes:
        entries: of this part.
        ones: allowed entries of this part.
        bits: uint8 ``[ceil(entries / 8)]`` on the parameter's device; None where every entry is allowed.
        starts: int64 ``[blocks + 1]``: allowed entries before each block; None beside no bits.
        ends: allowed entries of the whole parameter up to the end of each rank's part; one rank where nothing is
            sharded.
        rank: which of those parts this is.
        fingerprint: of the whole mask, signed 64 bits; equal masks, equal number.
    """

    entries: int
    ones: int
    bits: Tensor | None
    starts: Tensor | None
    ends: tuple[int, ...]
    rank: int
    fingerprint: int

    @property
    def total(self) -> int:
        """Allowed entries of the whole parameter."""
        return self.ends[-1]

    @property
    def offset(self) -> int:
        """Allowed entries of the whole parameter before this part."""
        return self.ends[self.rank - 1] if self.rank else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the packed mask."""
        return sum(t.nbytes for t in (self.bits, self.starts) if t is not None)

    def chunks(self) -> Iterator[tuple[slice, slice, Tensor | None]]:
        """Slices of the flat part and of its packed values, and the mask between them (None: all allowed)."""
        for first in range(0, self.entries, CHUNK):
            last = min(first + CHUNK, self.entries)
            if self.bits is None or self.starts is None:
                yield slice(first, last), slice(first, last), None
                continue
            mask = unpack(self.bits[first // 8 : (last + 7) // 8], last - first)
            start, stop = (int(self.starts[-(-i // BLOCK)]) for i in (first, last))
            yield slice(first, last), slice(start, stop), mask


def unpack(bits: Tensor, entries: int) -> Tensor:
    """Packed bits (uint8) to booleans ``[entries]``, on their device.

    >>> unpack(torch.tensor([5], dtype=torch.uint8), 3).tolist()
    [True, False, True]
    """
    lanes = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, None] >> lanes) & 1).view(torch.bool).reshape(-1)[:entries]


def whole(entries: int, parts: tuple[int, ...], rank: int, fingerprint: int = 0) -> Region:
    """The region in which everything is allowed; `parts` are the entries up to the end of each rank's part.

    >>> whole(6, (6,), 0).total
    6
    """
    return Region(entries, entries, None, None, parts, rank, fingerprint)


def region(mask: Tensor, ends: tuple[int, ...], rank: int, device: torch.device) -> Region:
    """Pack a mask, or the part of it that `rank` holds.

    Args:
        mask: bool, the whole parameter's, on the CPU.
        ends: flat entries of the parameter up to the end of each rank's part.
        rank: whose part.
        device: where the packed mask shall lie.

    >>> region(torch.tensor([True, False, True]), (3,), 0, torch.device("cpu")).ones
    2
    """
    flat = mask.contiguous().view(torch.uint8).numpy().reshape(-1)
    firsts = (0, *ends[:-1])
    counts = [int(np.count_nonzero(flat[i:j])) for i, j in zip(firsts, ends, strict=True)]
    until = tuple(np.cumsum(counts).tolist())
    packed = np.packbits(flat, bitorder="little")
    fingerprint = int(np.uint64(xxhash.xxh3_64_intdigest(packed.tobytes() + str(flat.size).encode())).astype(np.int64))
    mine = flat[firsts[rank] : ends[rank]]
    if until[-1] == flat.size:
        return Region(mine.size, mine.size, None, None, until, rank, fingerprint)
    bits = torch.from_numpy(np.packbits(mine, bitorder="little")).to(device)
    inside = (
        np.add.reduceat(mine, np.arange(0, mine.size, BLOCK), dtype=np.int64) if mine.size else np.zeros(0, np.int64)
    )
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(inside)])).to(device)
    return Region(mine.size, int(mine.sum(dtype=np.int64)), bits, starts, until, rank, fingerprint)
