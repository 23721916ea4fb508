"""Our own reader of safetensors headers: every byte of an untrusted file is checked before it is believed.

The rules are those of the format (https://huggingface.co/docs/safetensors, "Format"): eight bytes of little-endian
length, a JSON object, then a buffer that the tensors cover completely, without holes and without overlap.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from offprincipal.errors import InputError

if TYPE_CHECKING:
    import torch

LARGEST_HEADER = 100_000_000  # bytes; the limit of the reference implementation
LARGEST_SIZE = 2**63 - 1  # torch counts elements in int64
MOST_AXES = 64  # torch's own limit


class Dtype(NamedTuple):
    """A type of the format: what torch calls it, and bytes per element. Headers are read without torch."""

    name: str
    itemsize: int


FLOATS: Mapping[str, Dtype] = {
    "BF16": Dtype("bfloat16", 2),
    "F16": Dtype("float16", 2),
    "F32": Dtype("float32", 4),
    "F64": Dtype("float64", 8),
    "F8_E4M3": Dtype("float8_e4m3fn", 1),
    "F8_E5M2": Dtype("float8_e5m2", 1),
}
DTYPES: Mapping[str, Dtype] = {
    **FLOATS,
    "BOOL": Dtype("bool", 1),
    "U8": Dtype("uint8", 1),
    "I8": Dtype("int8", 1),
    "U16": Dtype("uint16", 2),
    "I16": Dtype("int16", 2),
    "U32": Dtype("uint32", 4),
    "I32": Dtype("int32", 4),
    "U64": Dtype("uint64", 8),
    "I64": Dtype("int64", 8),
    "C64": Dtype("complex64", 8),
}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor.

    ``dtype`` is the code of the format (``"BF16"``); ``start`` and ``stop`` are byte offsets in ``file``, which is an
    absolute path, or ``hf://org/name@commit/file`` for a shard that has not been downloaded.

    >>> TensorInfo("w", (2, 3), "BF16", "/m.safetensors", 64, 76).nbytes
    12
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    start: int
    stop: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same type as torch knows it."""
        import torch

        return getattr(torch, self.torch_name)

    @property
    def torch_name(self) -> str:
        """What torch calls the type, ``"bfloat16"``."""
        return DTYPES[self.dtype].name

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return DTYPES[self.dtype].itemsize

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor once read: elements times element size."""
        return self.count * self.itemsize

    @property
    def is_float(self) -> bool:
        """Whether the elements are floating point numbers, fp8 among them."""
        return self.dtype in FLOATS


class DuplicateKey(ValueError):
    """A JSON object names the same key twice; Python would silently keep the last."""


def parse_json(data: bytes) -> Any:
    """JSON from bytes that nobody vouches for.

    Raises:
        ValueError: not UTF-8, not JSON, a key twice in one object, nested too deeply, or a number beyond reason.

    >>> parse_json(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ...
    offprincipal.checkpoint._header.DuplicateKey: the key 'a' stands twice
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise DuplicateKey(f"the key {key!r} stands twice")
            found[key] = value
        return found

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def header_length(first: bytes, file_size: int, asked: str, where: str) -> int:
    """The length of the header from the first eight bytes of a file, checked against the size of the file."""
    if len(first) < 8:
        raise InputError(
            asked, f"{where} has {len(first)} bytes, too few for a header", "fetch or save the file again"
        )
    length = int.from_bytes(first[:8], "little")
    if length > file_size - 8:
        raise InputError(
            asked,
            f"{where} announces a header of {length:,} bytes and holds {file_size - 8:,} after the length",
            "the file is cut off or is not safetensors: fetch or save it again",
        )
    if length > LARGEST_HEADER:
        raise InputError(
            asked,
            f"{where} announces a header of {length:,} bytes, above the format's limit of {LARGEST_HEADER:,}",
            "give a file written by safetensors",
        )
    return length


def parse_header(data: bytes, file_size: int, asked: str, where: str, file: str) -> dict[str, TensorInfo]:
    """All tensors of one file, in the order of their names.

    Args:
        data: the header, without the eight bytes before it.
        file_size: bytes of the whole file, header included.
        asked: what the user wanted, for the message of an error.
        where: the file as the message should call it.
        file: the path (or ``hf://`` address) that goes into every record.

    Raises:
        InputError: anything that the format forbids.
    """
    try:
        header = parse_json(data)
    except ValueError as problem:  # JSONDecodeError, UnicodeDecodeError and DuplicateKey are all ValueErrors
        raise InputError(
            asked, f"the header of {where} is not valid JSON ({problem})", "fetch or save it again"
        ) from None
    if not isinstance(header, dict):
        raise InputError(asked, f"the header of {where} is not a JSON object", "give a file written by safetensors")
    begin = 8 + len(data)
    tensors = [
        _tensor(name, entry, begin, file_size, asked, where, file)
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    _check_cover(tensors, begin, file_size, asked, where)
    return {tensor.name: tensor for tensor in sorted(tensors, key=lambda tensor: tensor.name)}


def read_header(path: Path, asked: str, where: str, file: str = "") -> dict[str, TensorInfo]:
    """The tensors of a file on disk; nothing but its header is read.

    Args:
        path: the file itself.
        asked: what the user wanted, for the message of an error.
        where: the file as the message should call it.
        file: what goes into every record; the path itself if empty.

    Raises:
        InputError: the file cannot be read, or its header breaks a rule of the format.
    """
    try:
        with path.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = header_length(opened.read(8), size, asked, where)
            data = opened.read(length)
    except OSError as problem:
        raise InputError(
            asked, f"{where} cannot be read ({problem.strerror or problem})", "check the path and its permissions"
        ) from problem
    return parse_header(data, size, asked, where, file or str(path))


def _tensor(name: str, entry: Any, begin: int, file_size: int, asked: str, where: str, file: str) -> TensorInfo:
    """One checked entry of a header."""

    def refuse(found: str) -> InputError:
        return InputError(asked, f"tensor {name!r} in {where} {found}", "the file is damaged: fetch or save it again")

    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise refuse("has a name that is not Unicode text") from None
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise refuse("has no dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise InputError(
            asked,
            f"tensor {name!r} in {where} has the unknown dtype {code!r}",
            f"save it in one of {', '.join(FLOATS)}",
        )
    if not _naturals(shape) or len(shape) > MOST_AXES or math.prod(axis or 1 for axis in shape) > LARGEST_SIZE:
        raise refuse(f"has an impossible shape {str(shape)[:80]}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"has impossible data_offsets {str(offsets)[:80]}")
    info = TensorInfo(name, tuple(shape), code, file, begin + offsets[0], begin + offsets[1])
    if info.stop > file_size:
        raise refuse(f"ends at byte {info.stop:,} and the file at {file_size:,}")
    if info.stop - info.start != info.nbytes:
        raise refuse(f"spans {info.stop - info.start:,} bytes where its shape and dtype need {info.nbytes:,}")
    return info


def _check_cover(tensors: list[TensorInfo], begin: int, file_size: int, asked: str, where: str) -> None:
    """The format wants the whole buffer covered once: no overlap, no hole, nothing hidden at the end."""
    reached = begin
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != reached:
            what = "overlaps the tensor before it" if tensor.start < reached else "leaves a hole before it"
            raise InputError(
                asked, f"tensor {tensor.name!r} in {where} {what}", "the file is damaged: fetch or save it again"
            )
        reached = tensor.stop
    if reached != file_size:
        raise InputError(
            asked,
            f"{where} has {file_size - reached:,} bytes that belong to no tensor",
            "the file is damaged: fetch or save it again",
        )


def _naturals(values: Any) -> bool:
    """Whether this is a list of whole numbers, none negative (and none a bool, which Python counts as a number)."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= LARGEST_SIZE for value in values)
