"""The compiled loops behind `consensus`: counts over codes and bits, one line of a matrix at a time."""

import numpy as np
from numba import njit

CODES = 32_768

_compiled = njit(nogil=True, cache=True, error_model="numpy")
u64 = np.uint64
_ODD, _PAIRS, _NIBBLES, _BYTES = (
    u64(0x5555555555555555),
    u64(0x3333333333333333),
    u64(0x0F0F0F0F0F0F0F0F),
    u64(0x0101010101010101),
)


@_compiled
def count_run(mask, codes, changed, rows, columns):
    """One run: changed entries per code, per row and per column. mask uint8 and codes uint16 [R, C], counts int64."""
    height, width = mask.shape
    for i in range(height):
        total = 0
        for j in range(width):
            total += mask[i, j]
            columns[j] += mask[i, j]
        rows[i] += total
        if total == 0:
            continue
        for j in range(width):
            changed[codes[i, j]] += mask[i, j]


@_compiled
def common_bits(left, right):
    """Ones that two packed masks share; uint64 words. The sums within a word are the textbook ones (Warren 2012)."""
    total = u64(0)
    for i in range(left.size):
        x = left[i] & right[i]
        x = x - ((x >> u64(1)) & _ODD)
        x = (x & _PAIRS) + ((x >> u64(2)) & _PAIRS)
        x = (x + (x >> u64(4))) & _NIBBLES
        total += (x * _BYTES) >> u64(56)
    return total


@_compiled
def times_changed(packed, entries, histogram):
    """How many entries were changed by 0, 1, ... R runs: packed uint8 [R, bytes], little-endian bits."""
    runs = packed.shape[0]
    for i in range(entries):
        byte, bit = i >> 3, np.uint8(i & 7)
        times = 0
        for r in range(runs):
            times += (packed[r, byte] >> bit) & 1
        histogram[times] += 1


@_compiled
def line_moments(codes, share, weight, total, mean, variance):
    """Mean and variance of each line's changed count when the changes of a code fall anywhere among its entries.

    A line holds a entries of a code that has n entries, m of them changed: its count is hypergeometric, with mean
    a m / n and variance a (n - a) m (n - m) / (n^2 (n - 1)). Codes are independent, so both add up.

    Args:
        codes: uint16 [L, W].
        share: float64 [32768, R], m / n.
        weight: float64 [32768, R], m (n - m) / (n^2 (n - 1)).
        total: int64 [32768], n.
        mean: float64 [R, L], added to.
        variance: float64 [R, L], added to.
    """
    lines, width = codes.shape
    runs = share.shape[1]
    count, seen = np.zeros(CODES, np.int64), np.empty(CODES, np.uint16)
    for i in range(lines):
        distinct = 0
        for j in range(width):
            c = codes[i, j]
            if count[c] == 0:
                seen[distinct] = c
                distinct += 1
            count[c] += 1
        for d in range(distinct):  # a line of thousands holds some hundred distinct codes
            c = seen[d]
            a = count[c]
            count[c] = 0
            for r in range(runs):
                mean[r, i] += a * share[c, r]
                variance[r, i] += a * (total[c] - a) * weight[c, r]
