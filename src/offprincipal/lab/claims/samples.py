"""Measured rows to samples: per seed, one value per matrix, averaged over the runs of a role.

What it is: the three ways in which a claim reads what was measured. What it is not: a measure or a verdict.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offprincipal.lab.claims.matrix import Roles
from offprincipal.lab.claims.verdict import Sample

Row = Mapping[str, Any]
Value = Callable[..., float | None]

REAL = Roles(("rlvr-1", "rlvr-2"), ("sft",))
"""The runs of a laboratory that claims compare."""


@dataclass(frozen=True)
class Seed:
    """What is known of one laboratory.

    Attributes:
        name: of its folder.
        parts: per linear matrix what ``matrix.measure`` found: ``tensor``, ``kind``, ``rows``, ``groups``.
        records: stage to its ``run.json``.
        folder: where it lies; None for a planted world.
    """

    name: str
    parts: tuple[Row, ...] = ()
    records: Mapping[str, Row] = field(default_factory=dict)
    folder: Path | None = None


@dataclass(frozen=True)
class Evidence:
    """Everything that the claims read.

    Attributes:
        seeds: the laboratories.
        arms: records of ``lab arms``, each with ``lab`` (name) and ``folder``.
        interventions: what ``interventions.read`` found, per laboratory and intervention.
        probes: name of a probe to its results, per laboratory.
        matched: what ``matching.study`` found in the courses of ``lab matched``; None where there are none.
        asked: the folders that were given, as they stand in commands.
        out: where the scoreboard and its caches go.
    """

    seeds: tuple[Seed, ...]
    arms: tuple[Row, ...] = ()
    interventions: tuple[Row, ...] = ()
    probes: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    asked: str = "lab"
    out: Path | None = None
    matched: Mapping[str, Any] | None = None


def per_run(evidence: Evidence, runs: Sequence[str], value: Value, *nulls: str, kinds: Sequence[str] = ()) -> Sample:
    """Per seed and matrix the mean over `runs` of ``value(row, row of null:run, ...)``; without a value, left out."""

    def one(part: Row) -> Iterator[float | None]:
        for run in runs:
            rows = [part["rows"].get(name) for name in (run, *(f"{null}:{run}" for null in nulls))]
            yield None if None in rows else value(*rows)

    return _sample(evidence, one, kinds)


def per_couple(evidence: Evidence, roles: Roles, value: Value, *nulls: str) -> Sample:
    """Per seed and matrix the mean over (SFT run, RLVR run) of ``value(sft, rl, null of sft, null of rl, ...)``."""

    def one(part: Row) -> Iterator[float | None]:
        for sft in roles.sft:
            for rl in roles.rl:
                names = (sft, rl, *(f"{null}:{run}" for null in nulls for run in (sft, rl)))
                rows = [part["rows"].get(name) for name in names]
                yield None if None in rows else value(*rows)

    return _sample(evidence, one, ())


def per_pair(
    evidence: Evidence, pairs: Sequence[tuple[str, str]], value: Value, *nulls: str, kinds: Sequence[str] = ()
) -> Sample:
    """Per seed and matrix the mean over pairs of runs of ``value(agreement, agreement of the nulls, ...)``."""

    def one(part: Row) -> Iterator[float | None]:
        for a, b in pairs:
            keys = (f"{a}|{b}", *(f"{null}:{a}|{null}:{b}" for null in nulls))
            found = [part["groups"].get(key) for key in keys]
            yield None if None in found else value(*found)

    return _sample(evidence, one, kinds)


def _sample(evidence: Evidence, one: Callable[[Row], Iterator[float | None]], kinds: Sequence[str]) -> Sample:
    found = []
    for seed in evidence.seeds:
        values = []
        for part in seed.parts:
            if not kinds or part["kind"] in kinds:
                known = [x for x in one(part) if x is not None and math.isfinite(x)]
                values += [sum(known) / len(known)] if known else []
        found.append(np.array(values))
    return found


def rl_pairs(roles: Roles) -> list[tuple[str, str]]:
    """Every pair of RLVR runs."""
    return [(a, b) for i, a in enumerate(roles.rl) for b in roles.rl[i + 1 :]]


def cross_pairs(roles: Roles) -> list[tuple[str, str]]:
    """Every SFT run with every RLVR run."""
    return [(sft, rl) for sft in roles.sft for rl in roles.rl]


def log_ratio(above: float | None, below: float | None) -> float | None:
    """``ln(above / below)``; None where either is missing or not positive.

    >>> log_ratio(1.0, 1.0), log_ratio(1.0, 0.0)
    (0.0, None)
    """
    return math.log(above / below) if above and below and above > 0 and below > 0 else None
