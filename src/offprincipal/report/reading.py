"""A comparison folder, read into columns. Nothing is computed here, everything is checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from offprincipal.errors import InputError
from offprincipal.results import FILES
from offprincipal.store import SCHEMA_VERSION

TEXT = ("run", "tensor", "kind", "base_dtype", "tuned_dtype")
NEEDED = ("run", "tensor", "kind", "linear", "counted", "changed")
CURVE_COLUMNS = ("run", "tensor", "curve", "x", "y")
LONG = ds.ParquetFileFormat(read_options={"dictionary_columns": ["run", "tensor", "curve"]})  # few words, many rows


@dataclass(frozen=True)
class Rows:
    """The rows of ``tensors.parquet`` as numpy columns. A null and an absent column both read as NaN (text: "").

    >>> rows = Rows({"changed": np.array([2.0, 0.0])}, 2)
    >>> rows.number("changed").tolist(), rows.has("principal_ones"), rows.where(rows.number("changed") > 0).length
    ([2.0, 0.0], False, 1)
    """

    columns: Mapping[str, np.ndarray]
    length: int

    def number(self, name: str) -> np.ndarray:
        """One float64 column; NaN where the value is null or the column is absent."""
        found = self.columns.get(name)
        return np.full(self.length, np.nan) if found is None else found

    def text(self, name: str) -> np.ndarray:
        """One column of words; empty words where absent."""
        found = self.columns.get(name)
        return np.full(self.length, "", object) if found is None else found

    def has(self, name: str) -> bool:
        """Whether any row holds a value for this column."""
        return bool(np.isfinite(self.number(name)).any())

    def where(self, kept: np.ndarray) -> Rows:
        """The rows that a boolean column keeps."""
        return Rows({name: column[kept] for name, column in self.columns.items()}, int(kept.sum()))


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison folder holds. Curves stay on disk until a few of them are asked for."""

    directory: Path
    summary: dict[str, Any]
    runs: tuple[dict[str, Any], ...]
    table: pa.Table
    rows: Rows
    unpaired: Sequence[dict[str, Any]]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the runs, in the order of the command line."""
        return tuple(run["label"] for run in self.runs)

    def rows_of(self, label: str) -> Rows:
        """The rows of one run."""
        return self.rows.where(self.rows.text("run") == label)

    def linear(self, label: str) -> pa.Table:
        """The linear matrices of one run as an Arrow table, for the reductions of `offprincipal.tables`."""
        return self.table.filter((pc.field("run") == label) & pc.field("linear"))

    def curves(self, names: Sequence[str], tensors: Sequence[str] | None = None) -> Iterator[Curve]:
        """The curves of these names (and of these tensors), one after the other, each whole and in stored order."""
        wanted = pc.field("curve").isin(list(names))
        if tensors is not None:
            wanted = wanted & pc.field("tensor").isin(list(tensors))
        path = self.directory / "curves.parquet"
        table = _opened(path, lambda: ds.dataset(path, format=LONG).to_table(filter=wanted))
        return _grouped(table)


@dataclass(frozen=True)
class Curve:
    """One curve of one tensor in one run: ``y`` over ``x``, both float64."""

    run: str
    tensor: str
    name: str
    x: np.ndarray
    y: np.ndarray


def read(directory: Path) -> Comparison:
    """Read the folder that ``offprincipal compare`` wrote.

    Raises:
        InputError: a file is missing or broken, or was written by another version of the layout.
    """
    directory = Path(directory)
    for name in FILES:
        if not (directory / name).is_file():
            raise InputError(
                f"draw the report of {str(directory)!r}",
                f"there is no {name} in it",
                "give the folder that `offprincipal compare` wrote; one that was interrupted goes on with the same -o",
            )
    summary = _json(directory / "summary.json", dict)
    _check_version(directory, summary.get("schema_version"))
    runs = tuple(summary.get("runs") or ())
    path = directory / "tensors.parquet"
    table = _opened(path, lambda: ds.dataset(path, format="parquet").to_table())
    rows = _rows(path, table)
    strangers = sorted(set(rows.text("run")) - {run.get("label") for run in runs})
    if strangers or not runs:
        found = f"tensors.parquet holds the run {strangers[0]!r}" if strangers else "summary.json names no run"
        raise InputError(f"draw the report of {str(directory)!r}", f"{found}, so the files do not belong together",
                         "run `offprincipal compare` again into an empty folder")  # fmt: skip
    return Comparison(directory, summary, runs, table, rows, _json(directory / "unpaired.json", list))


def _check_version(directory: Path, found: Any) -> None:
    if found == SCHEMA_VERSION:
        return
    newer = isinstance(found, int) and found > SCHEMA_VERSION
    raise InputError(
        f"draw the report of {str(directory)!r}",
        f"its tables have schema version {found}, and this offprincipal reads version {SCHEMA_VERSION}",
        "upgrade with `pip install -U offprincipal`" if newer
        else "run `offprincipal compare` again into an empty folder",
    )  # fmt: skip


def _opened(path: Path, read_it: Callable[[], pa.Table]) -> pa.Table:
    try:
        return read_it()
    except (pa.ArrowException, OSError, ValueError) as broken:
        words = str(broken).splitlines()[0]
        raise InputError(f"read {str(path)!r}", words, "run `offprincipal compare` again with the same -o") from broken


def _json(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as broken:
        raise InputError(f"read {str(path)!r}", f"it is not JSON ({broken})",
                         "run `offprincipal compare` again with the same -o") from broken  # fmt: skip
    if not isinstance(found, kind):
        raise InputError(f"read {str(path)!r}", f"it holds a {type(found).__name__} where a {kind.__name__} belongs",
                         "run `offprincipal compare` again with the same -o")  # fmt: skip
    return found


def _rows(path: Path, table: pa.Table) -> Rows:
    missing = [name for name in NEEDED if name not in table.column_names]
    if missing:
        raise InputError(f"read {str(path)!r}", f"it has no column {missing[0]!r}",
                         "run `offprincipal compare` again into an empty folder")  # fmt: skip
    columns = {}
    for name in table.column_names:
        column = table[name]
        if name in TEXT:
            columns[name] = np.array(["" if v is None else v for v in column.to_pylist()], object)
        elif _numeric(column.type):
            columns[name] = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False).astype(float)
    return Rows(columns, table.num_rows)


def _numeric(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)


def _grouped(table: pa.Table) -> Iterator[Curve]:
    """Cut a long table wherever (run, tensor, curve) changes, after a stable sort by the three."""
    if not table.num_rows:
        return
    words, codes = [], []
    for name in CURVE_COLUMNS[:3]:
        column = table[name].combine_chunks()
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        if isinstance(column, pa.ChunkedArray):
            column = column.unify_dictionaries().combine_chunks()
        words.append(column.dictionary.to_pylist())
        codes.append(column.indices.to_numpy().astype(np.int64))
    key = (codes[0] * len(words[1]) + codes[1]) * len(words[2]) + codes[2]
    order = np.argsort(key, kind="stable")
    x, y = (table[name].to_numpy().astype(float)[order] for name in CURVE_COLUMNS[3:])
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        run, tensor, curve = (w[c[order[start]]] for w, c in zip(words, codes, strict=True))
        yield Curve(run, tensor, curve, x[start:stop], y[start:stop])
