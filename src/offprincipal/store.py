"""Finished work on disk: one renamed file per tensor. Resuming means listing a folder.

A part holds what was measured on one tensor in every run, as compressed JSON (Python writes floats so that they read
back bit for bit). It gets its final name only when it is whole; gzip's checksum catches one that was torn all the
same, and such a part is measured again.
"""

import gzip
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offprincipal.errors import InputError

SCHEMA_VERSION = 1
"""Version of parts, tables and summary. It grows when an older reader would misread them."""

_log = logging.getLogger(__name__)


class Store:
    """The parts of one comparison in ``DIR/parts``, keyed by what is compared and how.

    Args:
        directory: the comparison's folder; made if it is missing.
        key: what makes this comparison this one, as plain data; `Store` writes it down and refuses another.

    Raises:
        InputError: the folder cannot be written, or holds another comparison, or parts of another schema version.
    """

    def __init__(self, directory: Path, key: dict[str, Any]):
        self.directory, self.parts = directory, directory / "parts"
        asked = f"write into {str(directory)!r}"
        with explained(asked):
            self.parts.mkdir(parents=True, exist_ok=True)
        file = self.parts / "comparison.json"
        wanted = {"schema_version": SCHEMA_VERSION, **key}
        if file.exists():
            _refuse_other(asked, _read_key(file, asked), wanted)
        else:
            if (directory / "summary.json").exists():
                raise InputError(asked, "it holds results without their parts", "choose another folder with -o")
            write_file(file, json.dumps(wanted, indent=1).encode())

    def add(self, tensor: str, part: dict[str, Any]) -> None:
        """Keep one finished tensor: written under another name, then renamed.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        content = json.dumps(part, separators=(",", ":")).encode()
        write_file(self._file(tensor), gzip.compress(content, compresslevel=1, mtime=0))

    def get(self, tensor: str) -> dict[str, Any] | None:
        """The part of this tensor, or None if it is not there or was cut short."""
        file = self._file(tensor)
        try:
            return json.loads(gzip.decompress(file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError) as problem:
            _log.warning("%s is damaged (%s): measuring %s again", file, problem, tensor)
            return None

    def __contains__(self, tensor: str) -> bool:
        return self.get(tensor) is not None

    def _file(self, tensor: str) -> Path:
        return self.parts / f"{hashlib.sha256(tensor.encode()).hexdigest()[:24]}.json.gz"

    @contextmanager
    def locked(self, share: str = "all") -> Iterator[None]:
        """Hold this folder (or one share of its work) while working in it; the lock goes with the process.

        Raises:
            InputError: another process is working here.
        """
        import fcntl

        asked = f"write into {str(self.directory)!r}"
        with explained(asked):
            lock = (self.parts / f"{share}.lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    asked, "another process is comparing into it right now", "wait for it, or choose another -o"
                ) from None
            except OSError as problem:  # some network file systems have no locks
                _log.warning("cannot lock %s (%s): make sure that nobody else writes there", self.directory, problem)
            yield


def _read_key(file: Path, asked: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as problem:
        raise InputError(asked, f"{file} cannot be read ({problem})", "delete the folder or choose another") from None
    if not isinstance(found, dict):
        raise InputError(asked, f"{file} is not a comparison's key", "delete the folder or choose another")
    return found


def _refuse_other(asked: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if found.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            asked,
            f"its parts have schema version {found.get('schema_version')}, this program writes {SCHEMA_VERSION}",
            "compare into another folder, or use the program that wrote them",
        )
    wanted = json.loads(json.dumps(wanted))  # tuples become lists, as they do on disk
    differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if differing:
        raise InputError(
            asked,
            f"it holds another comparison (different {', '.join(differing)}): base {found.get('base')!r}, "
            f"runs {found.get('runs')!r}",
            "choose another folder with -o, or delete this one",
        )


@contextmanager
def explained(asked: str) -> Iterator[None]:
    """Turn the operating system's refusal to write into ours.

    Raises:
        InputError: saying what was asked, what the system says, and what to do next.
    """
    try:
        yield
    except OSError as problem:
        raise InputError(
            asked,
            f"the system says: {problem.strerror or problem}",
            "free space, check permissions, or choose another -o",
        ) from problem


def write_file(file: Path, content: bytes) -> None:
    """Write a file whole or not at all: under a temporary name, then renamed.

    Raises:
        InputError: the disk is full, or the folder cannot be written; no half-written file stays.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with explained(f"write {str(file)!r}"):
        try:
            temporary.write_bytes(content)
            os.replace(temporary, file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
