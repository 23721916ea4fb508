"""Sets to sets: and, or, minus, not, and what most of several masks agree about. One weight at a time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprincipal.checkpoint import Checkpoint, open_checkpoint
from offprincipal.errors import UsageError
from offprincipal.masksets._draft import Draft, made
from offprincipal.masksets._layout import take
from offprincipal.masksets._maskset import MaskSet
from offprincipal.measures.bits import magnitude_code
from offprincipal.measures.consensus import Consensus

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "and": lambda left, right: left & right,
    "or": lambda left, right: left | right,
    "minus": lambda left, right: left & ~right,
}
"""What two masks can be combined by."""

Progress = Callable[[int, int, str], None]


def combine(
    left: "str | Path | MaskSet",
    operation: str,
    right: "str | Path | MaskSet | None",
    out: str | Path,
    *,
    progress: Progress | None = None,
) -> MaskSet:
    """A new set: ``left and right``, ``left or right``, ``left minus right``, or the complement, ``not left``.

    Args:
        left: a mask set or its path.
        operation: "and", "or", "minus" or "not".
        right: the second set; None for "not".
        out: folder of the new set.
        progress: called before each weight.

    Raises:
        UsageError: no such operation, or a wrong number of sets.
        InputError: the sets are for different weights, the result is empty, or `out` is in use.

    >>> from tempfile import TemporaryDirectory
    >>> from offprincipal.masksets import save_masks
    >>> with TemporaryDirectory() as folder:
    ...     one = save_masks(f"{folder}/one", {"w": torch.tensor([True, True, False])})
    ...     two = save_masks(f"{folder}/two", {"w": torch.tensor([True, False, False])})
    ...     print(combine(one, "minus", two, f"{folder}/rest")["w"].tolist())
    [False, True, False]
    """
    asked = f"combine masks by {operation!r}"
    if operation not in (*OPERATIONS, "not"):
        raise UsageError(asked, "there is no such operation", f"choose one of {', '.join(OPERATIONS)} or not")
    if (right is None) != (operation == "not"):
        needed = "one mask set" if operation == "not" else "two mask sets"
        raise UsageError(asked, f"it takes {needed}", "give A and B, A or B, A minus B, or not A")
    first, second = MaskSet.open(left), None if right is None else MaskSet.open(right)
    if second:
        first.check_like(second, asked)
    rule = {"kind": "combined", "operation": operation, "of": [each.named() for each in (first, second) if each]}

    def make(name: str) -> Tensor:
        return ~first[name] if second is None else OPERATIONS[operation](first[name], second[name])

    with Draft(out, rule, first.header["base"], asked) as draft:
        for done, name in enumerate(first.names):
            if progress:
                progress(done, len(first), name)
            if name not in draft:
                draft.add(name, made(make(name), first.entries[name].base_xxh3))
        if progress:
            progress(len(first), len(first), "")
        return draft.finish(first.names, first.header.get("left_out"))


def consensus(
    sets: "Sequence[str | Path | MaskSet]",
    min_agree: int,
    out: str | Path,
    *,
    base: str | Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> tuple[MaskSet, dict[str, Any]]:
    """A new set: the weights that at least `min_agree` of several sets hold, and how often chance would have it.

    Args:
        sets: two mask sets or more, or their paths.
        min_agree: how many have to agree.
        out: folder of the new set.
        base: the base, for the magnitude null; without it there is only chance.
        offline: never ask the Hub for the base.
        progress: called before each weight.

    Returns:
        The set, and plain data: ``times[t]`` weights that exactly t sets hold; ``times_chance``, expected of
        independent masks with the same density in each matrix; with the base ``times_matched``, expected when each
        mask depends on the magnitude code alone (N-magnitude, exact).

    Raises:
        UsageError: fewer than two sets, or a number that they cannot reach.
        InputError: the sets are for different weights or another base, the result is empty, or `out` is in use.
    """
    asked = f"find what {min_agree} of {len(sets)} mask sets agree about"
    if len(sets) < 2 or not 1 <= min_agree <= len(sets):
        raise UsageError(asked, "that is not a number of at least two sets", f"give --min-agree from 1 to {len(sets)}")
    opened = [MaskSet.open(each) for each in sets]
    for other in opened[1:]:
        opened[0].check_like(other, asked)
    checkpoint = None if base is None else open_checkpoint(base, offline=offline)
    if checkpoint:
        opened[0].check_names(checkpoint)
    rule = {"kind": "consensus", "min_agree": min_agree, "of": [each.named() for each in opened]}
    counts = _Times(len(opened))
    with Draft(out, rule, opened[0].header["base"], asked) as draft:
        for done, name in enumerate(opened[0].names):
            if progress:
                progress(done, len(opened[0]), name)
            agree = counts.add(name, opened, checkpoint)
            if name not in draft:
                draft.add(name, made(agree >= min_agree, opened[0].entries[name].base_xxh3))
        if progress:
            progress(len(opened[0]), len(opened[0]), "")
        return draft.finish(opened[0].names, opened[0].header.get("left_out")), counts.result()


class _Times:
    """How many weights 0, 1, ... R sets hold, with both nulls, added up over matrices."""

    def __init__(self, sets: int):
        self.observed, self.chance, self.matched = np.zeros((3, sets + 1))
        self.has_base = False

    def add(self, name: str, sets: Sequence[MaskSet], base: Checkpoint | None) -> Tensor:
        """Count one weight; how many sets hold each of its entries."""
        masks = [each[name] for each in sets]
        agree = torch.stack(masks).sum(dim=0, dtype=torch.int16)
        self.observed += torch.bincount(agree.view(-1).to(torch.int64), minlength=len(sets) + 1).numpy()
        weight = None
        if base is not None:
            weight, self.has_base = base.read(name), True
            sets[0].check_weight(name, weight, base.ref)
        for piece in sets[0].pieces(name):
            parts = [take(mask, piece.cut) for mask in masks]
            self.chance += parts[0].numel() * _poisson_binomial([float(part.float().mean()) for part in parts])
            if weight is not None:
                runs = Consensus(magnitude_code(take(weight, piece.cut)))
                for part in parts:
                    runs.update(part)
                self.matched += runs.result(name=piece.name).times_matched.numpy()
        return agree

    def result(self) -> dict[str, Any]:
        """The counts as plain data."""
        found = {"times": [int(count) for count in self.observed], "times_chance": self.chance.tolist()}
        return found | ({"times_matched": self.matched.tolist()} if self.has_base else {})


def _poisson_binomial(chances: Sequence[float]) -> np.ndarray:
    """Distribution of the number of heads among independent coins.

    >>> _poisson_binomial([0.5, 0.5]).tolist()
    [0.25, 0.5, 0.25]
    """
    found = np.ones(1)
    for chance in chances:
        found = np.convolve(found, [1 - chance, chance])
    return found
