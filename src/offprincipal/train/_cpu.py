"""The compiled step: numba loops over one block at a time, packed in the L1 cache, on as many threads as torch uses.

Weights and gradient are read densely, eight entries at a time, and the allowed ones packed; the arithmetic runs on
contiguous float32; the weights are put back. Moments and masters lie packed and are changed where they lie. So a step
moves 12 bytes for each parameter and 16 for each allowed one, against 28 in a dense step, and blocks without an
allowed entry are not touched. Every entry depends on its own numbers only: any number of threads gives the same bits.

What it is not: for float16, float64 or another device; there ``_torch`` does the same in the same order.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from numba.core import types
from numba.extending import overload
from torch import Tensor

from offprincipal.train import _lanes
from offprincipal.train._lanes import ONES, ORDERS, pack8, unpack8
from offprincipal.train._region import BLOCK
from offprincipal.train._rules import Task

AVX2 = _lanes.AVX2
u8, u16, u32, f32 = np.uint8, np.uint16, np.uint32, np.float32
_compiled = njit(nogil=True, cache=True, error_model="numpy")

SERIAL = 1 << 16
"""Entries below which one thread does the whole step: starting another costs more."""


@_compiled
def pack_plain(source, bits, first, k, shift, out):
    """Append the allowed ones of ``source[first:]`` to `out` at k, shifted left; returns the new k."""
    for i in range(first, source.size):
        out[k] = u32(u32(source[i]) << shift)
        k += (bits[i >> 3] >> u8(i & 7)) & 1
    return k


@_compiled
def unpack_plain(target, bits, first, k, shift, packed):
    """Put the values of `packed`, from k on, shifted right, where ``target[first:]`` is allowed."""
    for i in range(first, target.size):
        if (bits[i >> 3] >> u8(i & 7)) & 1:
            target[i] = packed[k] >> shift
            k += 1


@_compiled
def pack(source, bits, shift, orders, ones, out):
    """The allowed ones of `source` (uint16 or uint32), shifted left, to the front of `out`; which holds 8 more."""
    k = 0
    whole = source.size // 8 if AVX2 else 0
    for b in range(whole):
        byte = np.intp(bits[b])
        pack8(source, np.intp(8 * b), orders, byte, out, np.intp(k))
        k += np.intp(ones[byte])
    return pack_plain(source, bits, 8 * whole, k, shift, out)


@_compiled
def unpack(target, bits, shift, orders, ones, packed):
    """The inverse of `pack`: allowed entries take their value, the others keep their bits."""
    k = 0
    whole = target.size // 8 if AVX2 else 0
    for b in range(whole):
        byte = np.intp(bits[b])
        unpack8(target, np.intp(8 * b), orders, byte, packed, np.intp(k))
        k += np.intp(ones[byte])
    unpack_plain(target, bits, 8 * whole, k, shift, packed)


@_compiled
def _widen(source, shift, out):
    for i in range(source.size):
        out[i] = u32(source[i]) << shift


@_compiled
def _narrow(packed, shift, out):
    for i in range(out.size):
        out[i] = packed[i] >> shift


@_compiled
def round_to_even(values):
    """float32 bits (uint32) to the nearest bfloat16, in the upper half; a NaN becomes the quiet one, as in torch."""
    for i in range(values.size):
        x = values[i]
        nan = u32(x & u32(0x7FFFFFFF)) > u32(0x7F800000)
        values[i] = u32(0x7FC00000) if nan else u32(x + u32(0x7FFF) + u32(u32(x >> u32(16)) & u32(1)))


@_compiled
def _mix(x):
    x = u32(u32(x ^ u32(x >> u32(16))) * u32(0x7FEB352D))
    x = u32(u32(x ^ u32(x >> u32(15))) * u32(0x846CA68B))
    return u32(x ^ u32(x >> u32(16)))


@_compiled
def round_at_random(values, first, low, high):
    """float32 bits to bfloat16, up or down by the noise of ``_rules.noise``; `first` is entry 0's packed place."""
    for i in range(values.size):
        x = values[i]
        place = np.uint64(first + i)
        drawn = _mix(u32(_mix(u32(u32(place) ^ low)) ^ u32(place >> np.uint64(32)) ^ high)) >> u32(16)
        magnitude = u32(x & u32(0x7FFFFFFF))
        raised = u32(x + drawn)
        if magnitude >= u32(0x7F800000):
            raised = u32(0x7FC00000) if magnitude > u32(0x7F800000) else x
        values[i] = raised


@_compiled
def _adamw(w, g, average, square, c):
    decay, c1, beta2, c2, size, scale, eps, sign = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
    for i in range(w.size):
        gradient = g[i] * sign
        first = average[i] + (gradient - average[i]) * c1
        second = square[i] * beta2 + gradient * c2 * gradient
        average[i], square[i] = first, second
        w[i] = w[i] * decay - first * size / (np.sqrt(second) * scale + eps)


@_compiled
def _momentum(w, g, buffer, c):
    rate, decay, keep, take, ahead, sign = c[0], c[1], c[2], c[3], c[4], c[5]
    nesterov = ahead != f32(0)
    for i in range(w.size):
        gradient = g[i] * sign + w[i] * decay
        kept = buffer[i] * keep + gradient * take
        buffer[i] = kept
        w[i] = w[i] - (gradient + kept * ahead if nesterov else kept) * rate


@_compiled
def _descend(w, g, c):
    rate, decay, sign = c[0], c[1], c[5]
    for i in range(w.size):
        w[i] = w[i] - (g[i] * sign + w[i] * decay) * rate


def _opened(stored, first, count, bits, values):  # numba replaces this and the next by one form per dtype
    """The moments as float32: where they lie, or a widened copy in `values`, whose bits are `bits`."""


def _closed(stored, first, count, bits):
    """Round a widened copy back to where it came from."""


@overload(_opened, inline="always")
def _open_by_dtype(stored, first, count, bits, values):
    def widened(stored, first, count, bits, values):
        _widen(stored[first : first + count], u32(16), bits)
        return values[:count]

    def in_place(stored, first, count, bits, values):
        return stored[first : first + count]

    return widened if stored.dtype == types.uint16 else in_place


@overload(_closed, inline="always")
def _close_by_dtype(stored, first, count, bits):
    def rounded(stored, first, count, bits):
        round_to_even(bits[:count])
        _narrow(bits, u32(16), stored[first : first + count])

    def nothing(stored, first, count, bits):
        pass

    return rounded if stored.dtype == types.uint16 else nothing


@_compiled
def _gather(source, bits, shift, orders, ones, out):
    if bits is None:
        _widen(source, shift, out)
    else:
        pack(source, bits, shift, orders, ones, out)


@_compiled
def _scatter(target, bits, shift, orders, ones, packed):
    if bits is None:
        _narrow(packed, shift, target)
    else:
        unpack(target, bits, shift, orders, ones, packed)


@_compiled
def _update(w, g, one, two, first, count, left, right, c):
    """The arithmetic of whichever rule has that many moments."""
    if two is not None:
        a, b = _opened(one, first, count, left, left.view(f32)), _opened(two, first, count, right, right.view(f32))
        _adamw(w, g, a, b, c)
        _closed(one, first, count, left)
        _closed(two, first, count, right)
    elif one is not None:
        a = _opened(one, first, count, left, left.view(f32))
        _momentum(w, g, a, c)
        _closed(one, first, count, left)
    else:
        _descend(w, g, c)


@_compiled
def _blocks(weight, gradient, bits, starts, one, two, master, c, shift, noise, orders, ones, first, last):
    """Blocks ``first .. last`` of one parameter; None stands for what it does not have."""
    held, drawn, left, right = (
        np.empty(BLOCK + 8, u32),
        np.empty(BLOCK + 8, u32),
        np.empty(BLOCK, u32),
        np.empty(BLOCK, u32),
    )
    for t in range(first, last):
        low, high = t * BLOCK, min((t + 1) * BLOCK, weight.size)
        start, stop, mask = low, high, None
        if bits is not None:
            start, stop, mask = starts[t], starts[t + 1], bits[low >> 3 : (high + 7) >> 3]
        count = stop - start
        if count == 0:
            continue
        _gather(gradient[low:high], mask, shift, orders, ones, drawn)
        if master is None:
            _gather(weight[low:high], mask, shift, orders, ones, held)
            _update(held.view(f32)[:count], drawn.view(f32)[:count], one, two, start, count, left, right, c)
        else:
            w = master[start : start + count]
            _update(w, drawn.view(f32)[:count], one, two, start, count, left, right, c)
            _widen(w.view(u32), u32(0), held)
        if noise is not None:
            round_at_random(held[:count], np.int64(noise[0]) + start, u32(noise[1]), u32(noise[2]))
        elif shift:
            round_to_even(held[:count])
        _scatter(weight[low:high], mask, shift, orders, ones, held)


def able(task: Task) -> bool:
    """Whether the compiled step knows these: float32 or bfloat16 on the CPU, both of one dtype."""
    known = task.weight.device.type == "cpu" and task.weight.dtype in (torch.float32, torch.bfloat16)
    return known and task.gradient.dtype == task.weight.dtype


@dataclass(frozen=True)
class _Work:
    """A task as arrays that the compiled loop takes, how many blocks there are, and how many words move."""

    arguments: tuple
    blocks: int
    cost: int


def _work(task: Task) -> _Work:
    region, shift = task.region, 32 - 8 * task.weight.itemsize
    one, two = ([_array(moment) for moment in task.moments] + [None, None])[:2]
    bits, starts = (None if t is None else t.numpy() for t in (region.bits, region.starts))
    key = task.key
    noise = None if key is None else np.array([region.offset, key & 0xFFFFFFFF, key >> 32], np.int64)
    master = None if task.master is None else task.master.numpy()
    constants = np.array(task.rule.constants(), f32)
    arrays = (_bits(task.weight), _bits(task.gradient), bits, starts, one, two, master)
    blocks, cost = -(-region.entries // BLOCK), 3 * region.entries + 4 * region.ones
    return _Work((*arrays, constants, u32(shift), noise, ORDERS, ONES), blocks, cost)


def _bits(tensor: Tensor) -> np.ndarray:
    return tensor.view(torch.uint16 if tensor.itemsize == 2 else torch.uint32).numpy()


def _array(moment: Tensor) -> np.ndarray:
    return moment.numpy() if moment.dtype == torch.float32 else _bits(moment)


def step(tasks: list[Task]) -> None:
    """Do every step in place, cut into equal costs for as many threads as torch uses."""
    works = [_work(task) for task in tasks]
    total = sum(work.cost for work in works)
    threads = torch.get_num_threads() if total > 7 * SERIAL else 1
    shares = list(_shares(works, total, threads))
    if threads == 1:
        _do(shares[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_do, shares))


def _do(share: list[tuple[_Work, int, int]]) -> None:
    for work, first, last in share:
        _blocks(*work.arguments, first, last)


def _shares(works: list[_Work], total: int, threads: int) -> Iterator[list[tuple[_Work, int, int]]]:
    """Runs of blocks for each thread, in order; the cost of a block is taken as its parameter's mean."""
    edges = [total * i // threads for i in range(1, threads)]
    share: list[tuple[_Work, int, int]] = []
    spent = 0
    for work in works:
        first = 0
        while edges and spent + work.cost >= edges[0]:
            last = max(first, work.blocks * (edges.pop(0) - spent) // max(work.cost, 1))
            yield [*share, (work, first, last)]
            share, first = [], last
        share.append((work, first, work.blocks))
        spent += work.cost
    yield share
    yield from ([] for _ in edges)
