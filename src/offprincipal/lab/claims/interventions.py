"""I1 to I4: a block rotated or permuted before training, and the run from there.

What it is: reads ``LAB/interventions/NAME/``: ``base/`` (what ``transform`` wrote, with ``transform.json``), the run
``rlvr-1/`` trained from it, and ``mapped/rlvr-1/`` (the run carried back by ``transform map-back``). What it is not:
the transforms (``rewrite``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offprincipal.lab.claims.evidence import read_json
from offprincipal.lab.claims.numerics import failing, record
from offprincipal.lab.claims.record import NotRun, Record
from offprincipal.lab.claims.samples import Evidence, Row
from offprincipal.lab.claims.training import first_folder
from offprincipal.lab.claims.verdict import Measured, Sample
from offprincipal.lab.claims.weights import judged_record
from offprincipal.lab.overlaps import agreements

NEAR = 0.02
"""Difference of Jaccard indices that counts as none (*ours*)."""

EXACT = 1e-10
"""Relative difference of float64 logits that counts as the same function; ``transform --verify`` holds it too."""


def read(lab: Path, name: str) -> Iterator[dict[str, Any]]:
    """The interventions of one laboratory: record of the transform, spectra and overlaps per linear matrix."""
    for mark in sorted(lab.glob("interventions/*/base/transform.json")):
        folder = mark.parents[1]
        found = {"lab": name, "name": folder.name, "record": read_json(mark)}
        yield {**found, "matrices": list(_matrices(lab, folder))}


def _matrices(lab: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """One linear matrix at a time: its spectrum before and after, and Jaccard minus that of independent masks."""
    for each in agreements(lab, folder):
        over = {word: found["jaccard"] - found["jaccard_bernoulli"] for word, found in each["compared"].items()}
        named = {
            "index": over.get("as_is"),
            "back": over.get("mapped_back"),
            "independent": over.get("other_seed", over.get("other_problems")),
        }
        row = {"tensor": each["tensor"], "touched": each["touched"], "nss": each["nss_stored"]}
        yield row | {word: value for word, value in named.items() if value is not None}


def needed(evidence: Evidence) -> Sequence[Row]:
    """The interventions; or what to run."""
    if not evidence.interventions:
        folder = first_folder(evidence)
        raise NotRun("runs from a rotated and a permuted base", f"offprincipal lab run --intervene -o {folder}")
    return evidence.interventions


def i1(evidence: Evidence) -> Record:
    """Logits before and after, as ``transform --verify`` recorded them."""
    found = {f"{each['lab']}/{each['name']}": each["record"].get("verify") for each in needed(evidence)}
    unverified = [name for name, verified in found.items() if not verified]
    if unverified:
        raise NotRun(
            f"logits of {', '.join(unverified)}", "offprincipal transform rotate BASE --layers L -o OUT --verify"
        )
    worst = {
        key: max(each[key]["max_relative"] for each in found.values() if each)
        for key in ("float64", "float32", "bfloat16")
    }
    told = ", ".join(f"{key} {value:.1e}" for key, value in worst.items())
    broken = sum(each["float64"]["max_relative"] > EXACT for each in found.values() if each)
    coarse = sum(each["bfloat16"]["max_relative"] > EXACT for each in found.values() if each)
    control = failing("the same bound in bfloat16 arithmetic", coarse)
    return record("I1", broken == 0, f"largest relative difference of logits: {told}", control, evidence, **worst)


def i4(evidence: Evidence) -> Record:
    """Singular values of every touched matrix: equal up to the rounding of storage, ||E||_F <= 2^-9 ||W||_F."""
    rows = [row for each in needed(evidence) for row in each["matrices"] if row["touched"]]
    worst = max((row["nss"] for row in rows), default=0.0)
    why = f"NSS of {len(rows)} touched matrices at most {worst:.1e}; storing in bfloat16 allows {2.0**-9:.1e}"
    other = sum(1 for row in rows if row["nss"] > 1e-12)
    control = failing("equality to 1e-12, which rounding breaks after a rotation", other)
    return record("I4", worst <= 2.0**-9, why, control, evidence, matrices=len(rows), largest_nss=worst)


def _sample(evidence: Evidence, touched: bool, value: Callable[[Row], float | None]) -> Sample:
    """Per laboratory the values of its touched, or of its other, matrices."""
    labs: dict[str, list[float]] = {}
    for each in evidence.interventions:
        found = (value(row) for row in each["matrices"] if row["touched"] is touched)
        labs.setdefault(each["lab"], []).extend(x for x in found if x is not None)
    return [np.array(values) for values in labs.values()]


def _less(row: Row, one: str, other: str) -> float | None:
    return row[one] - row[other] if one in row and other in row else None


def i2(evidence: Evidence) -> tuple[Measured, ...]:
    """Index by index: at chance where the block was changed, well above it elsewhere."""
    return (
        Measured("Jaccard minus independent masks, touched", _sample(evidence, True, lambda row: row.get("index")),
                 least=NEAR, equal=True),
        Measured("the same, elsewhere", _sample(evidence, False, lambda row: row.get("index")), least=NEAR),
    )  # fmt: skip


def i3(evidence: Evidence) -> tuple[Measured, ...]:
    """Mapped back: above the index by index overlap, and after a permutation no less than two untouched runs share.

    AdamW commutes with permutations and not with rotations: a rotated run need not come back whole.
    """
    risen = _sample(evidence, True, lambda row: _less(row, "back", "index"))
    if not any(len(values) for values in risen):
        raise NotRun("runs mapped back", "offprincipal transform map-back NAME/base NAME/rlvr-1 -o NAME/mapped/rlvr-1")
    permuted = [each for each in evidence.interventions if each["record"]["what"] == "permute"]
    kept = _sample(
        replace(evidence, interventions=tuple(permuted)), True, lambda row: _less(row, "back", "independent")
    )
    return (
        Measured("Jaccard mapped back minus index by index, touched", risen, least=NEAR),
        Measured("permuted: Jaccard mapped back minus that of independent runs, plus .02", [NEAR + x for x in kept]),
    )


def _weigh(id_: str, measure: Callable[[Evidence], tuple[Measured, ...]], evidence: Evidence) -> Record:
    settings = {"interventions": [each["name"] for each in needed(evidence)]}
    return judged_record(id_, measure(evidence), evidence, settings=settings)


CLAIMS: tuple[tuple[str, Callable[[Evidence], Record]], ...] = (
    ("I1", i1),
    ("I2", lambda evidence: _weigh("I2", i2, evidence)),
    ("I3", lambda evidence: _weigh("I3", i3, evidence)),
    ("I4", i4),
)
