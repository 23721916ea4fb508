"""A folder on disk. Nothing that it names may lead out of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from offprincipal.checkpoint._header import TensorInfo, read_header
from offprincipal.errors import InputError


@dataclass(frozen=True)
class Folder:
    """A listing of a folder.

    Attributes:
        path: resolved.
        asked: what the user wanted, for the message of an error.
    """

    path: Path
    asked: str

    def names(self) -> Sequence[str]:
        """The names in the folder, sorted."""
        try:
            return sorted(entry.name for entry in self.path.iterdir())
        except OSError as problem:
            raise self._unreadable("the folder", problem) from problem

    def has(self, file: str) -> bool:
        """Whether the file is there, inside the folder."""
        return inside(self.path, file, self.asked).is_file()

    def small(self, file: str) -> bytes:
        """A small file, whole."""
        try:
            return inside(self.path, file, self.asked).read_bytes()
        except OSError as problem:
            raise self._unreadable(file, problem) from problem

    def headers(self, files: Iterable[str]) -> dict[str, dict[str, TensorInfo]]:
        """The tensors of each weight file."""
        return {file: read_header(inside(self.path, file, self.asked), self.asked, file) for file in files}

    def _unreadable(self, what: str, problem: OSError) -> InputError:
        found = f"{what} cannot be read ({problem.strerror or problem})"
        return InputError(self.asked, found, "check the path and its permissions")


def inside(folder: Path, file: str, asked: str) -> Path:
    """The path of a file of this folder, symbolic links followed, if it stays where it may.

    A plain folder's files must lie inside the folder. A snapshot of the Hub's cache is made of links into the
    repository's own ``blobs``, or through them into the ``blobs`` that all repositories of the cache share.

    Raises:
        InputError: the path leads out.
    """
    repository = hub_repository(folder)
    borders = (repository, repository.parent / "blobs") if repository else (folder,)
    try:
        path = (folder / file).resolve()
        outside = not any(path.is_relative_to(border) for border in borders)
    except (OSError, ValueError, RuntimeError):  # null bytes, endless names, links in a circle
        outside, path = True, folder
    if outside:
        raise InputError(
            asked,
            f"{file[:200]!r} leads out of the folder",
            "a checkpoint may not point elsewhere: put the file itself into the folder",
        )
    return path


def hub_repository(folder: Path) -> Path | None:
    """The cached repository's folder, if this is ``models--org--name/snapshots/<commit>`` of the Hub's cache."""
    repository = folder.parent.parent
    if folder.parent.name == "snapshots" and repository.name.startswith("models--"):
        return repository
    return None
