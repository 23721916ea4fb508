"""What a probe leaves in its folder: ``probe-NAME.json``, its tables, its numbers in the summary of a comparison."""

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from offprincipal.checkpoint import Checkpoint
from offprincipal.errors import InputError
from offprincipal.results import versions
from offprincipal.store import explained, write_file

SCHEMA_VERSION = 1
"""Version of ``probe-*.json`` and its tables."""


def described(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where a checkpoint came from: its ref, commit on the Hub, and identity."""
    return {"ref": checkpoint.ref, "commit": checkpoint.commit, "identity": checkpoint.identity()}


def finite(found: Any) -> Any:
    """Plain data without what JSON cannot say: nan and infinity become None, records dicts, tuples lists, paths words.

    >>> finite({"a": (1.0, math.nan)})
    {'a': [1.0, None]}
    """
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        found = dataclasses.asdict(found)
    if isinstance(found, Mapping):
        return {str(key): finite(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [finite(value) for value in found]
    if isinstance(found, Path):
        return str(found)
    return None if isinstance(found, float) and not math.isfinite(found) else found


def prepare(out: str | Path) -> Path:
    """The folder of results, made if it is missing.

    Raises:
        InputError: it cannot be made.
    """
    folder = Path(out)
    with explained(f"write into {str(folder)!r}"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(folder: Path, probe: str, found: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Write the tables, then ``probe-NAME.json``, then the numbers of its runs into ``summary.json`` if there is one.

    Raises:
        InputError: the folder cannot be written, or its summary cannot be read.
    """
    answer = finite({"schema_version": SCHEMA_VERSION, "probe": probe, **found, "versions": _versions()})
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_file(folder / f"{name}.parquet", sink.getvalue().to_pybytes())
    write_file(folder / f"probe-{probe}.json", json.dumps(answer, indent=1, allow_nan=False).encode())
    _into_summary(folder, probe, answer["runs"])
    return answer


def _versions() -> dict[str, str]:
    return versions() | {"transformers": importlib.metadata.version("transformers")}


def _into_summary(folder: Path, probe: str, runs: Sequence[Mapping[str, Any]]) -> None:
    file = folder / "summary.json"
    if not file.is_file():
        return
    try:
        summary = json.loads(file.read_text())
    except (OSError, ValueError) as problem:
        raise InputError(f"add to {str(file)!r}", str(problem), "compare into this folder again") from problem
    plain = [{key: value for key, value in run.items() if not isinstance(value, list | dict)} for run in runs]
    summary["probes"] = {**summary.get("probes", {}), probe: plain}
    write_file(file, json.dumps(summary, indent=1, allow_nan=False).encode())


def section(title: str, sentences: Sequence[str], tables: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """What the terminal and the report show: words and tables of formatted cells."""
    return {"title": title, "sentences": list(sentences), "tables": list(tables), "charts": more.get("charts", [])}


def ranged(value: float, low: float, high: float) -> str:
    """A number with its interval, three digits each.

    >>> ranged(0.01234, 0.01, 0.015), ranged(1.0, math.nan, math.nan)
    ('0.0123 [0.01, 0.015]', '1')
    """
    return f"{value:.3g}" + ("" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]")
