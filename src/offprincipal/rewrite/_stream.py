"""Stored tensors through a function of canonical ones into a new checkpoint: one tensor in memory, and one shard."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import xxhash
from torch import Tensor

from offprincipal.checkpoint import Source, columns_of, read_whole
from offprincipal.measurement import content_hash
from offprincipal.names import Cut, Piece
from offprincipal.rotations import round_to
from offprincipal.writer import Writer

Edit = Callable[[Piece, Tensor, torch.dtype], Tensor | None]
"""From a canonical tensor in its stored type, and the type wanted, to what replaces it; None to leave it as it is.

The result has the wanted type, or a wider one where an edit needs it.
"""

Progress = Callable[[int, int, str], None]
"""Called after each tensor with how many are done, how many there are, and the name of this one."""

SHARD_BYTES = 2_000_000_000
"""Size of a shard, and so about the memory of a rewrite (*ours*; save_pretrained's 5 GB would need as much)."""


@dataclass(frozen=True)
class Item:
    """One tensor to be written: its name, where it comes from, and the canonical tensors in it (none: a constant)."""

    name: str
    source: Source
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Job:
    """A checkpoint to be written.

    Attributes:
        items: what is written, in any order.
        edit: what is done to each canonical tensor.
        dtype: of every weight written; None keeps each tensor's own.
        key: what makes this job this one.
    """

    items: Sequence[Item]
    edit: Edit
    dtype: torch.dtype | None
    key: Mapping[str, Any]


def write_folder(job: Job, out: Path, beside: Callable[[str], None], progress: Progress | None, shard: int) -> None:
    """Write a job into a folder. Safe to stop and run again.

    The weights get their names last: until then the folder is no checkpoint, whatever lies beside them.

    Args:
        job: what to write.
        out: the folder.
        beside: writes the files beside the weights; called with the hash of what was read.
        progress: called after each tensor.
        shard: bytes of a shard.

    Raises:
        InputError: a file has gone or changed, a weight is too large for its new type, or the folder cannot be
            written or holds something else.
    """
    with Writer(out, job.key, shard_bytes=shard) as writer:
        beside(_stream(job, writer, progress))
        writer.finish()


def _stream(job: Job, writer: Writer, progress: Progress | None) -> str:
    """Write every item; those that the writer has already are only read, for their content. Returns its hash."""
    contents: dict[str, str] = {}
    with ThreadPoolExecutor(2) as aside:  # reading and hashing let other threads run
        for done, (item, tensor) in enumerate(_read_ahead(sorted(job.items, key=_place), aside), start=1):
            content = aside.submit(content_hash, tensor)
            if item.name not in writer:
                writer.add(item.name, rewritten(item, tensor, job))
            contents[item.source.info.name] = content.result()
            if progress:
                progress(done, len(job.items), item.name)
    digest = xxhash.xxh3_128()
    for name in sorted(contents):
        digest.update(f"{name} {contents[name]}\n".encode())
    return digest.hexdigest()


def rewritten(item: Item, stored: Tensor, job: Job) -> Tensor:
    """The stored tensor with each of its canonical tensors replaced; the input is left as it is."""
    if not item.pieces:
        return stored  # a constant keeps its type
    dtype = job.dtype or stored.dtype
    if len(item.pieces) == 1 and not item.pieces[0].cut.transposed:
        replaced = job.edit(item.pieces[0], stored.view(item.pieces[0].shape), dtype)
        return round_to(stored, dtype) if replaced is None else replaced.view(stored.shape)
    result: Tensor | None = None
    for piece in item.pieces:
        replaced = job.edit(piece, take(stored, piece), dtype)
        if replaced is not None:
            result = round_to(stored, replaced.dtype).clone() if result is None else result
            put(result, piece.cut, replaced)
    return round_to(stored, dtype) if result is None else result


def take(stored: Tensor, piece: Piece) -> Tensor:
    """The canonical tensor out of a stored one, contiguous."""
    rows = _as_rows(stored, piece.cut)
    parts = [rows[first:last] for first, last in piece.cut.runs()]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(piece.shape).contiguous()


def put(stored: Tensor, cut: Cut, tensor: Tensor) -> None:
    """The inverse of `take`, in place."""
    rows, taken = _as_rows(stored, cut), 0
    for first, last in cut.runs():
        rows[first:last] = tensor[taken : taken + last - first].reshape(last - first, -1)
        taken += last - first


def _as_rows(stored: Tensor, cut: Cut) -> Tensor:
    """A view of the stored tensor as ``[rows, columns]``, of its transpose where the cut says so."""
    return stored.T if cut.transposed else stored.view(-1, columns_of(stored.shape))


def _place(item: Item) -> tuple[str, int, str]:
    """Where the tensor lies, so that files are read from front to back."""
    info = item.source.info
    return PurePosixPath(info.file).name, info.start, item.name


def _read_ahead(items: Sequence[Item], aside: ThreadPoolExecutor) -> Iterator[tuple[Item, Tensor]]:
    """Each item with its stored tensor; the next one is read meanwhile."""
    following = aside.submit(read_whole, items[0].source)
    for index, item in enumerate(items):
        tensor = following.result()
        if index + 1 < len(items):
            following = aside.submit(read_whole, items[index + 1].source)
        yield item, tensor
