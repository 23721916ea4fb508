"""From references to a written folder: open, plan, stream, record; what the public functions have in common."""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from offprincipal.checkpoint import Checkpoint, open_checkpoint
from offprincipal.errors import InputError, UsageError
from offprincipal.names import Piece
from offprincipal.rewrite._anatomy import Anatomy
from offprincipal.rewrite._edits import PairEdit, pair_edit
from offprincipal.rewrite._folder import check_output, copy_companions, write_card, write_record
from offprincipal.rewrite._mapback import map_back_edit
from offprincipal.rewrite._stream import SHARD_BYTES, Item, Job, Progress, write_folder
from offprincipal.rewrite._transform import MATRICES, SCHEMA_VERSION, Transform, read_record
from offprincipal.rewrite._verify import check, verify
from offprincipal.writer import Writer

Plan = Callable[[Anatomy], Transform]
"""From the anatomy of a checkpoint to what is done to it."""


@dataclass(frozen=True)
class Choices:
    """How a checkpoint is written, whatever is done to it.

    Attributes:
        dtype: of every weight written; None keeps each tensor's own.
        verify: prove that the function is preserved (needs transformers, and room for a float64 copy).
        offline: never ask the Hub.
        progress: called after each tensor with done, total and its name.
        command: the command line to be recorded.
        shard_bytes: size of a shard, and about the memory needed.
    """

    dtype: torch.dtype | None = None
    verify: bool = False
    offline: bool = False
    progress: Progress | None = None
    command: str | None = None
    shard_bytes: int = SHARD_BYTES


@dataclass(frozen=True)
class _Task:
    """One checkpoint to be written: the job, its record so far, and where its companions come from."""

    job: Job
    record: dict[str, Any]
    companions: Checkpoint
    transform: Transform | None = None
    untied: bool = False


def keep_function(
    base: str | Path,
    out: Path,
    plan: Plan | None,
    options: dict[str, Any],
    layers: Sequence[int] | None,
    seed: int | None,
    choices: Choices,
) -> dict[str, Any]:
    """Write what a plan makes of a checkpoint (without a plan: only another type), and verify it if wanted."""
    source = open_checkpoint(base, offline=choices.offline)
    asked = f"{'transform' if plan else 'round'} {source.ref!r}"
    anatomy = Anatomy(source, asked)
    transform = plan(anatomy) if plan else None
    record = {
        "what": transform.what if transform else "round",
        "options": options,
        "seed": seed,
        "layers": None if layers is None else sorted(set(layers)),
        "base": _described(source),
    }
    check_output(out, [source], asked)
    record = _write(_task(anatomy, transform, record, choices.dtype), out, choices)
    if choices.verify:
        with TemporaryDirectory(dir=out.parent, prefix=".verify-") as wide:
            exact = _task(anatomy, transform, record, torch.float64)
            _write(exact, Path(wide) / "exact", Choices(offline=choices.offline, shard_bytes=choices.shard_bytes))
            record["verify"] = verify(source, Path(wide) / "exact", out, seed or 0)
        write_record(out, record)
        check(record["verify"], out)
    return record


def edit_pair(
    base: str | Path,
    tuned: str | Path,
    out: Path,
    function: PairEdit,
    what: tuple[str, dict[str, Any]],
    layers: Sequence[int] | None,
    choices: Choices,
    *,
    every: bool = False,
) -> dict[str, Any]:
    """Write what a function of base and tuned matrices makes of a tuned checkpoint."""
    asked = f"{what[0]} {str(tuned)!r}"
    if choices.verify:
        raise UsageError(asked, "it changes the function, so there is nothing to verify", "leave out verify")
    before = open_checkpoint(base, offline=choices.offline)
    after = open_checkpoint(tuned, base=before, offline=choices.offline)
    check_output(out, [before, after], asked)
    anatomy = Anatomy(after, asked)
    edit = pair_edit(function, before, anatomy, layers, every)
    record = {
        "what": what[0],
        "options": what[1],
        "layers": None if layers is None else sorted(set(layers)),
        "base": _described(before),
        "tuned": _described(after),
    }
    items = [Item(name, source, anatomy.pieces[name]) for name, source in after.sources.items()]
    job = Job(items, edit, choices.dtype, {**record, "dtype": _words(choices.dtype)})
    return _write(_Task(job, record, after), out, choices)


def undo_transform(
    transformed: str | Path, tuned: str | Path, out: Path, base: str | Path | None, choices: Choices
) -> dict[str, Any]:
    """Write a tune of a transformed base in the coordinates of the original."""
    asked = f"map {str(tuned)!r} back"
    if choices.verify:
        raise UsageError(asked, "a tune mapped back is compared, not verified", "leave out verify")
    transform, made = Transform.load(transformed), read_record(Path(transformed))
    recorded = made["base"]["ref"]
    if made["base"]["kind"] == "hub":
        recorded = f"{recorded.partition('@')[0]}@{made['base']['commit']}"
    original = _original(base, recorded, asked, choices.offline)
    start = open_checkpoint(transformed, offline=choices.offline)
    after = open_checkpoint(tuned, base=start, offline=choices.offline)
    check_output(out, [original, start, after], asked)
    anatomy = Anatomy(after, asked)
    edit = map_back_edit(transform, original, start, anatomy, choices.dtype)
    record = {
        "what": "map-back",
        "options": {"undoes": transform.what},
        "base": _described(original),
        "transformed": _described(start),
        "tuned": _described(after),
    }
    items = [Item(name, source, anatomy.pieces[name]) for name, source in after.sources.items()]
    job = Job(items, edit, choices.dtype, {**record, "dtype": _words(choices.dtype)})
    return _write(_Task(job, record, after), out, choices)


def _task(anatomy: Anatomy, transform: Transform | None, record: dict[str, Any], dtype: torch.dtype | None) -> _Task:
    """The job that carries every tensor of a checkpoint into the new coordinates."""
    source = anatomy.checkpoint
    items = [Item(name, each, anatomy.pieces[name]) for name, each in source.sources.items()]
    untied = bool(transform and transform.untied)
    if untied and anatomy.head not in anatomy.named:
        name = anatomy.stored[anatomy.embedding]
        [piece] = anatomy.pieces[name]
        items.append(Item(anatomy.head, source.sources[name], (replace(piece, name=anatomy.head),)))

    def edit(piece: Piece, tensor: Tensor, wanted: torch.dtype) -> Tensor | None:
        if transform is None or piece.name not in transform.actions:
            return None
        try:
            return transform.apply(piece.name, tensor, wanted)
        except InputError as problem:
            raise InputError(f"transform {piece.name}", problem.found, problem.do_next) from problem

    key = {name: record[name] for name in ("what", "options", "seed", "layers", "base")}
    job = Job(items, edit, dtype, {**key, "dtype": _words(dtype)})
    return _Task(job, record, source, transform, untied)


def _write(task: _Task, out: Path, choices: Choices) -> dict[str, Any]:
    """Stream the job; once all shards are whole, write what lies beside them; then name the shards."""
    dtype = task.job.dtype
    record = {
        "schema_version": SCHEMA_VERSION,
        **task.record,
        "dtype": _words(dtype),
        "offprincipal": importlib.metadata.version("offprincipal"),
        "command": choices.command,
    }

    def beside(content: str) -> None:
        read = "tuned" if "tuned" in record else "base"
        record[read] = {**record[read], "content_xxh3": content}
        if task.transform:
            record.update(task.transform.record())
            _write_matrices(out, task.transform, record)
        card = copy_companions(task.companions, out, untied=task.untied, dtype=dtype, offline=choices.offline)
        write_card(out, card, record, task.companions)
        write_record(out, record)

    write_folder(task.job, out, beside, choices.progress, choices.shard_bytes)
    return record


def _write_matrices(out: Path, transform: Transform, record: dict[str, Any]) -> None:
    """The numbers of a transform, whole or not there, and left as they are when they are there."""
    key = {name: record[name] for name in ("what", "options", "seed", "layers")}
    with Writer(out / MATRICES, key, stem=MATRICES, shard_bytes=2**62) as writer:
        for name, tensor in sorted(transform.tensors().items()):
            if name not in writer:
                writer.add(name, tensor)
        writer.finish()


def _original(base: str | Path | None, recorded: str, asked: str, offline: bool) -> Checkpoint:
    try:
        return open_checkpoint(recorded if base is None else base, offline=offline)
    except InputError as problem:
        raise InputError(
            asked, f"the original base cannot be opened: {problem.found}", "give it with --base"
        ) from problem


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    """Which checkpoint this is."""
    return {
        "ref": checkpoint.ref,
        "kind": checkpoint.kind,
        "commit": checkpoint.commit,
        "identity": checkpoint.identity(),
    }


def _words(dtype: torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")
