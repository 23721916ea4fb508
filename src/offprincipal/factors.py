"""The factors of base matrices on disk, found again by their bytes.

What it is: one file per base matrix under huggingface_hub's assets cache: all singular values and the leading vectors
in float64, and one byte of masks per weight. What it is not: needed. A missing, cut or foreign file is computed again
and said; a folder that cannot be written is said once per matrix and changes nothing else.

Vectors stay float64: rounded to float32 they would turn by up to 5e-8 rad, half of what the angles promise, and a
second run would differ from a first. With k vectors a matrix takes ``8 k (out + in) + out in`` bytes, and where the
short way of ``measures.carried`` may serve, ``4 short^2`` for its frame.
"""

import json
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import xxhash
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from offprincipal.geometry import Base
from offprincipal.measures.levels import Levels
from offprincipal.measures.spectrum import Factors

log = logging.getLogger(__name__)

ALGORITHM = "gram-eigh-5"
"""Part of every key: change it whenever the numbers or the layout of a file change."""


def fingerprint(weight: Tensor) -> str:
    """128-bit xxh3 of a tensor's dtype, shape, bytes and of `ALGORITHM`, in hex.

    It tells weights apart at the speed of memory (sha256 took a second per gigabyte, twice in every cached run); it is
    no defence against somebody who wants two to look alike.

    >>> fingerprint(torch.zeros(2)) == fingerprint(torch.zeros(2, 1))
    False
    """
    digest = xxhash.xxh3_128(f"{ALGORITHM} {weight.dtype} {tuple(weight.shape)}".encode())
    digest.update(_bytes(weight))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The stored bytes, without a copy where the tensor is contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _default_folder() -> Path:
    return cached_assets_path(library_name="offprincipal", namespace="factors", subfolder=ALGORITHM)


@dataclass(frozen=True)
class FactorCache:
    """A folder of base factors; safe for any number of processes.

    Attributes:
        folder: where the files lie; by default huggingface_hub's assets cache (``HF_ASSETS_CACHE``, ``HF_HOME``).

    A file appears under its name only when it is whole (written beside it, then renamed), so two processes that
    compute the same factors write the same bytes twice and neither sees half of them.
    """

    folder: Path = field(default_factory=_default_folder)

    def fetch(self, before: Tensor, make: Callable[[], Base]) -> Base:
        """What is kept for exactly these bytes, or what `make` returns, which is then kept.

        A file that does not check out (cut short, changed, of other bytes) is reported by a warning and replaced.
        """
        key = fingerprint(before)
        file = self.folder / f"{key}.safetensors"
        if file.exists():
            try:
                return _read(file, key)
            except (OSError, SafetensorError, KeyError, ValueError) as problem:
                log.warning("cached factors %s do not check out (%s); they are computed again", file.name, problem)
        made = make()
        try:
            _write(file, key, made)
        except OSError as problem:
            log.warning("factors cannot be kept in %s (%s); the comparison goes on without", self.folder, problem)
        return made

    def size(self) -> tuple[int, int]:
        """How many files the cache holds and how many bytes they take."""
        sizes = [file.stat().st_size for file in self.folder.glob("*.safetensors")] if self.folder.exists() else []
        return len(sizes), sum(sizes)

    def clear(self) -> int:
        """Remove every file, unfinished ones too; returns the number of bytes freed."""
        freed = 0
        for file in list(self.folder.glob("*.safetensors*")) if self.folder.exists() else []:
            freed += file.stat().st_size
            file.unlink(missing_ok=True)
        return freed


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _write(file: Path, key: str, made: Base) -> None:
    factors, levels = made.factors, made.levels
    tensors = {
        "values": factors.values.cpu().contiguous(),
        "left": factors.left.cpu().contiguous(),
        "right": factors.right.cpu().contiguous(),
        "level": levels.level.contiguous(),
    }
    if factors.frame is not None:
        tensors["frame"] = factors.frame.cpu().contiguous()
    about = {"ranks": levels.ranks, "rank": levels.rank, "ties": levels.ties}
    note = {"key": key, "algorithm": ALGORITHM, "levels": json.dumps(about), "xxh3": _checksum(tensors)}
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")
    try:
        save_file(tensors, unfinished, metadata=note)
        os.replace(unfinished, file)
    except SafetensorError as problem:  # its way of saying that the disk is full
        raise OSError(str(problem)) from problem
    finally:
        unfinished.unlink(missing_ok=True)


def _read(file: Path, key: str) -> Base:
    with safe_open(file, framework="pt") as opened:
        note = opened.metadata() or {}
        if note.get("key") != key or note.get("algorithm") != ALGORITHM:
            raise ValueError("it belongs to other bytes")
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (no mapping)
    if note.get("xxh3") != _checksum(tensors):
        raise ValueError("its contents changed")
    about = json.loads(note["levels"])
    factors = Factors(tensors["values"], tensors["left"], tensors["right"], tensors.get("frame"))
    return Base(factors, Levels(tensors["level"], tuple(about["ranks"]), about["rank"], tuple(about["ties"])))
