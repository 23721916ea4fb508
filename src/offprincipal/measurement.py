"""One tensor in every run that has it: the unit of reading, measuring, storing, resuming and fanning out.

What it is: the bridge from a picklable `Task` to plain data, run wherever the engine puts it. The base is read once
and each tuned side in turn, so that memory is that of one pair however many runs there are.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from offprincipal.factors import FactorCache
from offprincipal.geometry import Base, Curve
from offprincipal.measures.bits import changed
from offprincipal.measures.picture import cells
from offprincipal.pairs import Part
from offprincipal.rows import measure, one_thread
from offprincipal.task import Task
from offprincipal.together import Together


@dataclass
class Held:
    """Keeps the factors of one base matrix in memory for its next run, before a cache on disk where there is one."""

    cache: FactorCache | None
    of: Tensor | None = None
    base: Base | None = None

    def fetch(self, before: Tensor, make: Callable[[], Base]) -> Base:
        """What is held for this very tensor, else what the cache holds or makes."""
        if self.base is None or self.of is not before:
            self.of, self.base = before, self.cache.fetch(before, make) if self.cache else make()
        return self.base


def measure_tensor(task: Task) -> tuple[str, dict[str, Any]]:
    """Load and measure one tensor in every run.

    Returns:
        The tensor's name and its part: ``rows``, one dict of columns per run; ``curves``, lists of
        ``[run, curve, x, y]``; with several runs also what `offprincipal.across` finds.

    Raises:
        InputError: a file has gone or changed since the plan was made.
    """
    part: dict[str, Any] = {"tensor": task.name, "rows": [], "curves": []}
    labels = [label for label, _ in task.pairs]
    together = Together(labels, task.steps, task.pairs[0][1], task.settings.seed) if len(labels) > 1 else None
    factors = Held(FactorCache() if task.settings.cache else None)
    loaded: tuple[Part, Tensor, Future[str]] | None = None
    with ThreadPoolExecutor(2) as aside:  # reading and hashing let other threads run
        for label, pair in task.pairs:
            arriving = aside.submit(pair.tuned.load)
            if loaded is None or loaded[0] != pair.base:
                before = pair.base.load()
                loaded = pair.base, before, aside.submit(content_hash, before)
            _, before, base_hash = loaded
            after = arriving.result()
            tuned_hash = aside.submit(content_hash, after)
            measured = measure(pair, before, after, task.settings, factors)
            measured.columns.update(base_xxh3=base_hash.result(), tuned_xxh3=tuned_hash.result())
            if task.picture and factors.base is not None:
                measured.curves.extend(_pictures(before, after, factors.base))
            part["rows"].append({"run": label, **measured.columns})
            part["curves"].extend([label, name, x.tolist(), y.tolist()] for name, x, y in measured.curves)
            if together:
                with one_thread():
                    together.update(before, after)
    with one_thread():
        found = together.part() if together else {}
    for key, rows in found.items():
        part.setdefault(key, []).extend(rows)
    return task.name, part


def _pictures(before: Tensor, after: Tensor, base: Base) -> list[Curve]:
    """The update mask and the principal mask as densities per cell; x is the cell's number, row after row."""
    principal = base.levels.principal()[base.levels.level.to(torch.int64)].reshape(before.shape)
    masks = {"mask_update": changed(before, after), "mask_principal": principal}
    flat = {name: cells(mask).flatten() for name, mask in masks.items()}
    return [(name, np.arange(len(values), dtype=np.float64), values) for name, values in flat.items()]


def content_hash(tensor: Tensor) -> str:
    """128-bit xxh3 (hex) of dtype, shape and stored bytes; the same wherever and however the tensor is stored.

    It tells tensors apart, at the speed of memory; it is no defence against somebody who wants two to look alike.
    """
    digest = xxhash.xxh3_128(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
