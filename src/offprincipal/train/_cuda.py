"""The step as one Triton kernel: a program per block of entries, moments read and written where the mask says.

What it is: the arithmetic of ``_rules`` on an accelerator, with the traffic of the compiled CPU step. What it is not:
needed; without Triton, and for float64, ``_torch`` does the same. Triton may fuse a product and a sum into one
rounding, so results agree with the CPU to a few units in the last place, not to the bit.
"""

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from offprincipal.train._region import BLOCK
from offprincipal.train._rules import Task


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _rounded(new, place, low, high):
    """float32 to bfloat16 by the noise of ``_rules.noise``."""
    drawn = (
        _mix(_mix(place.to(tl.uint32) ^ low.to(tl.uint32)) ^ (place >> 32).to(tl.uint32) ^ high.to(tl.uint32)) >> 16
    )
    pattern = new.to(tl.uint32, bitcast=True)
    finite = (pattern & 0x7FFFFFFF) < 0x7F800000
    raised = ((pattern + drawn) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where(finite, raised, new).to(tl.bfloat16)


@triton.jit(do_not_specialize=["offset", "low", "high"])  # a constant 1 would lose its type
def _step(
    weight, gradient, bits, starts, one, two, master, entries, offset, low, high,
    c0, c1, c2, c3, c4, c5, c6, c7,
    MOMENTS: tl.constexpr, ALL: tl.constexpr, MASTER: tl.constexpr, RANDOM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    lane = block * BLOCK + tl.arange(0, BLOCK)
    allowed = lane < entries
    if ALL:
        place = lane
    else:
        byte = tl.load(bits + lane // 8, mask=allowed, other=0).to(tl.int32)
        flag = (byte >> (lane % 8).to(tl.int32)) & 1
        allowed = flag != 0
        place = tl.load(starts + block) + tl.cumsum(flag, 0) - flag
    if MASTER:
        w = tl.load(master + place, mask=allowed, other=0.0)
    else:
        w = tl.load(weight + lane, mask=allowed, other=0.0).to(tl.float32)
    g = tl.load(gradient + lane, mask=allowed, other=0.0).to(tl.float32)
    if MOMENTS == 2:
        g = g * c7
        first = tl.load(one + place, mask=allowed, other=0.0).to(tl.float32)
        second = tl.load(two + place, mask=allowed, other=0.0).to(tl.float32)
        first = first + (g - first) * c1
        second = second * c2 + g * c3 * g
        new = w * c0 - tl.div_rn(first * c4, tl.sqrt_rn(second) * c5 + c6)
        tl.store(one + place, first.to(one.dtype.element_ty), mask=allowed)
        tl.store(two + place, second.to(two.dtype.element_ty), mask=allowed)
    else:
        g = g * c5 + w * c1
        if MOMENTS == 1:
            buffer = tl.load(one + place, mask=allowed, other=0.0).to(tl.float32) * c2 + g * c3
            tl.store(one + place, buffer.to(one.dtype.element_ty), mask=allowed)
            g = tl.where(c4 != 0.0, g + buffer * c4, buffer)
        new = w - g * c0
    if MASTER:
        tl.store(master + place, new, mask=allowed)
    if RANDOM:
        tl.store(weight + lane, _rounded(new, offset + place, low, high), mask=allowed)
    else:
        tl.store(weight + lane, new.to(weight.dtype.element_ty), mask=allowed)


def able(task: Task) -> bool:
    """Whether the kernel knows the weight's dtype; it computes in float32."""
    return task.weight.dtype in (torch.float32, torch.bfloat16, torch.float16)


def step(task: Task) -> None:
    """Do one step in place, on the weight's device."""
    region, moments = task.region, task.moments
    if not region.entries:
        return
    empty = task.weight  # stands for what the constexpr switches leave unread
    one, two = (*moments, empty, empty)[:2]
    key = task.key or 0
    constants = (*task.rule.constants(), 0.0, 0.0)[:8]
    kernel: Any = _step
    kernel[(-(-region.entries // BLOCK),)](
        task.weight, task.gradient,
        empty if region.bits is None else region.bits, empty if region.starts is None else region.starts,
        one, two, empty if task.master is None else task.master,
        region.entries, region.offset, key & 0xFFFFFFFF, key >> 32, *constants,
        MOMENTS=len(moments), ALL=region.bits is None, MASTER=task.master is not None, RANDOM=task.key is not None,
        BLOCK=BLOCK,
    )  # fmt: skip
