"""A reference, its header, one tensor at a time; disk or Hub. A checkpoint is data: safetensors only, no pickle.

Nothing here reads a weight until :meth:`Checkpoint.read` is called.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from offprincipal.checkpoint._header import DTYPES, FLOATS, TensorInfo, read_header
from offprincipal.checkpoint._local import (
    hub_repository,
    read_config,
    read_folder,
)
from offprincipal.checkpoint._quantised import refuse_quantised
from offprincipal.checkpoint._source import HUB_SCHEME, Source, Stored, read_whole
from offprincipal.errors import InputError

__all__ = ["DTYPES", "FLOATS", "Checkpoint", "Source", "TensorInfo", "open_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors that can be read one by one, and what is known about them from headers alone.

    Attributes:
        ref: the reference as it was given.
        kind: ``"folder"``, ``"file"``, ``"adapter"`` or ``"hub"``.
        commit: the commit on the Hub, if it is known (a Hub reference, or a snapshot in the Hub's cache).
        sources: where each tensor comes from, in the order of the names.
        config: ``config.json``, empty if there is none.
    """

    ref: str
    kind: str
    commit: str | None
    sources: Mapping[str, Source]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """What the headers say, in the order of the names."""
        return {name: source.info for name, source in self.sources.items()}

    def read(self, name: str) -> Tensor:
        """One tensor in its stored shape and dtype (an adapted weight: float32). Memory of its own, nothing mapped.

        Raises:
            InputError: no tensor of this name, or its file has gone or changed.
        """
        if name not in self.sources:
            raise InputError(
                f"read tensor {name!r}", f"{self.ref} has no tensor of that name", "see offprincipal inspect"
            )
        return read_whole(self.sources[name])

    def identity(self) -> str:
        """A hash (hex, 64 digits) that changes when the checkpoint does. Cheap: no weight is read.

        Of a Hub commit it is a function of commit, names, shapes, dtypes and offsets. On disk the size and the time of
        last change of each file stand in for its content, so a copy has another identity than its original.
        """
        digest = hashlib.sha256(str(self.commit).encode())
        touched = [info for source in self.sources.values() for info in source.storage()]
        for info in touched:
            known = [info.name, info.shape, info.dtype, Path(info.file).name, info.start]
            digest.update(json.dumps(known).encode())
        for file in sorted({info.file for info in touched if not info.file.startswith(HUB_SCHEME)}):
            status = os.stat(file)
            digest.update(f"{Path(file).name} {status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()


def open_checkpoint(ref: str | Path, *, offline: bool = False) -> Checkpoint:
    """Open a folder or file by its headers.

    Raises:
        InputError: nothing is there, or what is there breaks a rule of the format.
    """
    asked = f"open checkpoint {str(ref)!r}"
    path = Path(ref)
    if path.is_dir():
        return _open_folder(str(ref), path.resolve(), asked)
    if path.is_file():
        return _open_file(str(ref), path.absolute(), asked)
    raise InputError(asked, "there is no such folder or file", "check the path")


def _open_folder(ref: str, folder: Path, asked: str) -> Checkpoint:
    tensors = read_folder(folder, asked)
    commit = folder.name if hub_repository(folder) else None
    return _checkpoint(ref, "folder", commit, tensors, read_config(folder, asked), asked)


def _open_file(ref: str, file: Path, asked: str) -> Checkpoint:
    if file.suffix != ".safetensors":
        raise InputError(asked, f"{file.name} is not a .safetensors file", "give a folder or a .safetensors file")
    tensors = read_header(file, asked)
    if not tensors:
        raise InputError(asked, "the file holds no tensor", "give a checkpoint with weights")
    return _checkpoint(ref, "file", None, tensors, read_config(file.parent.resolve(), asked), asked)


def _checkpoint(
    ref: str, kind: str, commit: str | None, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], asked: str
) -> Checkpoint:
    refuse_quantised(tensors.values(), config, asked)
    return Checkpoint(ref, kind, commit, {name: Stored(info) for name, info in tensors.items()}, config)
