"""Named tensors to a folder of safetensors shards: streamed, whole or not there, resumable after any stop.

Shards grow in memory up to their size, are written under a hidden folder, and get their final names only when the last
one is whole; until then no reader takes the folder for a checkpoint. A stopped job finds its finished shards again and
goes on after them, so the files are those of a job that was never stopped, byte for byte.
What it is not: a model saver. It knows names, tensors and strings, nothing of configurations.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, TextIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from offprincipal.checkpoint import DTYPES
from offprincipal.errors import InputError, UsageError

SHARD_BYTES = 5_000_000_000
"""Default size of a shard, that of save_pretrained."""

JOB = "offprincipal.job"
"""The metadata entry that says which job wrote a shard."""

_CODES = {getattr(torch, dtype.name): code for code, dtype in DTYPES.items()}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Shard:
    file: Path
    names: tuple[str, ...]
    nbytes: int  # of the tensors, without the header


class Writer:
    """Write tensors one by one into ``folder`` as ``model.safetensors``, or as numbered shards with an index.

    Add the tensors of one job always in the same order and leave out those that are ``in`` the writer: then a job that
    was killed and started again writes the same bytes as one that was not. Memory: the tensors of one shard.

    Args:
        folder: made if it is missing. Until `finish` it holds only the hidden folder ``.model.partial``.
        key: what makes this job this one, as plain data; written into every shard.
        stem: the files are ``<stem>.safetensors`` or ``<stem>-00001-of-0000N.safetensors``.
        shard_bytes: a shard is closed before it exceeds this; a larger tensor gets a shard of its own.
        metadata: strings for the header of every shard, beside ``{"format": "pt"}``.

    Raises:
        InputError: the folder cannot be written, holds files of another job, or another process is writing there.
        UsageError: shards of no size.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, Writer(Path(folder), {"what": "demo"}) as writer:
    ...     if "w" not in writer:
    ...         writer.add("w", torch.ones(2))
    ...     writer.finish()
    ...     print(os.listdir(folder))
    ['model.safetensors']
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        *,
        stem: str = "model",
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping[str, str] | None = None,
    ):
        self._asked = f"write into {str(folder)!r}"
        if shard_bytes < 1:
            raise UsageError(self._asked, f"shards of {shard_bytes} bytes were asked for", "ask for at least 1")
        self.folder, self.stem, self.shard_bytes = folder, stem, shard_bytes
        self._job = {"key": json.loads(json.dumps(key)), "shard_bytes": shard_bytes, "metadata": dict(metadata or {})}
        self._metadata = {"format": "pt", **(metadata or {}), JOB: json.dumps(self._job, sort_keys=True)}
        self._partial = folder / f".{stem}.partial"
        self._made = not folder.exists()
        self._pending: dict[str, Tensor] = {}
        self._lock = self._take_lock()
        try:
            self._shards = self._finished_shards()
        except BaseException:
            self.close()
            raise
        self._done = {name for shard in self._shards for name in shard.names}

    def __contains__(self, name: str) -> bool:
        """Whether the tensor is in a finished shard of this job: skip it."""
        return name in self._done

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; a shard is written when the next would exceed its size.

        The tensor is copied if it is a view or lies elsewhere than in main memory, else kept until its shard is
        written: do not change it afterwards.

        Raises:
            InputError: the disk is full or the folder cannot be written; nothing half-written stays.
            UsageError: the name was added before, or safetensors has no such dtype.
        """
        if name in self._done or name in self._pending:
            raise UsageError(f"write tensor {name!r}", "it was added before", "add each name once")
        if tensor.dtype not in _CODES:
            raise UsageError(f"write tensor {name!r}", f"safetensors has no {tensor.dtype}", "cast it first")
        waiting = sum(each.nbytes for each in self._pending.values())
        if self._pending and waiting + tensor.nbytes > self.shard_bytes:
            self._flush()
        self._pending[name] = _owned(tensor)

    def finish(self) -> None:
        """Write the last shard and give all shards their names. From here on the folder is a checkpoint.

        The index comes first, so that a folder stopped between two renames is refused by readers, not read as a
        smaller checkpoint.

        Raises:
            InputError: as for `add`.
            UsageError: no tensor was ever added.
        """
        if self._pending:
            self._flush()
        total = len(self._shards)
        if not total:
            raise UsageError(self._asked, "no tensor was added", "add at least one before finish")
        numbered = [f"{self.stem}-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)]
        files = [self.folder / name for name in (numbered if total > 1 else [f"{self.stem}.safetensors"])]
        with _explained(self._asked):
            if total > 1:
                self._write_index(files)
            for shard, file in zip(self._shards, files, strict=True):
                os.replace(shard.file, file)
        self._shards = [_Shard(file, s.names, s.nbytes) for s, file in zip(self._shards, files, strict=True)]
        self.close()

    def close(self) -> None:
        """Let go of the folder. Finished shards stay for the next start; what was not yet in one is dropped."""
        self._pending.clear()
        if self._lock.closed:
            return
        if not any(self._partial.glob("*.safetensors")):
            shutil.rmtree(self._partial, ignore_errors=True)
            if self._made and not any(self.folder.iterdir()):
                self.folder.rmdir()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flush(self) -> None:
        """Write the pending tensors as the next shard, under a temporary name, then rename it."""
        file = self._partial / f"{len(self._shards) + 1:05d}.safetensors"
        temporary = file.with_suffix(".tmp")
        with _explained(f"write {str(file)!r}"):
            try:
                with temporary.open("wb") as opened:
                    nbytes = _write_shard(opened, self._pending, self._metadata)
                os.replace(temporary, file)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        self._shards.append(_Shard(file, tuple(self._pending), nbytes))
        self._done |= self._pending.keys()
        self._pending.clear()

    def _write_index(self, files: list[Path]) -> None:
        places = {name: file.name for shard, file in zip(self._shards, files, strict=True) for name in shard.names}
        index = {"metadata": {"total_size": sum(shard.nbytes for shard in self._shards)}, "weight_map": places}
        temporary = self._partial / "index.tmp"
        temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        os.replace(temporary, self.folder / f"{self.stem}.safetensors.index.json")

    def _take_lock(self) -> TextIO:
        """The open lock file. Whoever finishes removes it, so a lock on a file that has gone is taken again."""
        import fcntl

        while True:
            with _explained(self._asked):
                self._partial.mkdir(parents=True, exist_ok=True)
                path = self._partial / "lock"
                lock = path.open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                found = "another process is writing into it right now"
                raise InputError(self._asked, found, "wait for it, or choose another -o") from None
            except OSError as problem:  # some network file systems have no locks
                _log.warning("cannot lock %s (%s): make sure that nobody else writes there", self.folder, problem)
                return lock
            if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                return lock
            lock.close()

    def _finished_shards(self) -> list[_Shard]:
        """What an earlier start of this job finished, in order; leftovers of a killed one are removed."""
        for file in self._partial.glob("*.tmp"):
            file.unlink()
        named = [
            *self.folder.glob(f"{self.stem}.safetensors"),
            *self.folder.glob(f"{self.stem}-?????-of-?????.safetensors"),
        ]
        index = self.folder / f"{self.stem}.safetensors.index.json"
        if index.exists() and not named and not any(self._partial.glob("*.safetensors")):
            raise self._foreign(f"it holds {index.name} of another checkpoint")
        found = {_number(file): self._read_shard(file) for file in sorted(named)}
        for file in sorted(self._partial.glob("*.safetensors")):
            try:
                found[_number(file)] = self._read_shard(file)
            except SafetensorError as problem:
                _log.warning("%s is damaged (%s): writing it again", file, problem)
                file.unlink()
        whole = [found[number] for number in range(1, len(found) + 1) if number in found]
        for later in found.keys() - set(range(1, len(whole) + 1)):  # behind a damaged one: their names would repeat
            found[later].file.unlink()
        return whole

    def _read_shard(self, file: Path) -> _Shard:
        """A shard by its header, if it is of this job."""
        try:
            with safe_open(file, framework="pt") as opened:
                names, metadata = tuple(opened.keys()), opened.metadata() or {}
        except SafetensorError:
            if file.parent == self._partial:
                raise
            raise self._foreign(f"it holds a damaged {file.name}") from None
        if JOB not in metadata:
            raise self._foreign(f"it holds {file.name}, which another program wrote")
        job = json.loads(metadata[JOB])
        if job != self._job:
            differing = ", ".join(_differing(job, self._job))
            raise self._foreign(f"it holds {file.name} of another job (different {differing})")
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
        return _Shard(file, names, file.stat().st_size - 8 - header)

    def _foreign(self, found: str) -> InputError:
        return InputError(self._asked, found, "choose another folder with -o, or delete this one")


def _owned(tensor: Tensor) -> Tensor:
    """The tensor in main memory, contiguous, and holding on to no larger storage."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _write_shard(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """One safetensors file; the bytes of its tensors are returned.

    By hand, because the library's own writer puts the metadata in random order: equal jobs would not write equal
    files. The rest is as the library does it: widest dtype first, then by name, and the header padded to 8 bytes.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    reached = 0
    for name in order:
        tensor = tensors[name]
        stop = reached + tensor.nbytes
        entry = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [reached, stop]}
        header[name], reached = entry, stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return reached


def _number(file: Path) -> int:
    """1 of ``00001.safetensors``, of ``model-00001-of-00003.safetensors`` and of ``model.safetensors``."""
    parts = file.stem.rsplit("-of-", 1)[0].rsplit("-", 1)
    return int(parts[-1]) if parts[-1].isdigit() else 1


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterable[str]:
    """The entries in which two jobs differ, those of the key by their own names."""
    one, two = (
        {**job["key"], "shard_bytes": job["shard_bytes"], "metadata": job["metadata"]} for job in (found, wanted)
    )
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


@contextmanager
def _explained(asked: str) -> Iterator[None]:
    """Turn the operating system's refusal to write into ours."""
    try:
        yield
    except OSError as problem:
        found = f"the system says: {problem.strerror or problem}"
        raise InputError(asked, found, "free space, check permissions, or choose another -o") from problem
