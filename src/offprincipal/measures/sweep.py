"""One fused pass over a pair of tensors: every count of DEFINITIONS 1 at once.

What it is: base and tuned in, one `Sweep` out, exact integers whatever the device or the number of threads. On the
CPU bfloat16 goes through a compiled pass; every other dtype, and every other device, through torch, slice by slice.
What it is not: anything that needs a factorisation (``spectrum``, ``masks``), or several tuned sides.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from offprincipal.measures import _bf16_pass, bits
from offprincipal.measures._bf16_pass import ULP_EDGES
from offprincipal.measures.bits import flat_codes

BLOCK = 1 << 20
"""Weights per block: floating sums are taken per block and added in order, so threads never change a bit."""


@dataclass(frozen=True)
class Sweep:
    """What one pass over a pair counted. Counts are exact; sums are float64 over the finite entries.

    Attributes:
        counted: entries compared, the nonfinite ones included.
        changed: entries whose bfloat16 codes differ, +0 equal to -0 (PNT Definition 2.1).
        changed_bitwise: as `changed`, signed zeros told apart.
        changed_native: entries that differ in the stored dtype (see `bits.changed_native`).
        changed_atol: entries with ``|D| > 1e-5`` subtracted in the stored dtype (arXiv 2505.11711).
        nonfinite_base: NaN and infinite entries of the base.
        nonfinite_tuned: the same of the tuned side.
        base_sq: sum of squares of the base.
        delta_sq: sum of squares of D.
        delta_abs_sum: sum of ``|D|``.
        delta_abs_max: largest ``|D|`` (to float32 precision where two exponents differ by more than 16).
        row_changed: int64 [rows], changed per row.
        col_changed: int64 [columns], changed per column.
        code_total: int64 [32768], entries per magnitude code of the base.
        code_changed: int64 [32768], changed entries per magnitude code of the base.
        ulps: int64 [7], entries that moved by at least 1, 2, 4, 8, 16, 32 and 64 bfloat16 values.
    """

    counted: int
    changed: int
    changed_bitwise: int
    changed_native: int
    changed_atol: int
    nonfinite_base: int
    nonfinite_tuned: int
    base_sq: float
    delta_sq: float
    delta_abs_sum: float
    delta_abs_max: float
    row_changed: Int[Tensor, " rows"]
    col_changed: Int[Tensor, " columns"]
    code_total: Int[Tensor, " codes"]
    code_changed: Int[Tensor, " codes"]
    ulps: Int[Tensor, " edges"]


def sweep(before: Shaped[Tensor, "..."], after: Shaped[Tensor, "..."]) -> Sweep:
    """Count everything that one pass over a pair can count.

    Args:
        before: the base, 1-D or 2-D ``[out, in]``, any floating dtype; a vector counts as one row.
        after: the tuned side, same shape and device, any floating dtype.

    Returns:
        The counts and sums. D is subtracted in float64 from the stored values.

    Raises:
        ValueError: the shapes differ, or there are more than two axes.

    Source: DEFINITIONS follow PNT Definition 2.1 and arXiv 2505.11711; the fused pass is ours. Left out on purpose:
    quantiles and sorting, because the histogram over the 32,768 magnitude codes already holds every one of them.

    >>> import torch
    >>> s = sweep(torch.tensor([1.0, 2.0, 0.0]).bfloat16(), torch.tensor([1.0, 2.5, -0.0]).bfloat16())
    >>> s.counted, s.changed, s.changed_bitwise, s.delta_sq, s.ulps.tolist()
    (3, 1, 2, 0.25, [1, 1, 1, 1, 1, 1, 0])
    """
    if before.shape != after.shape or before.ndim not in (1, 2):
        raise ValueError(
            f"sweep needs two tensors of one shape with 1 or 2 axes, not {before.shape} and {after.shape}"
        )
    left, right = (t.reshape(1, -1) if t.ndim == 1 else t for t in (before, after))
    rows = max(1, BLOCK // max(1, left.shape[1]))
    compiled = left.device.type == "cpu" and left.dtype == right.dtype == torch.bfloat16
    counted = _compiled_pass(left, right, rows) if compiled else _torch_pass(left, right, rows)
    if counted["delta_abs_max"] == float("inf"):  # the compiled pass takes the largest in float32
        counted["delta_abs_max"] = _torch_pass(left, right, rows)["delta_abs_max"]
    codes = bits.value(torch.arange(bits.FIRST_NONFINITE_CODE))
    if left.dtype == torch.bfloat16:  # the histogram holds the base exactly
        base_sq = float((counted["code_total"][: bits.FIRST_NONFINITE_CODE] * codes.square()).sum())
        counted["base_sq"] = base_sq
    return Sweep(counted=left.numel(), **counted)


def _compiled_pass(left: Tensor, right: Tensor, rows: int) -> dict:
    """The numba pass over row ranges, one thread each; integers add up, sums keep their blocks."""
    before, after = (flat_codes(t).reshape(t.shape) for t in (left, right))
    height, width = before.shape
    blocks = -(-height // rows) if height else 0
    # at most 2^31 weights a task, so that 32-bit counters cannot overflow
    tasks = max(min(torch.get_num_threads(), blocks), -(-left.numel() // (1 << 31)), 1)
    edges = [rows * (blocks * i // tasks) for i in range(tasks)] + [height]
    row_changed, sums = np.zeros(height, np.int64), np.zeros((blocks, 3))

    def one(start: int, stop: int) -> tuple[np.ndarray, ...]:
        histogram, columns = np.zeros(65536, np.uint32), np.zeros(width, np.uint32)
        ulps, counts = np.zeros(ULP_EDGES.size, np.int64), np.zeros(4, np.int64)
        _bf16_pass.bf16_rows(
            before[start:stop], after[start:stop], rows, histogram, ulps, columns,
            row_changed[start:stop], sums[start // rows :], counts,
        )  # fmt: skip
        return histogram.astype(np.int64), columns.astype(np.int64), ulps, counts

    spans = list(pairwise(edges))
    if len(spans) == 1:
        parts = [one(*spans[0])]
    else:
        with ThreadPoolExecutor(len(spans)) as threads:
            parts = list(threads.map(lambda span: one(*span), spans))
    histogram, columns, ulps, counts = (reduce(add, each) for each in zip(*parts, strict=True))
    changed = int(row_changed.sum())
    squares, absolutes = (reduce(add, sums[:, i].tolist(), 0.0) for i in (0, 1))
    return {
        "changed": changed,
        "changed_bitwise": changed + int(counts[0]),
        "changed_native": changed,
        "changed_atol": int(counts[3]),
        "nonfinite_base": int(counts[1]),
        "nonfinite_tuned": int(counts[2]),
        "delta_sq": squares,
        "delta_abs_sum": absolutes,
        "delta_abs_max": float(sums[:, 2].max(initial=0.0)),
        "row_changed": torch.from_numpy(row_changed),
        "col_changed": torch.from_numpy(columns),
        "code_total": torch.from_numpy(histogram[:32768] + histogram[32768:]),
        "code_changed": torch.from_numpy(histogram[32768:]),
        "ulps": torch.from_numpy(ulps),
    }


def _torch_pass(left: Tensor, right: Tensor, rows: int) -> dict:
    """The same counts by torch, one slice of rows at a time, for any dtype and device."""
    parts = [_torch_slice(left[i : i + rows], right[i : i + rows]) for i in range(0, max(left.shape[0], 1), rows)]
    merged = reduce(_merge, parts)
    return {k: v.item() if isinstance(v, Tensor) and v.ndim == 0 else v for k, v in merged.items()}


def _merge(total: dict, part: dict) -> dict:
    merged = {k: total[k] + part[k] for k in part if k not in ("row_changed", "delta_abs_max")}
    merged["row_changed"] = torch.cat([total["row_changed"], part["row_changed"]])
    merged["delta_abs_max"] = torch.maximum(total["delta_abs_max"], part["delta_abs_max"])
    return merged


def _torch_slice(left: Tensor, right: Tensor) -> dict:
    changed, code = bits.changed(left, right), bits.magnitude_code(left)
    finite = torch.isfinite(left.to(torch.float32)) & torch.isfinite(right.to(torch.float32))
    base = torch.where(torch.isfinite(left.to(torch.float32)), left, torch.zeros_like(left)).to(torch.float64)
    delta = torch.where(finite, right.to(torch.float64) - left.to(torch.float64), 0.0)
    gap = ulp_gap(left, right)
    cells = torch.bincount((code + changed * bits.MAGNITUDE_CODES).flatten(), minlength=2 * bits.MAGNITUDE_CODES)
    result = {
        "changed": changed.sum(),
        "changed_bitwise": bits.changed_bitwise(left, right).sum(),
        "changed_native": bits.changed_native(left, right).sum(),
        "changed_atol": bits.changed_atol(left, right).sum(),
        "nonfinite_base": (~torch.isfinite(left.to(torch.float32))).sum(),
        "nonfinite_tuned": (~torch.isfinite(right.to(torch.float32))).sum(),
        "base_sq": _steady_sum(base.square()),
        "delta_sq": _steady_sum(delta.square()),
        "delta_abs_sum": _steady_sum(delta.abs()),
        "delta_abs_max": delta.abs().max() if delta.numel() else delta.new_zeros(()),
        "row_changed": changed.sum(dim=1),
        "col_changed": changed.sum(dim=0),
        "code_total": cells[: bits.MAGNITUDE_CODES] + cells[bits.MAGNITUDE_CODES :],
        "code_changed": cells[bits.MAGNITUDE_CODES :],
        "ulps": torch.stack([(gap >= int(edge)).sum() for edge in ULP_EDGES]),
    }
    return {key: tensor.cpu() for key, tensor in result.items()}


def _steady_sum(values: Tensor) -> Tensor:
    """Pairwise summation by numpy on the CPU: torch's sum depends on the number of threads in the last bits."""
    return torch.tensor(np.sum(values.numpy())) if values.device.type == "cpu" else values.sum()


def ulp_gap(before: Shaped[Tensor, "*shape"], after: Shaped[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """How many bfloat16 values lie between before and after (int32); zero for +0 against -0.

    Both sides are rounded to bfloat16. Codes subtract on one side of zero and add across it.

    >>> ulp_gap(torch.tensor([1.0, 0.0]), torch.tensor([1.0078125, -0.0])).tolist()
    [1, 0]
    """
    ordered = [
        torch.where(bits.code(t) > 0x7FFF, -bits.magnitude_code(t), bits.magnitude_code(t)) for t in (before, after)
    ]
    return (ordered[1] - ordered[0]).abs()


def low_changed(
    before: Shaped[Tensor, "..."], after: Shaped[Tensor, "..."], counts: Sweep, ones: Sequence[int]
) -> list[int]:
    """How many changed entries lie among the `ones[i]` smallest magnitudes, for each i.

    Args:
        before: the base, any shape and floating dtype (rounded to bfloat16).
        after: the tuned side, same shape.
        counts: the sweep of this pair; all but one code per mask is read off its histogram.
        ones: sizes of the masks.

    Returns:
        One exact count per mask. The mask takes magnitudes by code, then by flat index (DEFINITIONS section 2), so
        only the code in which it ends needs a second look at the weights.

    >>> import torch
    >>> w, v = torch.tensor([1.0, 2.0, 1.0]).bfloat16(), torch.tensor([1.0, 3.0, 3.0]).bfloat16()
    >>> low_changed(w, v, sweep(w, v), [1, 2, 3])
    [0, 1, 2]
    """
    reached = torch.cumsum(counts.code_total, 0)
    changed_below = torch.cumsum(counts.code_changed, 0) - counts.code_changed
    last = torch.searchsorted(reached, torch.tensor(list(ones)).clamp(min=1)).clamp(max=bits.MAGNITUDE_CODES - 1)
    quota = torch.tensor(list(ones)) - (reached - counts.code_total)[last]
    whole = quota >= counts.code_total[last]
    partial = torch.where(whole, counts.code_changed[last], 0)
    ends = (~whole & (quota > 0)).nonzero().flatten()
    if len(ends):
        partial[ends] = torch.tensor(_first_changed(before, after, last[ends].numpy(), quota[ends].tolist()))
    return (changed_below[last] + partial).tolist()


def _first_changed(before: Tensor, after: Tensor, codes: np.ndarray, quotas: Sequence[int]) -> list[int]:
    """Changed entries among the first `quotas[i]` entries, in flat order, of magnitude code `codes[i]`.

    One pass counts every code per block by vector code; only the block in which a quota ends is walked entry by entry.
    """
    left, right, size = before.reshape(-1), after.reshape(-1), _bf16_pass.BLOCK
    wanted = codes.astype(np.uint16)
    blocks = -(-left.numel() // size)
    total, moved = (np.zeros((blocks, len(wanted)), np.int64) for _ in range(2))

    def part(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return flat_codes(left[start:stop]), flat_codes(right[start:stop])

    def count(start: int) -> None:
        at = slice(start // size, (start + BLOCK) // size)
        _bf16_pass.tally_codes(*part(start, start + BLOCK), wanted, total[at], moved[at])

    starts = range(0, left.numel(), BLOCK)
    with ThreadPoolExecutor(torch.get_num_threads()) if len(starts) > 1 else nullcontext() as threads:
        list((threads.map if threads else map)(count, starts))
    reached, changed = total.cumsum(axis=0), moved.cumsum(axis=0)
    found = []
    for i, quota in enumerate(quotas):
        end = int(np.searchsorted(reached[:, i], quota))
        x, y = part(end * size, (end + 1) * size)
        rest = quota - int(reached[end, i] - total[end, i])
        walked = int(_bf16_pass.first_changed(x, y, wanted[i], rest))
        found.append(int(changed[end, i] - moved[end, i]) + walked)
    return found
