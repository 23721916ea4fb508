"""Tasks in the order of the shards, and a cache that does not grow: an engine for comparisons from the Hub."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from offprincipal.checkpoint import HUB_SCHEME
from offprincipal.errors import InputError
from offprincipal.store import explained, write_file
from offprincipal.task import Task


class Shards:
    """An engine: in this process, shard by shard, so that a file is downloaded when its first tensor is due.

    Args:
        directory: of the comparison; ``downloads.json`` in it lists what may be deleted, so that a run that was
            stopped and started again still knows.
        free: delete each file from the Hub's cache after its last task, if this comparison brought it there.

    Raises:
        InputError: the folder cannot be written, or a file cannot be deleted.
    """

    def __init__(self, directory: Path, *, free: bool):
        self.journal, self.free = directory / "downloads.json", free

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yield one result per task, in the order of the files; after a file's last task the file may go."""
        work = sorted(((files_of(task), task) for task in items), key=lambda each: (each[0], each[1].name))
        left = Counter(file for files, _ in work for file in files)
        own = self._own(left) if self.free else set()
        for file in own - left.keys():
            delete(file)  # of a run that was stopped before it could
        for files, task in work:
            yield function(task)
            left.subtract(files)
            for file in own.intersection(files):
                if not left[file]:
                    delete(file)
        if self.free:
            self.journal.unlink()

    def _own(self, files: Iterable[str]) -> set[str]:
        """What is not in the cache yet, and what an earlier start of this comparison has brought there."""
        missing = {file for file in files if file.startswith(HUB_SCHEME) and cached(file) is None}
        try:
            before = json.loads(self.journal.read_text()) if self.journal.exists() else []
        except (OSError, ValueError) as problem:
            raise InputError(
                f"free what {str(self.journal)!r} lists",
                f"it cannot be read ({problem})",
                "delete it; what was downloaded before then stays in the Hub's cache",
            ) from problem
        own = missing | set(before)
        write_file(self.journal, json.dumps(sorted(own), indent=1).encode())
        return own


def files_of(task: Task) -> list[str]:
    """The files that measuring a task reads, sorted."""
    parts = [part for _, each in task.pairs for part in (each.base, each.tuned)]
    return sorted({info.file for part in parts for info in part.source.storage()})


def cached(address: str) -> Path | None:
    """Where a file of the Hub (``hf://org/name@commit/file``) lies in the Hub's cache, if it does."""
    import huggingface_hub

    repo, _, rest = address.removeprefix(HUB_SCHEME).partition("@")
    commit, _, file = rest.partition("/")
    found = huggingface_hub.try_to_load_from_cache(repo, file, revision=commit)
    return Path(found) if isinstance(found, str) else None


def delete(address: str) -> None:
    """Remove one file from the Hub's cache, and its content unless something else in the cache needs it.

    Raises:
        InputError: it cannot be removed.
    """
    import huggingface_hub
    from huggingface_hub import constants

    link = cached(address)
    if link is None:
        return
    with explained(f"delete {str(link)!r}"):
        known = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
        files = [file for repo in known.repos for revision in repo.revisions for file in revision.files]
        chosen = [file for file in files if file.file_path == link.parent.resolve() / link.name]
        if hasattr(known, "delete_files"):  # from 2.0 on; it knows the content that repositories share
            known.delete_files(*chosen).execute()
            return
        needed = {file.blob_path for file in files if file not in chosen}
        link.unlink()
        for file in chosen:
            if file.blob_path not in needed:
                file.blob_path.unlink(missing_ok=True)
