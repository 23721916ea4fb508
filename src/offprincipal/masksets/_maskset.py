"""A mask set on disk: the header at once, each mask when it is asked for."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from offprincipal.checkpoint import Checkpoint, open_checkpoint
from offprincipal.errors import InputError
from offprincipal.masksets._files import Entry, count_of, read_set
from offprincipal.masksets._layout import take
from offprincipal.measurement import content_hash
from offprincipal.names import Piece, locate


@dataclass(frozen=True)
class MaskSet:
    """Boolean masks for the weights of one base checkpoint, one bit per weight on disk, read one by one.

    Attributes:
        path: the folder or file.
        header: what is known without loading a mask, as plain data: ``rule``, ``base``, ``tensors`` (shape, ones and
            hashes of each), ``ones``, ``entries``, ``density``, ``left_out``, ``schema_version``.
        entries: the masks by the names of their weights.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from offprincipal.masksets import save_masks
    >>> with TemporaryDirectory() as folder:
    ...     masks = save_masks(folder, {"w": torch.tensor([[True, False]])})
    ...     print(masks.names, masks.density("w"), masks["w"])
    ('w',) 0.5 tensor([[ True, False]])
    """

    path: Path
    header: Mapping[str, Any]
    entries: Mapping[str, Entry]

    @classmethod
    def open(cls, path: "str | Path | MaskSet") -> "MaskSet":
        """Open a folder or a ``.safetensors`` file by its headers; no mask is read.

        Raises:
            InputError: nothing is there, it is no mask set, it is damaged, or another schema version wrote it.
        """
        if isinstance(path, MaskSet):
            return path
        return cls(Path(path), *read_set(Path(path), f"open mask set {str(path)!r}"))

    @property
    def names(self) -> tuple[str, ...]:
        """The stored names of the masked weights, as in the base checkpoint."""
        return tuple(self.entries)

    def __getitem__(self, name: str) -> Tensor:
        """The mask of this weight: bool, of its stored shape, in memory of its own.

        Raises:
            InputError: the set has no such mask, or its file is damaged.
        """
        return self._entry(name).load()

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight as its checkpoint stores it."""
        return self._entry(name).shape

    def ones(self, name: str) -> int:
        """How many entries of a weight the mask holds."""
        return self._entry(name).ones

    def density(self, name: str | None = None) -> float:
        """The share of a weight's entries in the mask; without a name that of all masked weights together."""
        if name is None:
            return self.header["density"]
        record = self._entry(name)
        return record.ones / max(count_of(record.shape), 1)

    def pieces(self, name: str) -> tuple[Piece, ...]:
        """The canonical matrices of a stored weight, with their places: several where the family fuses them."""
        return locate(name, self.shape(name), self.header["base"].get("config") or {})

    def matrices(self, name: str) -> Iterator[tuple[Piece, Tensor]]:
        """Those matrices with their masks, in canonical layout.

        Raises:
            InputError: as for reading the mask.
        """
        mask = self[name]
        for piece in self.pieces(name):
            yield piece, take(mask, piece.cut)

    def named(self) -> dict[str, Any]:
        """How a set that is made from this one refers to it: path, rule, and a sha256 of shapes and masks."""
        content = json.dumps(self.header["tensors"], sort_keys=True).encode()
        return {"ref": str(self.path), "rule": self.header["rule"], "sha256": hashlib.sha256(content).hexdigest()}

    def check_like(self, other: "MaskSet", asked: str) -> None:
        """Refuse two sets that are not masks of the same weights.

        Raises:
            InputError: a name, a shape or the content of a base weight differs.
        """
        both = f"{str(self.path)!r} and {str(other.path)!r}"
        apart = sorted(set(self.names) ^ set(other.names))
        if apart:
            found = f"{both} hold masks for different weights ({apart[0]!r} is in one only, {len(apart)} in all)"
            raise InputError(asked, found, "build both with the same --include-all, for one base")
        for name, record in self.entries.items():
            partner = other.entries[name]
            if record.shape != partner.shape:
                found = f"{name!r} is {list(record.shape)} in one of {both} and {list(partner.shape)} in the other"
                raise InputError(asked, found, "give masks of one base")
            if record.base_xxh3 and partner.base_xxh3 and record.base_xxh3 != partner.base_xxh3:
                found = f"{both} were made for bases with other values of {name!r}"
                raise InputError(asked, found, "give masks of one base")

    def check_base(self, checkpoint: "Checkpoint | str | Path") -> None:
        """Refuse masks that were made for another base. Reads every masked weight once, one at a time.

        Nothing is read where both sides name one commit of one repository of the Hub. Masks that were saved without
        a base know no content: then names and shapes have to do.

        Raises:
            InputError: a name or shape differs, or the content of a weight does.
        """
        opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
        self.check_names(opened)
        if self._same_commit(opened):
            return
        for name, record in self.entries.items():
            self.check_weight(name, opened.read(name) if record.base_xxh3 else None, opened.ref)

    def check_names(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint in which a masked weight is missing or has another shape, from headers alone.

        Raises:
            InputError: naming the first such weight.
        """
        for name, record in self.entries.items():
            found = checkpoint.sources[name].info.shape if name in checkpoint.sources else None
            if found != record.shape:
                what = f"has no tensor {name!r}" if found is None else f"has {name!r} in shape {list(found)}"
                raise self._misfit(checkpoint.ref, f"{checkpoint.ref} {what}, the mask is {list(record.shape)}")

    def check_weight(self, name: str, weight: Tensor | None, ref: str) -> None:
        """Refuse one loaded weight that is not the one the mask was made for; None passes.

        Raises:
            InputError: its content differs.
        """
        known = self._entry(name).base_xxh3
        if known and weight is not None and content_hash(weight) != known:
            raise self._misfit(ref, f"the values of {name!r} are others than those of {self.header['base']['ref']!r}")

    def _same_commit(self, checkpoint: Checkpoint) -> bool:
        base = self.header["base"]
        known = base.get("commit") and checkpoint.commit == base["commit"] and checkpoint.kind == "hub"
        return bool(known) and _repository(checkpoint.ref) == _repository(str(base.get("ref")))

    def _misfit(self, ref: str, found: str) -> InputError:
        asked = f"use the masks {str(self.path)!r} with {ref!r}"
        return InputError(asked, found, "give the base that they were made for, or build masks for this one")

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            found = f"it has no mask of that name (first name: {next(iter(self.entries), 'none')!r})"
            raise InputError(f"read the mask of {name!r} in {str(self.path)!r}", found, "see offprincipal mask show")
        return self.entries[name]


def _repository(ref: str) -> str:
    return ref.removeprefix("hf://").partition("@")[0]
