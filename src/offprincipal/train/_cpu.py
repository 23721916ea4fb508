"""The compiled step on as many threads as torch uses: which tasks it takes, their arrays, equal shares of the work.

Every entry depends on its own numbers only, so any number of threads gives the same bits. What it is not: for float16,
float64 or another device; there ``_torch`` does the same in the same order.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprincipal.train._lanes import ONES, ORDERS
from offprincipal.train._loops import blocks
from offprincipal.train._region import BLOCK
from offprincipal.train._rules import Task

SHARES = 8
"""Shares for each thread: a thread that is held up leaves its later shares to the others."""

SERIAL = 1 << 16
"""Entries below which one thread does the whole step: starting another costs more."""


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
    constants = np.array(task.rule.constants(), np.float32)
    arrays = (_bits(task.weight), _bits(task.gradient), bits, starts, one, two, master)
    count, cost = -(-region.entries // BLOCK), 3 * region.entries + 4 * region.ones
    return _Work((*arrays, constants, np.uint32(shift), noise, ORDERS, ONES), count, cost)


def _bits(tensor: Tensor) -> np.ndarray:
    return tensor.view(torch.uint16 if tensor.itemsize == 2 else torch.uint32).numpy()


def _array(moment: Tensor) -> np.ndarray:
    return moment.numpy() if moment.dtype == torch.float32 else _bits(moment)


def step(tasks: list[Task]) -> None:
    """Do every step in place, cut into equal costs for as many threads as torch uses."""
    works = [_work(task) for task in tasks]
    total = sum(work.cost for work in works)
    threads = torch.get_num_threads() if total > 7 * SERIAL else 1
    shares = list(_shares(works, total, SHARES * threads if threads > 1 else 1))
    if threads == 1:
        _do(shares[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_do, shares))


def _do(share: list[tuple[_Work, int, int]]) -> None:
    loop: Any = blocks  # compiled: its types are numba's
    for work, first, last in share:
        loop(*work.arguments, first, last)


def _shares(works: list[_Work], total: int, count: int) -> Iterator[list[tuple[_Work, int, int]]]:
    """So many runs of blocks, in order; the cost of a block is taken as its parameter's mean."""
    edges = [total * i // count for i in range(1, count)]
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
