"""D4 and S2: SFT and RLVR where both are equally accurate; long RLVR and short. From ``lab matched``.

What it is: claims about runs that have come equally far, from what `matching.study` found. A unit is a laboratory,
its values are learning rates. What it is not: the matching.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from offprincipal.lab.claims.matching import REFERENCE, effect, meet
from offprincipal.lab.claims.record import NotRun, Record
from offprincipal.lab.claims.samples import Evidence
from offprincipal.lab.claims.verdict import Measured
from offprincipal.lab.claims.weights import control, judged_record

Found = Mapping[str, Any]


def s2(found: Found, planted: float = 0.0) -> tuple[Measured, ...]:
    """RLVR changes more weights in all of its steps than in a third of them, and more than its longer way explains.

    The null is the run at the next larger learning rate of the ladder where it has gone as far: the same norm in fewer
    and larger steps.

    Args:
        found: what `study` gives.
        planted: a share of weights that the longer run is said to have changed besides, for a control.
    """
    grown, beyond = [], []
    for lab in found["labs"]:
        own = [p for p in found["points"] if (p["lab"], p["algorithm"]) == (lab, REFERENCE)]
        rates = sorted({p["learning_rate"] for p in own})
        courses = [[p for p in own if p["learning_rate"] == rate] for rate in rates]
        thirds = [min(course, key=lambda p: abs(p["step"] - course[-1]["step"] / 3)) for course in courses]
        ends = [course[-1] for course in courses]
        grown.append(np.array([e["changed"] - t["changed"] + planted for e, t in zip(ends, thirds, strict=True)]))
        met = [meet(slow, fast, "norm") for slow, fast in itertools.pairwise(courses)]
        apart = [effect("changed", slow["changed"], fast["changed"]) for slow, fast in filter(None, met)]
        beyond.append(np.array([share + planted for share in apart if share is not None]))
    words = "changed weights at the end minus at a third of the steps"
    return (Measured(words, grown, {"equal norm in fewer steps": beyond}, ("equal norm in fewer steps",), 0.01),)


def d4(found: Found, factor: float = 1.0) -> tuple[Measured, ...]:
    """SFT turns subspaces and moves the spectrum more than RLVR where both are equally accurate, and of equal norm.

    A unit is a laboratory, its values are the learning rates at which both gained.

    Args:
        found: what `study` gives.
        factor: by which the angles and shifts of SFT are multiplied, to plant the effect.
    """
    pairs = {match: [row for row in found["pairs"] if (row["algorithm"], row["match"]) == ("sft", match)]
             for match in ("accuracy", "norm")}  # fmt: skip

    def sample(match: str, key: str) -> list[np.ndarray]:
        by_lab = [[row["by_lab"][lab][key] for row in pairs[match] if lab in row["by_lab"]] for lab in found["labs"]]
        return [math.log(factor) + np.array([x for x in values if x is not None]) for values in by_lab]

    kinds = (("angle", "largest angle", 1.5), ("nss", "NSS", 3.0))  # what counts is what counts in D1 and D2
    return tuple(
        Measured(f"ln({words} of SFT / of RLVR) at equal accuracy", sample("accuracy", key),
                 {"equal norm": sample("norm", key)}, ("equal norm",), math.log(least))
        for key, words, least in kinds
    )  # fmt: skip


def _measured(evidence: Evidence) -> Found:
    if not evidence.matched:
        raise NotRun("courses of RLVR and SFT", f"offprincipal lab matched {evidence.asked}")
    return evidence.matched


def judge_d4(evidence: Evidence) -> Record:
    """D4 beside a control: SFT's angles and shifts multiplied by ten."""
    found = _measured(evidence)
    if not any(len(values) for values in d4(found)[0].sample):
        missing = "SFT and RLVR at matched accuracy (the paper's own pair is unireason-rl of offprincipal reproduce)"
        raise NotRun(missing, f"offprincipal lab matched {evidence.asked}")
    planted = control("SFT's angles and shifts multiplied by 10", d4(found, factor=10.0), wanted=True)
    rates = sorted({row["learning_rate"] for row in found["pairs"] if row["algorithm"] == "sft"})
    settings = {"labs": found["labs"], "learning rates": rates, "matched on": "the test half, either format"}
    return judged_record("D4", d4(found), evidence, positive=planted, settings=settings)


def judge_s2(evidence: Evidence) -> Record:
    """S2 beside a control: five points more in the longer run."""
    found = _measured(evidence)
    planted = control("five points more changed weights in the longer run", s2(found, planted=0.05), wanted=True)
    rates = sorted({p["learning_rate"] for p in found["points"] if p["algorithm"] == REFERENCE})
    if not rates:
        raise NotRun("courses of RLVR", f"offprincipal lab matched {evidence.asked}")
    settings = {"labs": found["labs"], "learning rates": rates, "the paper's own": "offprincipal reproduce prorl"}
    return judged_record("S2", s2(found), evidence, positive=planted, settings=settings)


CLAIMS = (("S2", judge_s2), ("D4", judge_d4))
