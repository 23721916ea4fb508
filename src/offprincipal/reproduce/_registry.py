"""The registry: public checkpoint pairs and what was published of them, from ``registry.toml``."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from offprincipal.errors import UsageError

TOLERANCE = 0.01
"""One percentage point: the spread of the published re-measurements is .4 to .9 (arXiv 2606.07082)."""


@dataclass(frozen=True)
class Expected:
    """A published number.

    Attributes:
        value: as published.
        source: where.
        run: label of the run, of a number of ``summary.json``; empty for a Jaccard.
        key: of ``summary.json``, such as ``sparsity_bf16``.
        kind: of a Jaccard, mean over pairs of runs: the kind of matrix.
        layer: of a Jaccard: the layer, from zero.
        tolerance: how far the observed value may lie from it.
        decides: False for a number reported by somebody else, which is shown and fails nothing.
    """

    value: float
    source: str
    run: str = ""
    key: str = "jaccard"
    kind: str = ""
    layer: int = -1
    tolerance: float = TOLERANCE
    decides: bool = True

    @property
    def what(self) -> str:
        """The number in words."""
        return f"{self.run}: {self.key}" if self.run else f"{self.key} of {self.kind}, layer {self.layer}"


@dataclass(frozen=True)
class Entry:
    """One comparison of the registry.

    Attributes:
        name: what ``reproduce NAME`` takes.
        table: where it was published.
        algorithm: how the runs were trained, on what.
        base: a Hub reference.
        runs: label to Hub reference.
        ids: "confirmed", "unconfirmed" or "missing".
        expected: what was published; may be empty.
        note: what to know before believing the result.
    """

    name: str
    table: str
    algorithm: str
    base: str
    runs: Mapping[str, str]
    ids: str
    expected: tuple[Expected, ...] = ()
    note: str = ""


@cache
def registry() -> dict[str, Entry]:
    """Name to entry, in the order of the file.

    >>> registry()["deepscaler"].runs["deepscaler"], registry()["deepscaler"].expected[0].value
    ('agentica-org/DeepScaleR-1.5B-Preview', 0.538)
    """
    return entries(resources.files("offprincipal").joinpath("registry.toml").read_text(encoding="utf-8"))


def entries(text: str) -> dict[str, Entry]:
    """The entries of a registry's text."""
    found = [
        Entry(**{**raw, "expected": tuple(Expected(**each) for each in raw.get("expected", ()))})
        for raw in tomllib.loads(text)["entry"]
    ]
    return {entry.name: entry for entry in found}


def find(name: str) -> Entry:
    """The entry of that name.

    Raises:
        UsageError: there is none, or one of its checkpoints has no known repository.
    """
    known = registry()
    if name not in known:
        raise UsageError(f"reproduce {name!r}", "no entry has that name", f"choose one of {', '.join(known)}")
    entry = known[name]
    if entry.ids == "missing":
        raise UsageError(f"reproduce {name!r}", entry.note, "compare it yourself if you know the repository")
    return entry
