"""How far several runs agree about which weights to change, and what chance and magnitude alone would give.

What it is: `Consensus` takes the update masks of any number of runs of *one* tensor, one mask at a time, and keeps
counts and packed bits (n/8 bytes per run); `Agreement` is the frozen result: pairwise overlap, how often each weight
changed, stripes. What it is not: a measure across tensors; divide the sums of the rows for that.

The matched null (N-magnitude): in each run, independently, the changes of a magnitude code of the base fall anywhere
among the entries of that code. Expected counts under it are exact.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from offprincipal.errors import InputError
from offprincipal.measures import _consensus_pass, _mask_pass, seeds
from offprincipal.measures._agreement import Agreement, RunPair
from offprincipal.measures.bits import MAGNITUDE_CODES
from offprincipal.measures.nulls import magnitude
from offprincipal.measures.stripes import Heads, head_split, stripes

__all__ = ["Agreement", "Consensus", "RunPair"]

SLAB = 512
"""Columns that are turned into rows at a time, which bounds the copy."""


class Consensus:
    """Counts the update masks of one tensor, one run at a time; any number of runs.

    Keeps the base's magnitude codes (2 bytes per entry) and one bit per entry and run. A tensor of one axis counts as
    one column.

    Args:
        codes: magnitude codes of the base, 0..32767 (`bits.magnitude_code`); the same for all runs.

    >>> codes = torch.tensor([[5, 5], [5, 5]])
    >>> both = Consensus(codes).update(codes.new_tensor([[1, 1], [0, 0]]).bool())
    >>> both.update(codes.new_tensor([[1, 0], [0, 0]]).bool()).result().pairs[0].jaccard
    0.5
    """

    def __init__(self, codes: Int[Tensor, "..."]):
        self.shape = tuple(codes.shape)
        flat = codes.reshape(codes.shape[0], math.prod(codes.shape[1:])) if codes.ndim else codes.reshape(1, 1)
        self.codes = flat.to(torch.int16).cpu().numpy().view(np.uint16)
        self.total = np.zeros(MAGNITUDE_CODES, np.int64)
        _mask_pass.count_codes(self.codes.reshape(-1), self.total)
        self.packed: list[np.ndarray] = []
        self.per_code: list[np.ndarray] = []
        self.per_row: list[np.ndarray] = []
        self.per_column: list[np.ndarray] = []

    def update(self, mask: Bool[Tensor, "..."]) -> "Consensus":
        """Add the next run: where it changed the tensor.

        Raises:
            InputError: the mask has another shape than the tensor.
        """
        if tuple(mask.shape) != self.shape:
            found = f"its mask is {tuple(mask.shape)} and the tensor is {self.shape}"
            raise InputError(f"add run {len(self.packed)} to a consensus", found, "compare runs of one base")
        ones = mask.reshape(self.codes.shape).contiguous().cpu().numpy().view(np.uint8)
        height, width = ones.shape
        changed, rows, columns = (np.zeros(size, np.int64) for size in (MAGNITUDE_CODES, height, width))
        _consensus_pass.count_run(ones, self.codes, changed, rows, columns)
        bits = np.packbits(ones.reshape(-1), bitorder="little")
        self.packed.append(np.pad(bits, (0, -len(bits) % 8)))
        self.per_code.append(changed)
        self.per_row.append(rows)
        self.per_column.append(columns)
        return self

    def merge(self, other: "Consensus") -> "Consensus":
        """Add the runs that another consensus of the same tensor has counted.

        Raises:
            InputError: the other one counted another tensor.
        """
        if self.shape != other.shape or not np.array_equal(self.codes, other.codes):
            found = "they were counted on different base weights"
            raise InputError("merge two consensus counts", found, "merge runs of one tensor of one base")
        self.packed += other.packed
        self.per_code += other.per_code
        self.per_row += other.per_row
        self.per_column += other.per_column
        return self

    def result(
        self, *, heads: int | None = None, head_axis: int | None = None, seed: int = 0, name: str = ""
    ) -> Agreement:
        """The frozen result of all runs so far.

        Args:
            heads: attention heads, consecutive along `head_axis`, where they are known.
            head_axis: 0 for queries, keys and values, 1 for the output projection.
            seed: of the simulated nulls, hashed with `name`.
            name: the tensor's name.

        Raises:
            InputError: no run was added, or the heads do not divide the axis.
        """
        if not self.packed:
            raise InputError(f"summarise the consensus of {name!r}", "no run was added", "add one mask or more")
        times = np.zeros(len(self.packed) + 1, np.int64)
        _consensus_pass.times_changed(np.stack(self.packed), self.codes.size, times)
        rows, columns = np.stack(self.per_row), np.stack(self.per_column)
        row_moments, column_moments = self._moments(self.codes), self._moments(self.codes.T)
        flat = len(self.shape) < 2 or min(self.codes.shape) < 2
        axes = []
        for axis, counts, moments in (("rows", rows, row_moments), ("columns", columns, column_moments)):
            generator = seeds.numpy_generator(seed, name, "consensus", axis)
            width = self.codes.size // max(counts.shape[1], 1)
            found = (torch.from_numpy(counts), width, *moments, torch.from_numpy(times), generator)
            axes.append(None if flat else stripes(*found))
        return Agreement(
            runs=len(self.packed),
            counted=self.codes.size,
            changed=tuple(int(changed.sum()) for changed in self.per_code),
            pairs=tuple(self._pairs()),
            times=torch.from_numpy(times),
            times_matched=self._times_matched(),
            row_counts=torch.from_numpy(rows),
            col_counts=torch.from_numpy(columns),
            row_matched=row_moments[0].sum(dim=0),
            col_matched=column_moments[0].sum(dim=0),
            rows=axes[0],
            columns=axes[1],
            heads=self._heads(heads, head_axis, (rows, columns), (row_moments, column_moments), times, name),
        )

    def _pairs(self) -> Iterator[RunPair]:
        total = torch.from_numpy(self.total)
        each = [magnitude(total, torch.from_numpy(changed)) for changed in self.per_code]
        for right in range(len(self.packed)):
            for left in range(right):
                a, b = self.per_code[left], self.per_code[right]
                expected, variance = each[left].overlap(torch.from_numpy(b))
                words = self.packed[left].view(np.uint64), self.packed[right].view(np.uint64)
                both = int(_consensus_pass.common_bits(*words))
                size_a, size_b, counted = int(a.sum()), int(b.sum()), self.codes.size
                chance = size_a * size_b / max(counted, 1)
                yield RunPair(left, right, counted, size_a, size_b, both, chance, expected, variance)

    def _shares(self) -> np.ndarray:
        """float64 [32768, R], the share of each code's entries that each run changed."""
        return np.ascontiguousarray(np.stack(self.per_code, axis=1) / np.maximum(self.total, 1)[:, None])

    def _times_matched(self) -> Float[Tensor, " times"]:
        """Per code the number of runs that change an entry is a sum of independent coins; the codes add up."""
        used = self.total > 0
        chance = np.zeros((int(used.sum()), len(self.packed) + 1))
        chance[:, 0] = 1.0
        for share in self._shares()[used].T:
            chance[:, 1:] = chance[:, 1:] * (1 - share)[:, None] + chance[:, :-1] * share[:, None]
            chance[:, 0] *= 1 - share
        return torch.from_numpy((self.total[used][:, None] * chance).sum(axis=0))

    def _moments(self, lines: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and variance of the lines' counts per run under the matched null, float64 [R, L]."""
        share = self._shares()
        weight = share * (1 - share) / np.maximum(self.total - 1, 1)[:, None]
        mean, variance = np.zeros((2, share.shape[1], len(lines)))
        for start in range(0, len(lines), SLAB):
            part = slice(start, start + SLAB)
            block = np.ascontiguousarray(lines[part])
            _consensus_pass.line_moments(block, share, weight, self.total, mean[:, part], variance[:, part])
        return torch.from_numpy(mean), torch.from_numpy(variance)

    def _heads(
        self,
        heads: int | None,
        axis: int | None,
        counts: tuple[np.ndarray, np.ndarray],
        moments: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
        times: np.ndarray,
        name: str,
    ) -> Heads | None:
        if heads is None or axis is None or len(self.shape) != 2:
            return None
        lines = self.codes if axis == 0 else self.codes.T
        if heads < 1 or len(lines) % heads:
            found = f"axis {axis} has {len(lines)} lines and there are {heads} heads"
            raise InputError(f"split {name!r} into heads", found, "look at the configuration of the model")
        of_heads = self._moments(lines.reshape(heads, -1))
        width = lines.shape[1]
        return head_split(torch.from_numpy(counts[axis]), width, moments[axis], of_heads, torch.from_numpy(times))
