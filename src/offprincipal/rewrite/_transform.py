"""A change of coordinates of a whole model: which axis of which tensor changes how, and its inverse. Kept on disk."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from offprincipal.errors import InputError, UsageError
from offprincipal.rotations import AxisChange, Order, Stretch, Turn, round_to

RECORD, MATRICES = "transform.json", "transform"
"""Beside the weights: what was done in words and lists, and its numbers in ``transform/transform.safetensors``.

The numbers lie in a folder of their own, since some programs take every .safetensors file beside a model for weights.
"""

SCHEMA_VERSION = 1
CHUNK = 2**22
"""Entries carried at once in float64, so that an embedding needs no float64 copy of itself (*ours*)."""


@dataclass(frozen=True)
class Action:
    """The changes of one tensor's axes by key, first to last; a key after a minus sign is undone."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Transform:
    """What a function-preserving transform does to each canonical tensor.

    Attributes:
        what: rotate, permute or rotate-residual.
        changes: key to change. Keys begin with the kind: ``turn.``, ``order.`` or ``stretch.``.
        actions: canonical name to action; a tensor that is not named stays as it is.
        untied: the output head, tied to the embedding before, has weights of its own.
    """

    what: str
    changes: Mapping[str, AxisChange]
    actions: Mapping[str, Action]
    untied: bool = False

    def exact(self, name: str) -> bool:
        """Whether this tensor's entries are only moved (or not even that)."""
        action = self.actions.get(name, Action())
        return all(self.changes[key.lstrip("-")].exact for key in (*action.rows, *action.columns))

    def apply(self, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor in the new coordinates, rounded once to ``dtype``. Shape ``[out, in]`` or ``[n]``.

        Raises:
            InputError: a weight is too large for the type.
            UsageError: a change does not fit the tensor's axis.
        """
        action = self.actions.get(name, Action())
        rows, columns = [self._change(key) for key in action.rows], [self._change(key) for key in action.columns]
        return _carry(weight, rows, columns, dtype)

    def undo(self, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The inverse of `apply`. Both are linear, so that a difference of two weights is carried alike."""
        action = self.actions.get(name, Action())
        rows = [self._change(key).inverse() for key in reversed(action.rows)]
        columns = [self._change(key).inverse() for key in reversed(action.columns)]
        return _carry(weight, rows, columns, dtype)

    def mask_back(self, name: str, mask: Tensor) -> Tensor:
        """A mask of the transformed model in the coordinates of the original: entries are put back where they were.

        Args:
            name: canonical, as in the tables of a comparison.
            mask: bool, in the shape of the tensor.

        Raises:
            UsageError: the tensor was rotated; a rotation mixes entries, and a set of them has no image.
        """
        if not self.exact(name):
            raise UsageError(
                f"map the mask of {name!r} back",
                "the tensor was rotated, and a rotation carries numbers, not a set of entries",
                "map the checkpoint back (offprincipal transform map-back) and take the mask of the result",
            )
        return self.undo(name, mask, mask.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The numbers of all changes, by key."""
        return {key: _numbers(change) for key, change in self.changes.items()}

    def record(self) -> dict[str, Any]:
        """What `load` needs beside the numbers."""
        actions = {name: {"rows": a.rows, "columns": a.columns} for name, a in self.actions.items()}
        return {"what": self.what, "untied": self.untied, "actions": actions}

    @staticmethod
    def load(folder: str | Path) -> "Transform":
        """The transform that wrote this folder.

        Raises:
            InputError: no transform is described there, or it is damaged, or not one that can be undone.
        """
        record = read_record(Path(folder))
        asked = f"read the transform of {str(folder)!r}"
        if "actions" not in record:
            found = f"{record.get('what')} is no change of coordinates and cannot be undone"
            raise InputError(asked, found, "give a folder that transform rotate or permute wrote")
        try:
            numbers = load_file(Path(folder) / MATRICES / f"{MATRICES}.safetensors")
            changes = {key: _change(key, tensor) for key, tensor in numbers.items()}
            actions = {name: Action(tuple(a["rows"]), tuple(a["columns"])) for name, a in record["actions"].items()}
            used = {key.lstrip("-") for a in actions.values() for key in (*a.rows, *a.columns)}
            if missing := used - changes.keys():
                raise KeyError(f"no {min(missing)}")
            return Transform(record["what"], changes, actions, bool(record["untied"]))
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError) as problem:
            raise InputError(asked, f"it is damaged ({problem})", "write that checkpoint again") from problem

    def _change(self, key: str) -> AxisChange:
        return self.changes[key[1:]].inverse() if key.startswith("-") else self.changes[key]


def read_record(folder: Path) -> dict[str, Any]:
    """``transform.json`` of a folder.

    Raises:
        InputError: it is not there, is no record of ours, or has another schema version.
    """
    asked = f"read the transform of {str(folder)!r}"
    advice = "give a folder that offprincipal transform wrote"
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError) as problem:
        raise InputError(asked, f"{RECORD} cannot be read ({problem})", advice) from problem
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise InputError(asked, f"{RECORD} is no record of schema version {SCHEMA_VERSION}", advice)
    return record


def _carry(weight: Tensor, rows: Sequence[AxisChange], columns: Sequence[AxisChange], dtype: torch.dtype) -> Tensor:
    """Change the axes and round; piece by piece along the axis that stays, if one does."""
    if all(change.exact for change in (*rows, *columns)):
        for change in rows:
            weight = change.rows(weight)
        for change in columns:
            weight = change.columns(weight)
        return weight if weight.dtype == dtype else round_to(weight, dtype)
    if (rows and columns) or weight.dim() < 2:
        return _carry_whole(weight, rows, columns, dtype)
    axis = 1 if rows else 0
    carried = torch.empty(weight.shape, dtype=dtype)
    step = max(1, CHUNK // weight.shape[1 - axis])
    for start in range(0, weight.shape[axis], step):
        length = min(step, weight.shape[axis] - start)
        part = weight.narrow(axis, start, length)
        carried.narrow(axis, start, length).copy_(_carry_whole(part, rows, columns, dtype))
    return carried


def _carry_whole(
    weight: Tensor, rows: Sequence[AxisChange], columns: Sequence[AxisChange], dtype: torch.dtype
) -> Tensor:
    carried = weight.double()
    for change in rows:
        carried = change.rows(carried)
    for change in columns:
        carried = change.columns(carried)
    return round_to(carried, dtype)


def _numbers(change: AxisChange) -> Tensor:
    if isinstance(change, Turn):
        return change.blocks
    if isinstance(change, Order):
        return change.index
    assert isinstance(change, Stretch)
    return change.factors


def _change(key: str, numbers: Tensor) -> AxisChange:
    """The change that a file's numbers are, if they are such numbers."""
    kind = key.partition(".")[0]
    if kind == "order" and not torch.equal(numbers.sort()[0], torch.arange(len(numbers))):
        raise TypeError(f"{key} is no order")
    if (kind, numbers.dim()) not in (("turn", 3), ("order", 1), ("stretch", 1)):
        raise TypeError(f"{key} has shape {list(numbers.shape)}")
    return {"turn": Turn, "order": Order, "stretch": Stretch}[kind](numbers)
