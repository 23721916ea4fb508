"""How a claim about weights is judged: the same function on the real runs, on a planted effect, and on none.

What it is: a claim as an entry (`Weighed`) and the way from it to a record. What it is not: the claims
(``masks``, ``spectra``, ``locality``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from offprincipal.lab.claims.matrix import Roles
from offprincipal.lab.claims.record import Control, NotRun, Record
from offprincipal.lab.claims.samples import REAL, Evidence
from offprincipal.lab.claims.verdict import (
    CANNOT_TELL,
    EXPLAINED,
    MIN_SEEDS,
    NOT_SUPPORTED,
    SUPPORTED,
    Judged,
    Measured,
    judge,
    seeds_needed,
    together,
)

Claims = Callable[[Evidence, Roles], tuple[Measured, ...]]

TRAIN = "offprincipal lab run --preset tiny --seed N -o DIR/seed-N"


@dataclass(frozen=True)
class Weighed:
    """A claim that reads weights.

    Attributes:
        id: as in the catalogue.
        measure: evidence and roles to effects; the claim needs all of them.
        positive: roles of the control in which the effect was planted, and what was planted; None where no update can
            be planted (losses and accuracies).
        negative: roles of the control in which it was not, and what that is.
        numbers: whatever else to report.
    """

    id: str
    measure: Claims
    positive: tuple[Roles, str] | None = None
    negative: tuple[Roles, str] | None = None
    numbers: Callable[[Evidence], Mapping[str, Any]] | None = None


def planted(prefix: str, what: str) -> tuple[Roles, str]:
    """The roles of a control, and what it is."""
    return REAL.like(prefix), what


NOTHING = planted("null", "the runs' own steps, shuffled among weights of the same size")
ANYWHERE = planted("plain", "the runs' own steps at shuffled places")
"""For effects that steps which depend on the size of the weight would show as well."""


def weigh(claim: Weighed, evidence: Evidence) -> Record:
    """Judge the real runs, then both controls; a control that fails leaves the claim undecided."""
    measured = claim.measure(evidence, REAL)
    if not any(len(values) for each in measured for values in each.sample):
        raise NotRun("a base with its RLVR runs and SFT run, and their float32 masters", TRAIN)
    made = judged_record(
        claim.id,
        measured,
        evidence,
        numbers=claim.numbers(evidence) if claim.numbers else {},
        settings={"runs": [*REAL.rl, *REAL.sft], "matrices": sum(len(seed.parts) for seed in evidence.seeds)},
    )
    positive = _control(claim, evidence, claim.positive, wanted=True)
    negative = _control(claim, evidence, claim.negative, wanted=False)
    made = replace(made, positive=positive, negative=negative)
    if made.verdict in (NOT_SUPPORTED, EXPLAINED) and positive.passed is False:
        why = f"the planted effect was not found here either ({positive.found}); {made.why}"
        return replace(made, verdict=CANNOT_TELL, why=why)
    if made.verdict == SUPPORTED and negative.passed is False:
        why = f"the control without the effect shows it too ({negative.found}); {made.why}"
        return replace(made, verdict=CANNOT_TELL, why=why)
    return made


def judged_record(id_: str, measured: Sequence[Measured], evidence: Evidence, **others: Any) -> Record:
    """A claim of several effects as a record, without controls: the verdict, why, and seeds that would decide."""
    judged = tuple(judge(each) for each in measured)
    verdict = together([each.verdict for each in judged])
    seeds = max(each.estimate.seeds for each in judged)
    few = seeds < MIN_SEEDS
    return Record(
        id_,
        verdict,
        sentence(verdict, judged, seeds),
        judged,
        seeds=seeds,
        leans=together([judge(each, few=True).verdict for each in measured]) if few else "",
        seeds_needed=seeds_needed(judged) if verdict == CANNOT_TELL else None,
        command=f"offprincipal lab claims {evidence.asked}",
        **others,
    )


def _control(claim: Weighed, evidence: Evidence, planted: tuple[Roles, str] | None, *, wanted: bool) -> Control:
    """Whether the measure finds the planted effect, or finds none where there is none."""
    if planted is None:
        return Control("none")
    roles, what = planted
    return control(what, claim.measure(evidence, roles), wanted=wanted)


def control(what: str, measured: Sequence[Measured], *, wanted: bool) -> Control:
    """Whether a measure finds the effect where its truth is known, however few the seeds."""
    judged = tuple(judge(each, few=True) for each in measured)
    if not any(each.estimate.seeds for each in judged):
        return Control(what)
    verdict = together([each.verdict for each in judged])
    effects = ", ".join(shown(each) for each in judged)
    return Control(what, (verdict == SUPPORTED) == wanted, f"{verdict}: {effects}")


def shown(judged: Judged) -> str:
    """An effect with its interval, and what exceeds the decisive nulls.

    >>> from offprincipal.lab.claims.verdict import Estimate
    >>> shown(Judged("x", Estimate(0.5, 0.25, 0.75, None, 3, "seeds", ()), {}, {}, (), 0.1, False, "supported"))
    '0.5 [0.25, 0.75]'
    """
    text = _interval(judged.estimate)
    for name in judged.decisive:
        text += f"; beyond {name} {_interval(judged.over[name])}"
    return text


def _interval(found: Any) -> str:
    ends = "" if found.low is None else f" [{found.low:.3g}, {found.high:.3g}]"
    return f"{found.mean:.3g}{ends}"


def sentence(verdict: str, judged: tuple[Judged, ...], seeds: int) -> str:
    """Why: the numbers of the effect that decided."""
    if verdict == CANNOT_TELL and seeds < MIN_SEEDS:
        told = "; ".join(f"{each.effect}: {shown(each)} over {each.estimate.over}" for each in judged)
        return f"too few seeds ({seeds} of at least {MIN_SEEDS}); {told}"
    deciding = [each for each in judged if each.verdict == verdict] or list(judged)
    return "; ".join(f"{each.effect}: {shown(each)}" for each in deciding)
