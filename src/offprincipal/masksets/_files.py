"""The files of a mask set: their header, checked against what they hold, and one mask at a time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from offprincipal.checkpoint import (
    Folder,
    Source,
    Stored,
    TensorInfo,
    parse_json,
    read_header,
    read_tensors,
    read_whole,
)
from offprincipal.errors import InputError
from offprincipal.masksets._encoding import unpack
from offprincipal.measurement import content_hash

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


def count_of(shape: tuple[int, ...]) -> int:
    """Entries of a tensor of this shape."""
    count = 1
    for axis in shape:
        count *= axis
    return count


def read_set(path: Path, asked: str) -> tuple[dict[str, Any], dict[str, Entry]]:
    """The header of a folder or file, and its masks; none is read.

    Raises:
        InputError: nothing is there, it is no mask set, it is damaged, or another schema version wrote it.
    """
    if not path.exists():
        raise InputError(asked, "there is no such folder or file", "check the path, or see offprincipal mask build")
    if path.is_dir():
        tensors = read_tensors(Folder(path.resolve(), asked), asked)
    else:
        tensors = read_header(path, asked, path.name, str(path.absolute()))
    header = _read_metadata(tensors, asked)
    return header, _entries(header, tensors, asked)


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
    records, base, rule = (header.get(key) for key in ("tensors", "base", "rule"))
    whole = isinstance(base, dict) and isinstance(rule, dict) and isinstance(header.get("density"), float)
    if not (whole and isinstance(records, dict) and records.keys() == tensors.keys()):
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
