"""Parts to results: the tables, the summary and what was not compared; and the reader of such a folder."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from offprincipal import tables
from offprincipal.across import consensus_summary, trajectory_summary
from offprincipal.across import table as across_table
from offprincipal.checkpoint import Checkpoint
from offprincipal.errors import InputError
from offprincipal.measures.picture import grid
from offprincipal.pairs import Plan
from offprincipal.schema import CURVES, SCHEMA
from offprincipal.store import SCHEMA_VERSION, Store, explained, write_file
from offprincipal.task import Settings, Task

ACROSS = ("consensus", "pairs", "steps", "paths")
"""Tables of several runs: one row per tensor, per tensor and pair of runs, per tensor and step, per tensor."""

FILES = ("tensors.parquet", "curves.parquet", "unpaired.json", "summary.json")
POINTS = 1 << 20
"""Curve points per row group: what is held in memory at once."""


@dataclass(frozen=True)
class Comparison:
    """A finished comparison in a folder.

    Attributes:
        directory: where the tables lie.
    """

    directory: Path

    @classmethod
    def open(cls, directory: str | Path) -> "Comparison":
        """The comparison in a folder, checked to be whole and of this schema.

        Raises:
            InputError: files are missing, or another version wrote them.
        """
        folder, asked = Path(directory), f"read the comparison in {str(directory)!r}"
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise InputError(asked, f"{', '.join(missing)} missing", "run offprincipal compare into it again")
        version = cls(folder).summary.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                asked,
                f"it has schema version {version}, this program reads {SCHEMA_VERSION}",
                "compare again into another folder, or use the program that wrote it",
            )
        return cls(folder)

    @property
    def summary(self) -> dict[str, Any]:
        """``summary.json``: model-level numbers per run, with refs, definitions, versions."""
        return json.loads((self.directory / "summary.json").read_text())

    @property
    def unpaired(self) -> list[dict[str, Any]]:
        """``unpaired.json``: every tensor that was not compared, and why."""
        return json.loads((self.directory / "unpaired.json").read_text())

    def table(self) -> pa.Table:
        """``tensors.parquet``: one row per run and tensor (Arrow; ``.to_pandas()`` and polars take it)."""
        return pq.read_table(self.directory / "tensors.parquet")

    def curves(self, *names: str) -> pa.Table:
        """``curves.parquet``, or only the curves of these names."""
        return pq.read_table(self.directory / "curves.parquet", filters=[("curve", "in", names)] if names else None)

    def save(self, directory: str | Path) -> Path:
        """Copy the results (without the parts) into another folder.

        Raises:
            InputError: the folder holds results already, or cannot be written.
        """
        target, asked = Path(directory), f"save into {str(directory)!r}"
        if (target / "summary.json").exists():
            raise InputError(asked, "it holds a comparison already", "choose another folder")
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name in (*FILES, *(f"{name}.parquet" for name in ACROSS)):
                if (self.directory / name).exists():
                    shutil.copyfile(self.directory / name, target / name)
        except OSError as problem:
            raise InputError(asked, f"the system says: {problem.strerror}", "check space and permissions") from problem
        return target


def write_results(
    directory: Path,
    base: Checkpoint,
    plans: Mapping[str, Plan],
    settings: Settings,
    tasks: Sequence[Task],
    store: Store,
    command: str | None,
) -> None:
    """Reduce the parts to the four files of a comparison; the summary comes last, so its presence means complete.

    Raises:
        InputError: a part is missing, or the folder cannot be written.
    """
    rows, across = _gather(directory, plans, tasks, store)
    unpaired = [
        {"run": label, **asdict(item), "shape": list(item.shape)}
        for label, plan in plans.items()
        for item in plan.unpaired
    ]
    write_file(directory / "unpaired.json", json.dumps(unpaired, indent=1).encode())
    runs = [_run(label, plan, tables.pick(rows, "run", label)) for label, plan in plans.items()]
    for run in runs:
        run |= _picture(tasks, run["label"])
    summary = {
        "schema_version": SCHEMA_VERSION,
        "base": {**_described(base), "content_xxh3": _content(rows, "base_xxh3")},
        "runs": runs,
        **_several(across, runs),
        "unpaired_count": len(unpaired),
        "settings": asdict(settings),
        "seed": settings.seed,
        "definitions": tables.DEFINITIONS,
        "versions": versions(),
        "command": command,
    }
    write_file(directory / "summary.json", json.dumps(summary, indent=1, allow_nan=False).encode())


def _picture(tasks: Sequence[Task], label: str) -> dict[str, Any]:
    """Which matrix has curves ``mask_update`` and ``mask_principal``, and how many cells they have."""
    for task in tasks:
        shape = dict(task.pairs)[label].shape if task.picture and label in dict(task.pairs) else None
        if shape is not None:
            rows, columns = grid((shape[0], shape[1]))
            return {"mask_picture": {"tensor": task.name, "rows": rows, "cols": columns}}
    return {}


def _several(across: Mapping[str, list[dict[str, Any]]], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if across["pairs"]:
        found["consensus"] = consensus_summary(across["consensus"], across["pairs"])
    if across["steps"]:
        found |= trajectory_summary(across["steps"], across["paths"], runs)
    return tables.without_nonfinite(found)


def _gather(
    directory: Path, plans: Mapping[str, Plan], tasks: Sequence[Task], store: Store
) -> tuple[pa.Table, dict[str, list[dict[str, Any]]]]:
    """Write every table, rows by run and then by tensor in the order of the model; return what the summary needs."""
    rows: dict[str, list[dict[str, Any]]] = {label: [] for label in plans}
    across: dict[str, list[dict[str, Any]]] = {name: [] for name in ACROSS}
    with _CurveWriter(directory / "curves.parquet") as curves:
        for task in tasks:
            part = store.get(task.name)
            if part is None:
                raise InputError(
                    f"gather the results in {str(directory)!r}",
                    f"the part of {task.name} is missing",
                    "run the same comparison again, it measures only what is missing",
                )
            for row in part["rows"]:
                rows[row["run"]].append(row)
            for name in ACROSS:
                across[name].extend(part.get(name, []))
            curves.add(task.name, part["curves"])
    table = pa.Table.from_pylist([row for run in rows.values() for row in run], schema=SCHEMA)
    _write_parquet(directory / "tensors.parquet", table)
    for name, found in across.items():
        if found:
            _write_parquet(directory / f"{name}.parquet", across_table(found))
    return table, across


class _CurveWriter:
    """Streams curves into one Parquet file in groups of bounded size; the file appears when it is whole."""

    def __init__(self, file: Path):
        self.file, self.pending, self.held = file, [], 0
        self.asked = f"write {str(file)!r}"
        self.temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")

    def __enter__(self) -> "_CurveWriter":
        with explained(self.asked):
            self.writer = pq.ParquetWriter(self.temporary, CURVES, compression="zstd")
        return self

    def add(self, tensor: str, curves: Sequence[Sequence[Any]]) -> None:
        for run, name, x, y in curves:
            columns = [pa.repeat(pa.scalar(word, pa.string()), len(x)) for word in (run, tensor, name)]
            values = [pa.array(np.asarray(numbers, np.float64)) for numbers in (x, y)]
            self.pending.append(pa.Table.from_arrays(columns + values, schema=CURVES))
            self.held += len(x)
        if self.held >= POINTS:
            self._flush()

    def _flush(self) -> None:
        if self.pending:
            with explained(self.asked):
                self.writer.write_table(pa.concat_tables(self.pending))
        self.pending, self.held = [], 0

    def __exit__(self, kind: type | None, *rest: object) -> None:
        try:
            if kind is None:
                self._flush()
            with explained(self.asked):
                self.writer.close()
                if kind is None:
                    os.replace(self.temporary, self.file)
        finally:
            self.temporary.unlink(missing_ok=True)


def _write_parquet(file: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
    write_file(file, sink.getvalue().to_pybytes())


def _run(label: str, plan: Plan, rows: pa.Table) -> dict[str, Any]:
    numbers = tables.without_nonfinite(tables.model(rows))
    content = _content(rows, "tuned_xxh3")
    return {
        "label": label,
        **_described(plan.tuned),
        "content_xxh3": content,
        **numbers,
        "unpaired_count": len(plan.unpaired),
    }


def _content(rows: pa.Table, column: str) -> str:
    """One hash over the names and contents of all paired tensors of one side, however they are sharded."""
    lines = sorted(set(zip(rows["tensor"].to_pylist(), rows[column].to_pylist(), strict=True)))
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in lines).encode()).hexdigest()


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    dtypes = sorted({info.dtype for info in checkpoint.tensors.values()})
    return {
        "ref": checkpoint.ref,
        "commit": checkpoint.commit,
        "identity": checkpoint.identity(),
        "dtypes": dtypes,
        "architecture": (checkpoint.config.get("architectures") or [None])[0],
    }


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what its numbers depend on."""
    names = ("offprincipal", "torch", "numpy", "numba", "safetensors", "huggingface_hub", "pyarrow")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
