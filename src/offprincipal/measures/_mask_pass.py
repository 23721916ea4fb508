"""The compiled passes behind `masks`: numba loops over flat float64 scores and flat uint16 codes.

A score is sorted into bins by the top bits of its float64 pattern, which are ordered like the magnitudes. One pass
counts the bins, a second gives every entry the level of its bin and sets aside the few entries of the bins in which a
threshold falls; only those are ever compared as numbers.
"""

import numpy as np
from numba import njit

MAGNITUDE, SHIFT = np.uint64(0x7FFFFFFFFFFFFFFF), np.uint64(45)
"""Of a float64 pattern: all but the sign, and the bits dropped. 11 of exponent and 7 of mantissa stay, so a bin is
0.8 % wide and the bins take 1 MiB."""

BINS = 1 << (63 - 45)

_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def count_bins(patterns, magnitude, dropped, counts):
    """Add the bins of |score| to ``counts`` (int64).

    ``patterns`` are the bits of the scores (uint64 or uint32), ``magnitude`` all but the sign, ``dropped`` the number
    of bits below a bin, both of the same type.
    """
    for j in range(patterns.size):
        counts[(patterns[j] & magnitude) >> dropped] += 1


@_compiled
def level_bins(patterns, magnitude, dropped, level_of_bin, open_bin, shift, levels, where):
    """Or ``level_of_bin[bin] << shift`` into ``levels``; note the flat index of every entry of an open bin.

    Patterns as in `count_bins`. Returns how many indices were written to ``where``.
    """
    found = 0
    for j in range(patterns.size):
        bin = (patterns[j] & magnitude) >> dropped
        levels[j] |= level_of_bin[bin] << shift
        if open_bin[bin]:
            where[found] = j
            found += 1
    return found


@_compiled
def mark_low(codes, last, quota, bit, levels):
    """Or ``bit`` into the levels of entries of magnitude codes below ``last``, and of the first ``quota`` at it."""
    none = np.uint8(0)
    for j in range(codes.size):  # no branch, so that it becomes vector code: half of all entries go either way
        levels[j] |= bit if (codes[j] & np.uint16(0x7FFF)) < np.uint16(last) else none
    seen = 0
    for j in range(codes.size):
        if (codes[j] & np.uint16(0x7FFF)) == np.uint16(last):
            if seen < quota:
                levels[j] |= bit
            seen += 1
    return seen


@_compiled
def cross(before, after, levels, counts):
    """Add to ``counts[magnitude code, level, changed]`` over flat uint16 codes and uint8 levels below 128."""
    flat = counts.reshape(-1)
    for j in range(before.size):
        x, y = before[j], after[j]
        moved = (x != y) & (((x | y) & np.uint16(0x7FFF)) != np.uint16(0))
        cell = (np.uint32(x & np.uint16(0x7FFF)) << np.uint32(8)) | (np.uint32(levels[j]) << np.uint32(1))
        flat[cell | np.uint32(moved)] += 1


@_compiled
def count_codes(codes, counts):
    """Add flat uint16 codes to ``counts`` (int64 [32768]) by magnitude."""
    for j in range(codes.size):
        counts[codes[j] & np.uint16(0x7FFF)] += 1


@_compiled
def count_near(scores, threshold, slack):
    """How many ``|score|`` lie within ``slack`` of the threshold."""
    found = 0
    for j in range(scores.size):
        found += abs(abs(scores[j]) - threshold) <= slack
    return found


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})  # sums in any order: vector code
def products(left, right, rank, where, found):
    """Write to ``found`` the float64 products of the leading ``rank`` columns at these flat indices, in order."""
    columns = right.shape[0]
    for n in range(where.size):
        i, k = where[n] // columns, where[n] % columns
        total = 0.0
        for j in range(rank):
            total += left[i, j] * right[k, j]
        found[n] = total


@_compiled
def any_nonfinite(codes):
    """Whether a flat uint16 code is infinite or NaN; no early exit, so that the loop becomes vector code."""
    found = False
    for j in range(codes.size):
        found |= (codes[j] & np.uint16(0x7F80)) == np.uint16(0x7F80)
    return found
