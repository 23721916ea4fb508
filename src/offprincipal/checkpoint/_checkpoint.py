"""The record of an opened checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offprincipal.checkpoint._header import TensorInfo
from offprincipal.checkpoint._source import HUB_SCHEME, Source, read_whole
from offprincipal.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors that can be read one by one, and what is known about them from headers alone.

    Attributes:
        ref: the reference as it was given.
        kind: ``"folder"``, ``"file"``, ``"adapter"`` or ``"hub"``.
        commit: the commit on the Hub, if it is known (a Hub reference, or a snapshot in the Hub's cache).
        sources: where each tensor comes from, in the order of the names.
        config: ``config.json``, empty if there is none.
        base_ref: of an adapter, its base: a path, or ``org/name@commit``.
    """

    ref: str
    kind: str
    commit: str | None
    sources: Mapping[str, Source]
    config: Mapping[str, Any] = field(default_factory=dict)
    base_ref: str | None = None

    @cached_property
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

        Raises:
            InputError: a file has gone since the checkpoint was opened.
        """
        on_hub = self.base_ref if self.base_ref and "@" in self.base_ref else None  # of a local path, only the files
        digest = hashlib.sha256(json.dumps([self.commit, on_hub, self.config], sort_keys=True).encode())
        touched = [info for source in self.sources.values() for info in source.storage()]
        for source in self.sources.values():
            digest.update(json.dumps(source.recipe()).encode())
        settled = self.commit is not None and self.kind != "adapter"  # a commit never changes
        for file in sorted({info.file for info in touched if not (settled or info.file.startswith(HUB_SCHEME))}):
            try:
                status = os.stat(file)
            except OSError as problem:
                raise InputError(
                    f"identify checkpoint {self.ref!r}",
                    f"{file} cannot be read ({problem.strerror or problem})",
                    "it changed while in use: start again",
                ) from problem
            digest.update(f"{Path(file).name} {status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()
