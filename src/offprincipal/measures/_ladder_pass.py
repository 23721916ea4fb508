"""Rounding cells of a binary format, and the count of weights that a step carries out of theirs: compiled loops."""

import math

import numpy as np
from numba import njit

_ZERO = 1100
_POWERS = np.ldexp(1.0, np.arange(-_ZERO, 1024))  # powers of two by exponent; a look-up is faster than ldexp
_MAGIC = 1.5 * 2.0**52  # x + MAGIC - MAGIC is x to the nearest whole number, ties to even, without a call


@njit(nogil=True, cache=True, inline="always")
def exponent_of(magnitude):
    """The exponent of a float64; of zero one below all others."""
    return -_ZERO if magnitude == 0.0 else math.frexp(magnitude)[1] - 1


@njit(nogil=True, cache=True, inline="always")
def cell(magnitude, exponent, digits, lowest, largest, saturates):
    """The cell of all values that round to what this magnitude rounds to: outward edge, inward edge, ties leave it.

    `exponent` is the magnitude's own, or any smaller than `lowest` where it has none;
    `digits` of significand (the hidden one included), `lowest` exponent of a normal number, `largest` finite value.
    Rounding is to nearest, ties to even, so a value on an edge leaves exactly when the significand is odd.
    """
    exponent = max(exponent, lowest)
    ulp = _POWERS[_ZERO + exponent - digits + 1]
    steps = (magnitude * _POWERS[_ZERO - exponent + digits - 1] + _MAGIC) - _MAGIC
    value, odd = steps * ulp, np.int64(steps) & 1 == 1
    if value >= largest:
        ulp = _POWERS[_ZERO + math.frexp(largest)[1] - digits]
        odd = np.int64(largest / ulp) & 1 == 1
        if saturates:
            return np.inf, largest - 0.5 * ulp, odd
        if value > largest:
            return np.inf, largest + 0.5 * ulp, False
    half = _POWERS[_ZERO + digits - 1]
    if steps == 2.0 * half:  # rounded up to a power of two: its own ulp is twice as wide
        return value + ulp, value - 0.5 * ulp, False
    inward = 0.25 * ulp if steps == half and exponent > lowest else 0.5 * ulp
    return value + 0.5 * ulp, value - inward, odd


@njit(nogil=True, cache=True)
def cells(magnitudes, digits, lowest, largest, saturates, outward, inward, odd):
    """`cell` of each magnitude, into the three arrays."""
    for i in range(magnitudes.size):
        outward[i], inward[i], odd[i] = cell(
            magnitudes[i], exponent_of(magnitudes[i]), digits, lowest, largest, saturates
        )


@njit(nogil=True, cache=True, inline="always")
def leaves(end, outward, inward, odd):
    """Whether a value lies outside a cell, or on an edge that does not belong to it."""
    return end > outward or end < inward or (odd and (end == outward or end == inward))  # noqa: SIM109  # compiled


@njit(nogil=True, cache=True)
def count(total, visible, scaled, before, after, codes, shape, largest, saturates, scales, factors):
    """Count the weights that leave their cell, per format: at the whole step by code, at each factor of it in all.

    `shape` [formats, 2]: digits, lowest. Nonfinite entries are left out; returns how many there are.
    """
    nonfinite = 0
    along = np.empty(factors.size)
    for i in range(before.size):
        start, stop = before[i], after[i]
        if not (math.isfinite(start) and math.isfinite(stop)):
            nonfinite += 1
            continue
        code = codes[i] & 0x7FFF
        total[code] += 1
        step = stop - start
        if step == 0.0:
            continue
        sign = -1.0 if start < 0.0 else 1.0
        own = exponent_of(abs(start))
        for k in range(factors.size):
            along[k] = sign * (start + factors[k] * step)
        for f in range(scales.size):
            scale, magnitude, exponent, end = scales[f], abs(start), own, sign * stop
            if scale != 1.0:
                magnitude, end = magnitude / scale, end / scale
                exponent = exponent_of(magnitude)
            outward, inward, odd = cell(magnitude, exponent, shape[f, 0], shape[f, 1], largest[f], saturates[f])
            if leaves(end, outward, inward, odd):
                visible[f, code] += 1
            for k in range(factors.size):
                if leaves(along[k] / scale, outward, inward, odd):
                    scaled[f, k] += 1
    return nonfinite
