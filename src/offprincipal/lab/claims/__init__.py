"""The laboratory's claims, judged: each of the paper's claims beside its nulls and its controls.

What it is: `judge_claims` reads what ``lab run`` and ``lab arms`` left, and gives each claim a verdict: supported, not
supported, explained by the null, cannot tell, or not run. What it is not: training. Read `catalogue` for the claims,
`verdict` for the rule, ``masks``, ``spectra`` and ``locality`` for what is measured, ``worlds`` for how the judge is
itself tried.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from offprincipal.fanout import Engine, here
from offprincipal.lab.claims import (
    beside,
    bounds,
    drift,
    equal,
    footprint,
    interventions,
    leash,
    locality,
    masks,
    matching,
    numerics,
    spectra,
    training,
)
from offprincipal.lab.claims.catalogue import CLAIMS
from offprincipal.lab.claims.evidence import gather
from offprincipal.lab.claims.record import NOT_RUN, NotRun, Record
from offprincipal.lab.claims.samples import Evidence
from offprincipal.lab.claims.scoreboard import answer, write
from offprincipal.lab.claims.weights import weigh
from offprincipal.survey import Progress

__all__ = ["judge_claims", "records"]

WEIGHED = (*masks.CLAIMS, *spectra.CLAIMS, *locality.CLAIMS, *drift.CLAIMS)


def judge_claims(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    seed: int = 0,
    engine: Engine = here,
    progress: Progress | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Judge every claim on these laboratories and write ``claims.json`` and ``claims.md`` into ``out``.

    Only what is there is read; what is missing makes a claim *not run*, with the command that makes it. Comparisons
    and controls are kept in ``out``, so that it may be stopped and run again.

    Args:
        folders: laboratories, or folders that hold several: one seed each, of one preset.
        out: folder of the scoreboard.
        seed: of nulls and controls.
        engine: where matrices are measured.
        progress: called after each matrix.
        command: the command line to be recorded.

    Returns:
        What ``claims.json`` holds.

    Raises:
        InputError: a folder is missing or torn, laboratories do not belong together, or `out` cannot be written.
    """
    target, places = Path(out), [Path(folder) for folder in folders]
    evidence = gather(places, target, seed=seed, engine=engine, progress=progress)
    found = [each for s in evidence.seeds if s.folder for each in interventions.read(s.folder, s.name)]
    evidence = replace(evidence, interventions=tuple(found), matched=matching.study(places))
    target.mkdir(parents=True, exist_ok=True)
    answered = answer(records(evidence, engine), evidence, command)
    write(answered, target)
    return answered


def records(evidence: Evidence, engine: Engine = here) -> list[Record]:
    """Every claim of the catalogue, judged, in its order."""
    judges = dict(_judges(engine))
    return [_one(claim.id, judges[claim.id], evidence) for claim in CLAIMS]


def _judges(engine: Engine) -> Iterator[tuple[str, Callable[[Evidence], Record]]]:
    yield from numerics.CLAIMS
    yield from bounds.CLAIMS
    yield from leash.numeric()
    yield from ((claim.id, lambda evidence, c=claim: weigh(c, evidence)) for claim in WEIGHED)
    yield from interventions.CLAIMS
    yield from training.claims(engine)
    yield from equal.CLAIMS
    yield from footprint.CLAIMS
    yield from beside.CLAIMS


def _one(id_: str, judge: Callable[[Evidence], Record], evidence: Evidence) -> Record:
    try:
        return judge(evidence)
    except NotRun as missing:
        return Record(id_, NOT_RUN, f"missing: {missing.missing}", command=missing.command, seeds=len(evidence.seeds))
