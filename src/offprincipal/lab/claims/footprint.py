"""L7: do runs on other problems, or of another algorithm, change the same weights as runs of the same kind?

What it is: Jaccard of update masks within a kind (two seeds of RLVR) against that between kinds, per matrix, from
``lab run`` and ``lab matched``. What it is not: whether there is a footprint beyond magnitude at all (L1, L2).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from offprincipal.checkpoint import open_checkpoint
from offprincipal.lab.claims.evidence import read_json
from offprincipal.lab.claims.locality import JACCARD
from offprincipal.lab.claims.record import NotRun, Record
from offprincipal.lab.claims.samples import Evidence
from offprincipal.lab.claims.verdict import Measured, Sample
from offprincipal.lab.claims.weights import control, judged_record
from offprincipal.lab.courses import Course
from offprincipal.lab.overlaps import jaccard
from offprincipal.measures import bits
from offprincipal.measures._agreement import RunPair
from offprincipal.pairs import pair

SAME = "rlvr"
"""The course that differs from the stage ``rlvr-1`` by its seed alone."""

BETWEEN = {"data": ("rlvr-math", "rlvr-code"), "algorithm": ("rlvr-batch",)}
"""What differs, to the courses in which it does."""

FIRST, ANOTHER = "rlvr-1", "rlvr-2"

Masks = Mapping[str, tuple[Tensor, Tensor]]
"""Matrix to the magnitude codes of the base and the update mask of a run."""


def masks_of(base: Path, tuned: Path) -> Masks:
    """The update mask of every linear matrix, as bfloat16 shows it."""
    before = open_checkpoint(base)
    found = {}
    for each in pair(before, open_checkpoint(tuned, base=before)).pairs:
        if each.place.linear and len(each.shape) == 2:
            old, new = each.base.load(), each.tuned.load()
            found[each.name] = bits.magnitude_code(old), bits.changed(old, new)
    return found


def runs(lab: Path) -> dict[str, Path]:
    """Every run of a laboratory that this claim reads, at its end."""
    preset = read_json(lab / "lab.json")["preset"]["rlvr"]
    courses = {name: Course(name, preset["learning_rate"]) for name in (SAME, *sum(BETWEEN.values(), ()))}
    folders = {FIRST: lab / FIRST, ANOTHER: lab / ANOTHER}
    folders |= {name: lab / "matched" / each.place / f"step-{preset['steps']}" for name, each in courses.items()}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def pairs_of(lab: Path) -> dict[str, dict[str, RunPair]]:
    """Run to matrix to its comparison with ``rlvr-1``; nothing where that or the run of its kind is missing."""
    folders = runs(lab) if (lab / "matched").is_dir() else {}
    if not {FIRST, SAME} <= set(folders):
        return {}
    first, others = masks_of(lab / "base", folders.pop(FIRST)), {}
    for name, folder in folders.items():
        masks = masks_of(lab / "base", folder)
        others[name] = {matrix: jaccard(codes, mask, masks[matrix][1]) for matrix, (codes, mask) in first.items()}
    return others


def measured(
    found: Mapping[str, Mapping[str, Mapping[str, RunPair]]],
    kinds: Mapping[str, tuple[str, ...]],
    independent: bool = False,
) -> tuple[Measured, ...]:
    """Per kind the Jaccard within minus that between, which should vanish.

    Args:
        found: laboratory to what `pairs_of` gives.
        kinds: what differs, to the runs in which it does.
        independent: take independent masks of the same densities instead of those between, for a control.
    """

    def sample(names: tuple[str, ...], null: bool) -> Sample:
        values = []
        for lab in found.values():
            known = [lab[name] for name in names if name in lab]
            values.append(np.array([
                _jaccard(same, null) - float(np.mean([_jaccard(each[matrix], null, independent) for each in known]))
                for matrix, same in lab[SAME].items()
            ] if known else []))  # fmt: skip
        return values

    return tuple(
        Measured(f"Jaccard within minus between, other {kind}", sample(names, False),
                 {"magnitude": sample(names, True)}, (), JACCARD, equal=True)
        for kind, names in kinds.items()
    )  # fmt: skip


def _jaccard(each: RunPair, null: bool, independent: bool = False) -> float:
    """Of the masks, or of independent ones; with `null`, above the magnitude null."""
    found = each.jaccard_bernoulli if independent else each.jaccard
    return found - (each.jaccard_matched.mean if null else 0.0)


def judge_l7(evidence: Evidence) -> Record:
    """L7 beside two controls: another draw of the same problems is of one kind, independent masks are not."""
    found = {seed.name: pairs for seed in evidence.seeds if seed.folder and (pairs := pairs_of(seed.folder))}
    complete = {lab: each for lab, each in found.items() if set(sum(BETWEEN.values(), ())) <= set(each)}
    if not complete:
        wanted = ",".join((SAME, *sum(BETWEEN.values(), ())))
        command = f"offprincipal lab matched {evidence.asked} --algorithms {wanted}"
        raise NotRun("RLVR on other data and by another algorithm", command)
    own = measured(complete, BETWEEN)
    same = control("another draw of the same problems", measured(complete, {"problems": (ANOTHER,)}), wanted=True)
    apart = control(
        "independent masks of the same densities", measured(complete, BETWEEN, independent=True), wanted=False
    )
    settings = {"labs": sorted(complete), "courses": BETWEEN, "the paper's own": "offprincipal reproduce five-runs"}
    numbers = _numbers(complete)
    return judged_record("L7", own, evidence, positive=same, negative=apart, numbers=numbers, settings=settings)


def _numbers(found: Mapping[str, Mapping[str, Mapping[str, RunPair]]]) -> dict[str, Any]:
    """Per run its Jaccard with ``rlvr-1`` beside the nulls, means over matrices and laboratories."""

    def mean(name: str, value: Any) -> float:
        return float(np.mean([value(each) for lab in found.values() for each in lab.get(name, {}).values()]))

    names = sorted({name for lab in found.values() for name in lab})
    return {
        name: {
            "jaccard": mean(name, lambda each: each.jaccard),
            "jaccard_bernoulli": mean(name, lambda each: each.jaccard_bernoulli),
            "jaccard_matched": mean(name, lambda each: each.jaccard_matched.mean),
        }
        for name in names
    }


CLAIMS = (("L7", judge_l7),)
