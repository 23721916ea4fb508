"""Masks that other code has made, saved as a set."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from offprincipal.checkpoint import Checkpoint
from offprincipal.errors import InputError
from offprincipal.masksets._draft import Draft, described, made
from offprincipal.masksets._maskset import MaskSet
from offprincipal.measurement import content_hash


def save_masks(
    folder: str | Path,
    masks: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    *,
    rule: Mapping[str, Any] | None = None,
    base: Checkpoint | None = None,
) -> MaskSet:
    """Save boolean masks by the names of their weights; an iterable is drawn one mask at a time.

    Args:
        folder: of the new set.
        masks: bool tensors in the shapes of the weights.
        rule: how they were chosen, as plain data, with a ``kind``; ``{"kind": "given"}`` if missing.
        base: the checkpoint they are for; without it a later check of the base compares names and shapes alone.

    Raises:
        InputError: a mask is not boolean or does not fit its weight, or the folder is in use or holds something else.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_masks(folder, {"w": torch.tensor([True, False, False, False])}).density()
    0.25
    """
    asked, names = f"save masks into {str(folder)!r}", []
    about = described(base) if base else {"ref": None, "commit": None, "identity": None, "config": {}}
    with Draft(folder, rule or {"kind": "given"}, about, asked) as draft:
        if draft.finished:  # nothing tells whether its masks are these
            raise InputError(asked, "it holds a mask set already", "choose another folder, or delete this one")
        given = masks.items() if isinstance(masks, Mapping) else masks
        for name, mask in cast("Iterable[tuple[str, Tensor]]", given):
            if mask.dtype != torch.bool:
                raise InputError(asked, f"the mask of {name!r} is {mask.dtype}", "give boolean tensors")
            draft.add(name, made(mask, _base_hash(base, name, tuple(mask.shape), asked)))
            names.append(name)
        return draft.finish(names, empty=True)


def _base_hash(base: Checkpoint | None, name: str, shape: tuple[int, ...], asked: str) -> str | None:
    if base is None:
        return None
    if name not in base.sources or base.sources[name].info.shape != shape:
        found = f"{base.ref} has no tensor {name!r} of shape {list(shape)}"
        raise InputError(asked, found, "name the weights as their checkpoint does")
    return content_hash(base.read(name))
