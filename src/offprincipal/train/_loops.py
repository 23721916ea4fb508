"""The compiled step: numba loops over one block of a parameter at a time, packed in the L1 cache.

Weights and gradient are read densely, eight entries at a time, and the allowed ones packed; the arithmetic runs on
contiguous float32; the weights are put back. Moments and masters lie packed and are changed where they lie. So a step
moves 12 bytes for each parameter and 16 for each allowed one, against 28 in a dense step, and blocks without an
allowed entry are not touched. Stored floats come as unsigned integers of their size.
"""

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import overload

from offprincipal.train import _lanes
from offprincipal.train._lanes import fetch, pack8, unpack8
from offprincipal.train._region import BLOCK

AVX2 = _lanes.AVX2  # of this module, so that it is a constant of the compiled code
u8, u16, u32, f32 = np.uint8, np.uint16, np.uint32, np.float32
_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def pack_plain(source, low, high, bits, k, shift, out):
    """Append the allowed ones of ``source[low:high]`` to `out` at k, shifted left; returns the new k."""
    for i in range(low, high):
        out[k] = u32(u32(source[i]) << shift)
        k += (bits[i >> 3] >> u8(i & 7)) & 1
    return k


@_compiled
def unpack_plain(target, low, high, bits, k, shift, packed):
    """Put the values of `packed`, from k on, shifted right, where ``target[low:high]`` is allowed."""
    for i in range(low, high):
        if (bits[i >> 3] >> u8(i & 7)) & 1:
            target[i] = packed[k] >> shift
            k += 1


@_compiled
def pack(weight, gradient, low, high, bits, shift, orders, ones, held, drawn, one, two, start, count):
    """The allowed ones of ``weight[low:high]`` and of the gradient to the front of `held` and `drawn`.

    weight, gradient: uint16 or uint32; low: a multiple of 8; bits: of all of `weight`; shift: 16 or 0, to the left;
    held, drawn: uint32, 8 longer than a block. Meanwhile the packed moments, ``one[start : start + count]`` and
    `two`, are fetched: there are too many streams for the processor to foresee them.
    """
    k = 0
    whole = (high - low) // 8 if AVX2 else 0
    for b in range(whole):
        if b % 2 == 0 and 8 * b < count:
            if one is not None:
                fetch(one, np.intp(start + 8 * b))
            if two is not None:
                fetch(two, np.intp(start + 8 * b))
        byte, i = np.intp(bits[np.uintp((low >> 3) + b)]), np.intp(low + 8 * b)
        pack8(weight, i, orders, byte, held, np.intp(k))
        pack8(gradient, i, orders, byte, drawn, np.intp(k))
        k += np.intp(ones[byte])
    pack_plain(weight, low + 8 * whole, high, bits, k, shift, held)
    pack_plain(gradient, low + 8 * whole, high, bits, k, shift, drawn)


@_compiled
def unpack(weight, gradient, low, high, bits, shift, orders, ones, held):
    """Allowed entries of ``weight[low:high]`` take the values of `held`, shifted right; the others keep their bits.

    Meanwhile the next block of weights and gradient is fetched.
    """
    k = 0
    whole = (high - low) // 8 if AVX2 else 0
    for b in range(whole):
        i = np.intp(low + 8 * b)
        if b % 2 == 0:
            fetch(weight, np.intp(i + BLOCK))
            fetch(gradient, np.intp(i + BLOCK))
        byte = np.intp(bits[np.uintp((low >> 3) + b)])
        unpack8(weight, i, orders, byte, held, np.intp(k))
        k += np.intp(ones[byte])
    unpack_plain(weight, low + 8 * whole, high, bits, k, shift, held)


@_compiled
def _widen(source, low, count, shift, out):
    for i in range(count):
        out[i] = u32(u32(source[np.uintp(low + i)]) << shift)


@_compiled
def _narrow(packed, low, count, shift, out):
    for i in range(count):
        out[np.uintp(low + i)] = packed[i] >> shift


@_compiled
def round_to_even(values, count):
    """float32 bits (uint32) to the nearest bfloat16, in the upper half; a NaN becomes the quiet one, as in torch."""
    for i in range(count):
        x = values[i]
        nan = u32(x & u32(0x7FFFFFFF)) > u32(0x7F800000)
        values[i] = u32(0x7FC00000) if nan else u32(x + u32(0x7FFF) + u32(u32(x >> u32(16)) & u32(1)))


@_compiled
def _mix(x):
    x = u32(u32(x ^ u32(x >> u32(16))) * u32(0x7FEB352D))
    x = u32(u32(x ^ u32(x >> u32(15))) * u32(0x846CA68B))
    return u32(x ^ u32(x >> u32(16)))


@_compiled
def round_at_random(values, count, first, low, high):
    """float32 bits to bfloat16, up or down by the noise of ``_rules.noise``; `first` is entry 0's packed place."""
    for i in range(count):
        x = values[i]
        place = np.uint64(first + i)
        drawn = _mix(u32(_mix(u32(u32(place) ^ low)) ^ u32(place >> np.uint64(32)) ^ high)) >> u32(16)
        magnitude = u32(x & u32(0x7FFFFFFF))
        raised = u32(x + drawn)
        if magnitude >= u32(0x7F800000):
            raised = u32(0x7FC00000) if magnitude > u32(0x7F800000) else x
        values[i] = raised


@_compiled
def _adamw(w, at, g, average, square, first, count, c):
    decay, c1, beta2, c2, size, scale, eps, sign = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
    for i in range(count):
        j, k = np.uintp(first + i), np.uintp(at + i)
        gradient = g[i] * sign
        mean = average[j] + (gradient - average[j]) * c1
        second = square[j] * beta2 + gradient * c2 * gradient
        average[j], square[j] = mean, second
        w[k] = w[k] * decay - mean * size / (np.sqrt(second) * scale + eps)


@_compiled
def _momentum(w, at, g, buffer, first, count, c):
    rate, decay, keep, take, ahead, sign = c[0], c[1], c[2], c[3], c[4], c[5]
    nesterov = ahead != f32(0)
    for i in range(count):
        j, k = np.uintp(first + i), np.uintp(at + i)
        gradient = g[i] * sign + w[k] * decay
        kept = buffer[j] * keep + gradient * take
        buffer[j] = kept
        w[k] = w[k] - (gradient + kept * ahead if nesterov else kept) * rate


@_compiled
def _descend(w, at, g, count, c):
    rate, decay, sign = c[0], c[1], c[5]
    for i in range(count):
        k = np.uintp(at + i)
        w[k] = w[k] - (g[i] * sign + w[k] * decay) * rate


def _update(w, at, g, one, two, first, count, scratch, c):
    """The arithmetic of whichever rule has that many moments; those in bfloat16 are widened into `scratch`."""


@overload(_update)
def _update_by_type(w, at, g, one, two, first, count, scratch, c):
    def descend(w, at, g, one, two, first, count, scratch, c):
        _descend(w, at, g, count, c)

    def momentum(w, at, g, one, two, first, count, scratch, c):
        _momentum(w, at, g, one, first, count, c)

    def short_momentum(w, at, g, one, two, first, count, scratch, c):
        _widen(one, first, count, u32(16), scratch[0])
        _momentum(w, at, g, scratch[0].view(f32), 0, count, c)
        round_to_even(scratch[0], count)
        _narrow(scratch[0], first, count, u32(16), one)

    def adamw(w, at, g, one, two, first, count, scratch, c):
        _adamw(w, at, g, one, two, first, count, c)

    def short_adamw(w, at, g, one, two, first, count, scratch, c):
        _widen(one, first, count, u32(16), scratch[0])
        _widen(two, first, count, u32(16), scratch[1])
        _adamw(w, at, g, scratch[0].view(f32), scratch[1].view(f32), 0, count, c)
        round_to_even(scratch[0], count)
        round_to_even(scratch[1], count)
        _narrow(scratch[0], first, count, u32(16), one)
        _narrow(scratch[1], first, count, u32(16), two)

    if isinstance(one, types.NoneType):
        return descend
    short = one.dtype == types.uint16
    if isinstance(two, types.NoneType):
        return short_momentum if short else momentum
    return short_adamw if short else adamw


@_compiled
def _ask(left, right, first, count):
    """Fetch two runs before they are used; None stands for what there is not."""
    for i in range(0, count, 16):
        if left is not None:
            fetch(left, np.intp(first + i))
        if right is not None:
            fetch(right, np.intp(first + i))


@_compiled
def blocks(weight, gradient, bits, starts, one, two, master, c, shift, noise, orders, ones, first, last):
    """Blocks ``first .. last`` of one parameter; None stands for what it does not have.

    Offsets instead of slices, few calls: numba counts references with the bus locked, for each array handed on.
    """
    held, drawn, scratch = np.empty(BLOCK + 8, u32), np.empty(BLOCK + 8, u32), np.empty((2, BLOCK), u32)
    w, g = held.view(f32), drawn.view(f32)
    for t in range(first, last):
        low, high = t * BLOCK, min((t + 1) * BLOCK, weight.size)
        start, stop = low, high
        if bits is not None:
            start, stop = starts[t], starts[t + 1]
        count = stop - start
        if count == 0:
            continue
        if bits is None:
            _ask(one, two, low, count)
            _widen(weight, low, count, shift, held)
            _widen(gradient, low, count, shift, drawn)
        else:
            pack(weight, gradient, low, high, bits, shift, orders, ones, held, drawn, one, two, start, count)
        if master is None:
            _update(w, 0, g, one, two, start, count, scratch, c)
        else:
            _update(master, start, g, one, two, start, count, scratch, c)
            for i in range(count):
                w[i] = master[np.uintp(start + i)]
        if noise is not None:
            round_at_random(held, count, np.int64(noise[0]) + start, u32(noise[1]), u32(noise[2]))
        elif shift:
            round_to_even(held, count)
        if bits is None:
            _ask(weight, gradient, low + BLOCK, count)
            _narrow(held, low, count, shift, weight)
        else:
            unpack(weight, gradient, low, high, bits, shift, orders, ones, held)
