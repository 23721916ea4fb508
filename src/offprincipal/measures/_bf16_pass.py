"""The compiled bfloat16 pass behind `sweep`: numba loops over one tile at a time.

Each loop does one thing to one-dimensional contiguous arrays, because that is the form LLVM turns into vector code;
the same statements in one nested loop run 3 to 5 times slower. The tile stays in the L1 cache, so that reading it
again costs little. Floating sums go to one lane per tile position, which keeps them elementwise: vector code without
reassociation, hence the same bits for any vector width and any number of threads.
"""

import numpy as np
from numba import njit

TILE = 512
"""Weights per tile: two uint16 inputs, three float32 arrays and two float64 lanes take 18 kB."""

WIDE_TILE = 4096
"""Weights per tile of `tally_codes`: four uint16 arrays take 32 kB."""

BLOCK = 1 << 16
"""Weights per block of `tally_codes`."""

ULP_EDGES = np.array([1, 2, 4, 8, 16, 32, 64], np.uint16)
"""Lower edges of the bins of the change in ulps (*ours*): 1, 2-3, 4-7, ..., 64 and more."""

ATOL_LIMIT = np.float32(167.5 * 2.0**-24)
"""bf16(d) <= 1e-5 exactly when |d| < this: 1e-5 lies between 167 and 168 steps of 2^-24, and the tie goes to 168."""

u16, u32 = np.uint16, np.uint32
_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def _ulp_gaps(x, y, gap):
    """How many bfloat16 values lie between x and y: codes subtract on one side of zero and add across it."""
    for j in range(x.size):
        left, right = u16(x[j] & u16(0x7FFF)), u16(y[j] & u16(0x7FFF))
        high = left if left > right else right
        low = right if left > right else left
        across, along = u16(left + right), u16(high - low)
        gap[j] = across if u16(x[j] ^ y[j]) >= u16(0x8000) else along


@_compiled
def _cells(x, gap, cell):
    """The base's magnitude code, with the freed top bit set where the code changed."""
    for j in range(x.size):
        cell[j] = u16(x[j] & u16(0x7FFF)) | (u16(0x8000) if gap[j] != u16(0) else u16(0))


@_compiled
def _count_changed(gap):
    total = u16(0)  # 16 bits are enough for one tile and keep the vector lanes narrow
    for j in range(gap.size):
        total = u16(total + (u16(1) if gap[j] != u16(0) else u16(0)))
    return total


@_compiled
def _count_ulps(gap, ulps):
    """All edges in one loop, so that each gap is loaded once; the edges are those of `ULP_EDGES`."""
    n2, n4, n8, n16, n32, n64 = u16(0), u16(0), u16(0), u16(0), u16(0), u16(0)
    for j in range(gap.size):
        g = gap[j]
        n2 = u16(n2 + (u16(1) if g >= u16(2) else u16(0)))
        n4 = u16(n4 + (u16(1) if g >= u16(4) else u16(0)))
        n8 = u16(n8 + (u16(1) if g >= u16(8) else u16(0)))
        n16 = u16(n16 + (u16(1) if g >= u16(16) else u16(0)))
        n32 = u16(n32 + (u16(1) if g >= u16(32) else u16(0)))
        n64 = u16(n64 + (u16(1) if g >= u16(64) else u16(0)))
    ulps[1] += n2
    ulps[2] += n4
    ulps[3] += n8
    ulps[4] += n16
    ulps[5] += n32
    ulps[6] += n64


@_compiled
def _count_columns(gap, columns):
    for j in range(gap.size):
        columns[j] = u32(columns[j] + (u32(1) if gap[j] != u16(0) else u32(0)))


@_compiled
def _fill(cell, histogram):
    for j in range(cell.size):
        histogram[cell[j]] += u32(1)


@_compiled
def _flipped_zeros(x, y):
    total = u16(0)
    for j in range(x.size):
        flipped = (u16(x[j] ^ y[j]) == u16(0x8000)) & (u16(x[j] & u16(0x7FFF)) == u16(0))
        total = u16(total + (u16(1) if flipped else u16(0)))
    return total


@_compiled
def _any_nonfinite(x, y):
    largest = u16(0)
    for j in range(x.size):
        left, right = u16(x[j] & u16(0x7FFF)), u16(y[j] & u16(0x7FFF))
        high = left if left > right else right
        largest = high if high > largest else largest
    return largest >= u16(0x7F80)


@_compiled
def _widen(x, bits):
    for j in range(x.size):
        bits[j] = u32(x[j]) << u32(16)


@_compiled
def _distances(left, right, square, absolute):
    for j in range(left.size):
        step = abs(np.float64(right[j]) - np.float64(left[j]))
        square[j] += step * step
        absolute[j] += step


@_compiled
def _steps(left, right, step):
    for j in range(left.size):
        step[j] = abs(right[j] - left[j])


@_compiled
def _largest(step_bits, peak_bits):
    """Bits of floats of one sign are ordered like the floats, and integers have a vector maximum."""
    for j in range(step_bits.size):
        peak_bits[j] = step_bits[j] if step_bits[j] > peak_bits[j] else peak_bits[j]


@_compiled
def _beyond_atol(step):
    total = u16(0)
    for j in range(step.size):
        total = u16(total + (u16(1) if step[j] >= ATOL_LIMIT else u16(0)))
    return total


@_compiled
def _hide_nonfinite(x, y, left_bits, right_bits, counts):
    """Zero both sides of every entry that is not finite; count them, and those beyond the tolerance."""
    for j in range(x.size):
        base_bad = (x[j] & u16(0x7FFF)) >= u16(0x7F80)
        tuned_bad = (y[j] & u16(0x7FFF)) >= u16(0x7F80)
        counts[1] += base_bad
        counts[2] += tuned_bad
        if base_bad or tuned_bad:
            left_bits[j] = u32(0)
            right_bits[j] = u32(0)
            counts[3] += x[j] != y[j]


@_compiled
def bf16_rows(before, after, block_rows, histogram, ulps, columns, rows, sums, counts):
    """One pass over uint16 codes ``[rows, columns]``; every output is added to.

    Args:
        before: uint16 [R, C] codes of the base.
        after: uint16 [R, C] codes of the tuned side.
        block_rows: rows per block of `sums`; fixed by the shape, so that sums do not depend on the threads.
        histogram: uint32 [65536], magnitude code of the base, plus 32768 where the entry changed.
        ulps: int64 [7], entries whose change is at least ``ULP_EDGES`` ulps.
        columns: uint32 [C] changed per column.
        rows: int64 [R] changed per row.
        sums: float64 [blocks, 3] squared and absolute change, and the largest one in float32 (exact unless exponents
            differ by more than 16; infinite where it overflows); finite entries only.
        counts: int64 [4] zeros with flipped signs, nonfinite in base, in tuned, beyond the absolute tolerance.
    """
    height, width = before.shape
    gap, cell = np.empty(TILE, u16), np.empty(TILE, u16)
    left_bits, right_bits, step_bits = np.empty(TILE, u32), np.empty(TILE, u32), np.empty(TILE, u32)
    left, right, step = left_bits.view(np.float32), right_bits.view(np.float32), step_bits.view(np.float32)
    square, absolute, peak_bits = np.zeros(TILE), np.zeros(TILE), np.zeros(TILE, u32)
    for i in range(height):
        for start in range(0, width, TILE):
            n = min(TILE, width - start)
            x, y = before[i, start : start + n], after[i, start : start + n]
            _ulp_gaps(x, y, gap[:n])
            _cells(x, gap[:n], cell[:n])
            _count_columns(gap[:n], columns[start : start + n])
            moved = _count_changed(gap[:n])
            ulps[0] += moved
            if moved:
                _count_ulps(gap[:n], ulps)
            _fill(cell[:n], histogram)
            rows[i] += moved
            counts[0] += _flipped_zeros(x, y)
            nonfinite = _any_nonfinite(x, y)
            if moved == 0 and not nonfinite:
                continue
            _widen(x, left_bits[:n])
            _widen(y, right_bits[:n])
            if nonfinite:
                _hide_nonfinite(x, y, left_bits[:n], right_bits[:n], counts)
            _distances(left[:n], right[:n], square[:n], absolute[:n])
            _steps(left[:n], right[:n], step[:n])
            _largest(step_bits[:n], peak_bits[:n])
            counts[3] += _beyond_atol(step[:n])
        if (i + 1) % block_rows == 0 or i + 1 == height:
            sums[i // block_rows, 0] = square.sum()
            sums[i // block_rows, 1] = absolute.sum()
            sums[i // block_rows, 2] = peak_bits.view(np.float32).max()
            square[:] = 0.0
            absolute[:] = 0.0
            peak_bits[:] = u32(0)


@_compiled
def first_changed(before, after, code, quota):
    """How many of the first `quota` entries of this magnitude code changed (flat uint16 codes)."""
    moved = 0
    for j in range(before.size):
        if quota == 0:
            break
        if u16(before[j] & u16(0x7FFF)) == code:
            quota -= 1
            moved += (before[j] != after[j]) & (u16((before[j] | after[j]) & u16(0x7FFF)) != u16(0))
    return moved


@_compiled
def _tally(code, differs, wanted):
    """How many codes of one tile are the wanted one, and how many of those differ."""
    n, k = u16(0), u16(0)
    for j in range(code.size):
        hit = u16(1) if code[j] == wanted else u16(0)
        n = u16(n + hit)
        k = u16(k + (hit & differs[j]))
    return n, k


@_compiled
def tally_codes(before, after, wanted, total, moved):
    """Per block of `BLOCK` flat uint16 codes and wanted magnitude code: how many, and how many of those changed.

    Args:
        before: uint16 [n] codes of the base.
        after: uint16 [n] codes of the tuned side.
        wanted: uint16 [k] magnitude codes.
        total: int64 [blocks, k], added to.
        moved: int64 [blocks, k], added to.
    """
    code, differs = np.empty(WIDE_TILE, u16), np.empty(WIDE_TILE, u16)
    for start in range(0, before.size, WIDE_TILE):
        x, y = before[start : start + WIDE_TILE], after[start : start + WIDE_TILE]
        n = x.size
        _magnitudes(x, y, code[:n], differs[:n])
        for i in range(wanted.size):
            found, changed = _tally(code[:n], differs[:n], wanted[i])
            total[start // BLOCK, i] += found
            moved[start // BLOCK, i] += changed


@_compiled
def _magnitudes(x, y, code, differs):
    for j in range(x.size):
        code[j] = u16(x[j] & u16(0x7FFF))
        nonzero = u16((x[j] | y[j]) & u16(0x7FFF)) != u16(0)
        differs[j] = u16(1) if (x[j] != y[j]) & nonzero else u16(0)
