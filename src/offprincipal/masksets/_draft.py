"""A mask set in the making: one renamed file per finished mask, then all of them as one set.

The header of a set tells the number of ones and the hashes of every mask, which are known only at the end; so masks
wait in a hidden folder, and a job that was stopped finds them there. What they take is written twice: an eighth of the
weights' bytes at most.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from offprincipal.checkpoint import Checkpoint
from offprincipal.errors import InputError
from offprincipal.masksets._encoding import pack
from offprincipal.masksets._files import HEADER, SCHEMA_VERSION, STEM, count_of
from offprincipal.masksets._maskset import MaskSet
from offprincipal.measurement import content_hash
from offprincipal.store import explained, write_file
from offprincipal.writer import Writer

SHARD_BYTES = 1_000_000_000
"""Size of a shard: the masks of some eight billion weights."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """One finished mask: bits or positions, and its record in the header."""

    stored: Tensor
    record: Mapping[str, Any]


def made(mask: Tensor, base_xxh3: str | None) -> Made:
    """Pack a mask of a weight with this content."""
    stored = pack(mask)
    record = {"shape": list(mask.shape), "ones": int(mask.sum()), "base_xxh3": base_xxh3}
    return Made(stored, record | {"mask_xxh3": content_hash(stored)})


def described(base: Checkpoint) -> dict[str, Any]:
    """What a header says of the base."""
    return {"ref": base.ref, "commit": base.commit, "identity": base.identity(), "config": dict(base.config)}


class Draft:
    """The finished masks of one job in ``out``. A context manager that holds a lock on the folder.

    Args:
        out: folder of the mask set; made if it is missing.
        rule: how the masks are chosen, as plain data: with `base` it makes this job this one.
        base: what the masks are for, as `described`.
        asked: what the user wanted, for the message of an error.

    Raises:
        InputError: the folder cannot be written, holds something else, or another process is building there.
    """

    def __init__(self, out: str | Path, rule: Mapping[str, Any], base: Mapping[str, Any], asked: str):
        self.out, self.asked = Path(out), asked
        self.parts = self.out / f".{STEM}.parts"
        self.job = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, "rule": rule, "base": base}))
        self.finished = None if (self.parts / "job.json").exists() else self._refuse_or_find()
        self._made = not self.out.exists()
        with explained(asked):
            self.parts.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._claim()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the folder; one in which nothing was finished is removed."""
        if self.finished or not any(self.parts.glob("*.safetensors")):
            shutil.rmtree(self.parts, ignore_errors=True)
            if self._made and self.out.is_dir() and not any(self.out.iterdir()):
                self.out.rmdir()
        self._lock.close()

    def __contains__(self, name: str) -> bool:
        return name in self.finished if self.finished else self._get(name) is not None

    def add(self, name: str, mask: Made) -> None:
        """Keep one finished mask.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        write_file(self._file(name), save({"mask": mask.stored}, {"record": json.dumps(mask.record)}))

    def finish(
        self, names: Iterable[str], left_out: Mapping[str, Any] | None = None, *, empty: bool = False
    ) -> MaskSet:
        """Write the set, shard by shard, and remove the parts.

        Raises:
            InputError: no entry of any mask is set (unless `empty`), or the folder cannot be written.
        """
        if self.finished is None:
            records = {name: self._needed(name).record for name in names}
            ones = sum(record["ones"] for record in records.values())
            if not (ones or empty):
                raise InputError(
                    self.asked, "the mask is empty: no weight is in it", "choose another rule or operands"
                )
            entries = sum(count_of(record["shape"]) for record in records.values())
            header = {**self.job, "ones": ones, "entries": entries, "density": ones / entries if entries else 0.0,
                      "left_out": left_out or {}, "tensors": records}  # fmt: skip
            key, metadata = {"rule": self.job["rule"]}, {HEADER: json.dumps(header, separators=(",", ":"))}
            with Writer(self.out, key, stem=STEM, shard_bytes=SHARD_BYTES, metadata=metadata) as writer:
                for name in records:
                    if name not in writer:
                        writer.add(name, self._needed(name).stored)
                writer.finish()
            (self.parts / "job.json").unlink()
            self.finished = MaskSet.open(self.out)
        return self.finished

    def _refuse_or_find(self) -> MaskSet | None:
        """The set of this very job if it is there already; anything else that is there is refused."""
        there = sorted(file.name for file in self.out.glob("*.safetensors*")) if self.out.is_dir() else []
        if not there and not (self.out / "config.json").exists():
            return None
        do_next = "choose another folder with -o, or delete this one"
        if not any(name.startswith(STEM) for name in there):
            found = f"{str(self.out)!r} holds a checkpoint ({there[0] if there else 'config.json'})"
            raise InputError(self.asked, found, do_next)
        found = MaskSet.open(self.out)
        self._refuse_other({key: found.header[key] for key in self.job})
        return found

    def _refuse_other(self, found: Mapping[str, Any]) -> None:
        differing = [key for key in self.job if found.get(key) != self.job[key]]
        if differing:
            was = f"rule {found.get('rule')}, base {(found.get('base') or {}).get('ref')!r}"
            what = f"{str(self.out)!r} holds another mask set (different {', '.join(differing)}): {was}"
            raise InputError(self.asked, what, "choose another folder with -o, or delete this one")

    def _claim(self) -> None:
        """Write down whose parts these are, or refuse those of another job."""
        file = self.parts / "job.json"
        if file.exists():
            try:
                found = json.loads(file.read_text())
            except (OSError, ValueError) as problem:
                raise InputError(self.asked, f"{file} cannot be read ({problem})", "delete the folder") from None
            self._refuse_other(found)
        elif self.finished is None:
            write_file(file, json.dumps(self.job, indent=1).encode())

    def _take_lock(self) -> None:
        import fcntl

        with explained(self.asked):
            self._lock = (self.parts / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            found = f"another process is building masks in {str(self.out)!r} right now"
            raise InputError(self.asked, found, "wait for it, or choose another -o") from None
        except OSError as problem:  # some network file systems have no locks
            _log.warning("cannot lock %s (%s): make sure that nobody else writes there", self.out, problem)

    def _file(self, name: str) -> Path:
        return self.parts / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.safetensors"

    def _get(self, name: str) -> Made | None:
        """The part of this mask, or None if it is not there or does not check out."""
        file = self._file(name)
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                record = json.loads((opened.metadata() or {})["record"])
                stored = opened.get_tensor("mask").clone()
            if content_hash(stored) == record["mask_xxh3"]:
                return Made(stored, record)
            problem: object = "its bytes changed"
        except (OSError, SafetensorError, KeyError, ValueError) as damage:
            problem = damage
        _log.warning("%s is damaged (%s): making the mask of %s again", file, problem, name)
        file.unlink(missing_ok=True)
        return None

    def _needed(self, name: str) -> Made:
        part = self._get(name)
        if part is None:
            found = f"the finished mask of {name!r} has gone from {self.parts}"
            raise InputError(self.asked, found, "run the same command again, it makes only what is missing")
        return part
