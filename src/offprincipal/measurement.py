"""One tensor in every run that has it: the unit of reading, measuring, storing, resuming and fanning out.

What it is: the bridge from a picklable `Task` to plain data, run wherever the engine puts it. The base is read once
and each tuned side in turn, so that memory is that of one pair however many runs there are.
"""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offprincipal.pairs import Pair, Part
from offprincipal.rows import Measured, Settings, measure


@dataclass(frozen=True)
class Task:
    """One tensor and, for each run that has it, where base and tuned values lie. Small and picklable."""

    name: str
    pairs: tuple[tuple[str, Pair], ...]
    settings: Settings

    @property
    def nbytes(self) -> int:
        """Stored bytes that the task reads."""
        return sum(pair.nbytes for _, pair in self.pairs)


def measure_tensor(task: Task) -> tuple[str, dict[str, Any]]:
    """Load and measure one tensor in every run.

    Returns:
        The tensor's name and its part: ``rows``, one dict of columns per run, and ``curves``, lists of
        ``[run, curve, x, y]``.

    Raises:
        InputError: a file has gone or changed since the plan was made.
    """
    part: dict[str, Any] = {"tensor": task.name, "rows": [], "curves": []}
    loaded: tuple[Part, Tensor, Future[str]] | None = None
    with ThreadPoolExecutor(2) as hashing:  # hashlib lets other threads run: the hashes come while the sweep counts
        for label, pair in task.pairs:
            if loaded is None or loaded[0] != pair.base:
                before = pair.base.load()
                loaded = pair.base, before, hashing.submit(content_hash, before)
            _, before, base_hash = loaded
            after = pair.tuned.load()
            tuned_hash = hashing.submit(content_hash, after)
            measured = measure(pair, before, after, task.settings)
            measured.columns.update(base_sha256=base_hash.result(), tuned_sha256=tuned_hash.result())
            _append(part, label, measured)
    return task.name, part


def content_hash(tensor: Tensor) -> str:
    """sha256 (hex) of dtype, shape and stored bytes; the same wherever and however the tensor is stored."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _append(part: dict[str, Any], label: str, measured: Measured) -> None:
    part["rows"].append({"run": label, **measured.columns})
    part["curves"].extend([label, name, x.tolist(), y.tolist()] for name, x, y in measured.curves)
