"""Published numbers of public checkpoint pairs, measured again from the Hub and held against what was said.

What it is: a registry (``registry.toml``), one comparison per entry in the order of the shards, and a table of
observed beside expected. What it is not: a second way to measure. The numbers are those of `survey.compare`, and an
entry that lies outside its tolerance says that two counts differ, not which of them is wrong.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from offprincipal.reproduce._registry import Entry, Expected, entries, find, registry
from offprincipal.reproduce._shards import Shards
from offprincipal.results import Comparison
from offprincipal.store import write_file
from offprincipal.survey import Progress, compare

__all__ = ["Check", "Entry", "Expected", "Reproduction", "entries", "find", "registry", "reproduce"]


@dataclass(frozen=True)
class Check:
    """One expected number beside what was observed."""

    expected: Expected
    observed: float | None

    @property
    def inside(self) -> bool:
        """Whether the observed value lies within the tolerance (a number that is missing does not)."""
        return (
            self.observed is not None and abs(self.observed - self.expected.value) <= self.expected.tolerance + 1e-12
        )


@dataclass(frozen=True)
class Reproduction:
    """A finished entry.

    Attributes:
        entry: what was asked.
        comparison: the whole comparison, with tables and summary.
        checks: expected beside observed.
    """

    entry: Entry
    comparison: Comparison
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that decide and do not hold."""
        return tuple(check for check in self.checks if check.expected.decides and not check.inside)

    def to_dict(self) -> dict[str, Any]:
        """What ``reproduce.json`` holds: entry, checks, and the commits that were compared."""
        summary = self.comparison.summary
        refs = [summary["base"], *summary["runs"]]
        return {
            "entry": asdict(self.entry),
            "compared": [{"ref": each["ref"], "commit": each["commit"]} for each in refs],
            "checks": [
                {
                    **asdict(check.expected),
                    "what": check.expected.what,
                    "observed": check.observed,
                    "inside": check.inside,
                }
                for check in self.checks
            ],
            "unpaired_count": summary["unpaired_count"],
            "failed": len(self.failed),
            "definitions": summary["definitions"],
            "versions": summary["versions"],
        }


def reproduce(
    name: str | Entry,
    out: str | Path,
    *,
    geometry: bool = False,
    free_disk: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
) -> Reproduction:
    """Compare the checkpoints of an entry and hold the result against what was published. Safe to stop and run again.

    Tensors are measured in the order of the shards, so that a shard is downloaded when its first tensor is due and not
    needed after its last. Nothing of a repository is executed.

    Args:
        name: of an entry of the registry, or an entry of your own.
        out: folder of the comparison; ``reproduce.json`` is added to it.
        geometry: factorise as well (hours, for the large ones); the published sparsities need counts only.
        free_disk: delete each weight file from the Hub's cache after its last use, if this run has downloaded it. What
            was in the cache before stays.
        offline: take everything from the cache.
        progress: called after each tensor.
        command: the command line to be recorded.

    Raises:
        UsageError: no such entry, or one without a known repository.
        InputError: a checkpoint cannot be had or read, or `out` cannot be used.

    Source of every expected number: the entry itself. A mismatch is no error here; see `Reproduction.failed`.
    """
    entry = find(name) if isinstance(name, str) else name
    result = compare(
        entry.base,
        entry.runs,
        out,
        geometry=geometry,
        offline=offline,
        engine=Shards(Path(out), free=free_disk),
        progress=progress,
        command=command,
    )
    done = Reproduction(entry, result, tuple(Check(each, _observed(each, result)) for each in entry.expected))
    write_file(result.directory / "reproduce.json", json.dumps(done.to_dict(), indent=1, allow_nan=False).encode())
    return done


def _observed(expected: Expected, result: Comparison) -> float | None:
    """The measured number; None where the comparison has none."""
    if expected.run:
        return next((run.get(expected.key) for run in result.summary["runs"] if run["label"] == expected.run), None)
    if not (result.directory / "pairs.parquet").exists():
        return None
    rows = pq.read_table(result.directory / "pairs.parquet").to_pylist()
    found = [row["jaccard"] for row in rows if (row["kind"], row["layer"]) == (expected.kind, expected.layer)]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None
