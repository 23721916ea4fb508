"""A mask set on disk: the header at once, each mask when it is asked for."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from offprincipal.checkpoint import Checkpoint, Source, TensorInfo, open_checkpoint
from offprincipal.checkpoint._folder import Folder
from offprincipal.checkpoint._header import parse_json, read_header
from offprincipal.checkpoint._listing import read_tensors
from offprincipal.checkpoint._source import Stored, read_whole
from offprincipal.errors import InputError
from offprincipal.masksets._encoding import unpack
from offprincipal.masksets._layout import take
from offprincipal.measurement import content_hash
from offprincipal.names import Piece, locate

SCHEMA_VERSION = 1
"""Version of the header. It grows when an older reader would misread a file."""

HEADER = "offprincipal.masks"
"""The metadata entry of every file of a mask set: the header of the whole set, as JSON."""

STEM = "masks"
"""Files are ``masks.safetensors``, or shards ``masks-00001-of-0000N.safetensors`` with an index."""


@dataclass(frozen=True)
class Entry:
    """One mask of a set: what the header says of it, and where its bits lie. Small and picklable."""

    name: str
    shape: tuple[int, ...]
    ones: int
    base_xxh3: str | None
    mask_xxh3: str
    source: Source

    def stored(self) -> Tensor:
        """The bits or positions as they lie in the file.

        Raises:
            InputError: the file has gone, is shorter than before, or holds other bytes than its header promises.
        """
        values = read_whole(self.source)
        if content_hash(values) != self.mask_xxh3:
            raise self._damaged("its bytes are not those that its header promises")
        return values

    def load(self) -> Tensor:
        """The boolean mask in the weight's stored shape.

        Raises:
            InputError: as for `stored`, or what is stored is no mask of this shape.
        """
        try:
            mask = unpack(self.stored(), self.shape)
        except ValueError as problem:
            raise self._damaged(str(problem)) from None
        if int(mask.sum()) != self.ones:
            raise self._damaged(f"it has {int(mask.sum()):,} ones and its header promises {self.ones:,}")
        return mask

    def _damaged(self, found: str) -> InputError:
        where = f"{self.source.info.file}: {found}"
        return InputError(f"read the mask of {self.name!r}", where, "the file is damaged: build it again")


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
        path, asked = Path(path), f"open mask set {str(path)!r}"
        if not path.exists():
            raise InputError(
                asked, "there is no such folder or file", "check the path, or see offprincipal mask build"
            )
        tensors = read_tensors(Folder(path.resolve(), asked), asked) if path.is_dir() else read_header(
            path, asked, path.name, str(path.absolute())
        )  # fmt: skip
        header = _read_metadata(tensors, asked)
        return cls(path, header, _entries(header, tensors, asked))

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


def count_of(shape: tuple[int, ...]) -> int:
    """Entries of a tensor of this shape."""
    count = 1
    for axis in shape:
        count *= axis
    return count


def _repository(ref: str) -> str:
    return ref.removeprefix("hf://").partition("@")[0]


def _read_metadata(tensors: Mapping[str, TensorInfo], asked: str) -> dict[str, Any]:
    """The header of the set, from the metadata of its first file; every file has to carry the same."""
    texts = set()
    for file in sorted({info.file for info in tensors.values()}):
        try:
            with safe_open(file, framework="pt") as opened:
                texts.add((opened.metadata() or {}).get(HEADER))
        except (SafetensorError, OSError) as problem:
            raise InputError(asked, f"{file} cannot be read ({problem})", "build it again") from None
    if None in texts or not texts:
        raise InputError(asked, f"its files carry no {HEADER!r}: they hold something else", "give a mask set")
    if len(texts) > 1:
        raise InputError(asked, "its files belong to different mask sets", "build it again into an empty folder")
    try:
        header = parse_json(texts.pop().encode())
    except ValueError as problem:
        raise InputError(asked, f"its header is not valid JSON ({problem})", "build it again") from None
    version = header.get("schema_version") if isinstance(header, dict) else None
    if version != SCHEMA_VERSION:
        found = f"it has schema version {version}, this program reads {SCHEMA_VERSION}"
        raise InputError(asked, found, "build it again, or use the program that wrote it")
    return header


def _entries(header: Mapping[str, Any], tensors: Mapping[str, TensorInfo], asked: str) -> dict[str, Entry]:
    """The masks that header and files agree about."""
    records = header.get("tensors")
    whole = isinstance(records, dict) and isinstance(header.get("base"), dict) and isinstance(header.get("rule"), dict)
    if not whole or records.keys() != tensors.keys():
        raise InputError(asked, "its header does not list the masks that its files hold", "build it again")
    found = {}
    for name, record in records.items():
        info = tensors[name]
        try:
            shape, ones = tuple(map(int, record["shape"])), int(record["ones"])
            hashes = record["base_xxh3"], str(record["mask_xxh3"])
        except (KeyError, TypeError, ValueError):
            raise InputError(asked, f"its header says too little of {name!r}: {json.dumps(record)[:80]}",
                             "build it again") from None  # fmt: skip
        expected = {"U8": -(-count_of(shape) // 8), "I32": ones, "I64": ones}.get(info.dtype)
        if len(info.shape) != 1 or info.count != expected or not 0 <= ones <= count_of(shape):
            stored = f"{info.dtype} {list(info.shape)}"
            raise InputError(asked, f"{name!r} is stored as {stored}, no mask of {ones:,} ones in {list(shape)}",
                             "build it again")  # fmt: skip
        found[name] = Entry(name, shape, ones, *hashes, Stored(info))
    return found
