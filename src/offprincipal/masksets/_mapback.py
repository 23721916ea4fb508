"""Masks of a permuted base in the coordinates of the original one. A rotation carries numbers, not sets of entries."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError, UsageError
from offprincipal.masksets._draft import Draft, described, made
from offprincipal.masksets._layout import put, take
from offprincipal.masksets._maskset import MaskSet
from offprincipal.measurement import content_hash

Progress = Callable[[int, int, str], None]


class Transform(Protocol):
    """What has to be known of a change of coordinates; ``rewrite.Transform`` is one."""

    def exact(self, name: str) -> bool:
        """Whether the entries of this canonical tensor were only moved."""
        ...

    def mask_back(self, name: str, mask: Tensor) -> Tensor:
        """The entries of a canonical tensor where they were before."""
        ...


def map_back(
    masks: "str | Path | MaskSet",
    transformed: str | Path,
    base: str | Path,
    transform: Transform,
    out: str | Path,
    *,
    offline: bool = False,
    progress: Progress | None = None,
) -> MaskSet:
    """Carry masks of a transformed base back to the original base, entry by entry.

    Args:
        masks: masks that were made for `transformed`.
        transformed: the checkpoint that the transform wrote.
        base: the original.
        transform: what wrote it, ``rewrite.Transform.load(transformed)``. It is tried on the weights first: they
            have to come back as those of `base`, bit for bit.
        out: folder of the new set.
        offline: never ask the Hub.
        progress: called before each weight.

    Returns:
        The set, for `base`: it can be compared with any other mask of that base.

    Raises:
        InputError: the three do not belong together, or `out` is in use or holds something else.
        UsageError: a weight was rotated. Carry the run back instead (``offprincipal transform map-back``) and build
            an update mask of the result.
    """
    opened, asked = MaskSet.open(masks), f"map masks back to {str(base)!r}"
    after, before = open_checkpoint(transformed, offline=offline), open_checkpoint(base, offline=offline)
    opened.check_names(after)
    opened.check_names(before)
    _refuse_rotated(opened, transform, asked)
    rule = {"kind": "mapped back", "of": [opened.named()], "transformed": {"ref": after.ref, "commit": after.commit}}
    with Draft(out, rule, described(before), asked) as draft:
        for done, name in enumerate(opened.names):
            if progress:
                progress(done, len(opened), name)
            if name in draft:
                continue
            origin, weight, mask = before.read(name), after.read(name), opened[name]
            opened.check_weight(name, weight, after.ref)
            found = torch.zeros_like(mask)
            for piece in opened.pieces(name):
                if not _same(transform.mask_back(piece.name, take(weight, piece.cut)), take(origin, piece.cut)):
                    problem = f"{piece.name} of {before.ref!r} is not what {after.ref!r} was made from"
                    raise InputError(asked, problem, "give the original base with --base")
                put(found, piece.cut, transform.mask_back(piece.name, take(mask, piece.cut)))
            draft.add(name, made(found, content_hash(origin)))
        if progress:
            progress(len(opened), len(opened), "")
        return draft.finish(opened.names, opened.header.get("left_out"))


def _refuse_rotated(masks: MaskSet, transform: Transform, asked: str) -> None:
    names = [piece.name for name in masks for piece in masks.pieces(name)]
    rotated = [name for name in names if not transform.exact(name)]
    if rotated:
        raise UsageError(
            asked,
            f"{len(rotated)} of {len(names)} matrices were rotated (first {rotated[0]!r}), and a rotation carries "
            "numbers, not a set of entries",
            "carry the run back (offprincipal transform map-back), then: offprincipal mask build BASE MAPPED",
        )


def _same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same bytes."""
    return left.dtype == right.dtype and left.shape == right.shape and content_hash(left) == content_hash(right)
