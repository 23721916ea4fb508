"""P6 to P9, S1, L1 to L3, L5: how sparse the changes are, why, and whether runs share their places and stripes.

What it is: sparsities, Jaccards and profiles of the update masks, oriented so that positive is what the paper says,
each beside precision alone (the same steps at shuffled places, rounded) and magnitude alone.
"""

import math
from collections.abc import Mapping
from typing import Any

from offprincipal.lab.claims.masks import less
from offprincipal.lab.claims.matrix import SCALES, Roles
from offprincipal.lab.claims.samples import (
    REAL,
    Evidence,
    Row,
    log_ratio,
    per_couple,
    per_pair,
    per_run,
    rl_pairs,
)
from offprincipal.lab.claims.verdict import Measured, Sample, estimate
from offprincipal.lab.claims.weights import ANYWHERE, NOTHING, Weighed, planted

ATTENTION = ("q", "k", "v", "o")
JACCARD = 0.01
"""Least difference of a Jaccard index that counts (*ours*)."""

STRIPES = math.log(1.25)
"""Least log ratio of variances that counts (*ours*)."""


def p6(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """A larger weight needs a larger step: a changed weight tends to be smaller than an unchanged one."""
    sample = per_run(evidence, roles.rl, lambda row: less(0.5, row.get("auc_small")))
    return (Measured("AUC of -|W0| for the changed weights, minus .5", sample, least=0.01),)


def sparsity(row: Row, scale: int | None = None) -> float:
    """Share unchanged in bfloat16, of D itself or of D times ``SCALES[scale]``, rounded again."""
    return 1 - (row["changed"] if scale is None else row["scaled_changed"][scale]) / row["counted"]


def p7(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """A higher learning rate removes sparsity: D is scaled and rounded again; no run was trained at another rate."""
    one, ten = SCALES.index(1.0), SCALES.index(10.0)
    sample = per_run(evidence, roles.rl, lambda row: less(sparsity(row, ten), sparsity(row, one)))
    return (Measured("sparsity at D minus sparsity at 10 D", sample, least=0.02),)


def p8(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """float32 removes sparsity: the share of master weights that did not move at all is about zero."""
    sample = per_run(evidence, roles.rl, lambda row: row["exact_zeros"] / row["counted"] if row.get("fine") else None)
    return (Measured("share of float32 weights exactly unchanged", sample, least=0.01, equal=True),)


def _above(evidence: Evidence, roles: Roles, key: str) -> Sample:
    return per_pair(evidence, rl_pairs(roles), lambda found: less(found["pair"][key], found["pair"]["jaccard"]))


def _above_shuffled(evidence: Evidence, roles: Roles) -> Sample:
    return per_pair(
        evidence, rl_pairs(roles), lambda found, null: less(null["pair"]["jaccard"], found["pair"]["jaccard"]), "even"
    )


def p9(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """Sparsity is not precision alone: two runs share more places than the same steps at shuffled places, rounded."""
    over = {"magnitude": _above(evidence, roles, "jaccard_matched")}
    return (Measured("Jaccard minus that of shuffled steps", _above_shuffled(evidence, roles), over, (), JACCARD),)


def l1(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """A shared footprint: the Jaccard of two RLVR runs is above independent masks, and above the magnitude null."""
    over = {
        "magnitude": _above(evidence, roles, "jaccard_matched"),
        "shuffled steps": _above_shuffled(evidence, roles),
    }
    sample = _above(evidence, roles, "jaccard_bernoulli")
    return (Measured("Jaccard minus independent masks", sample, over, ("magnitude",), JACCARD),)


def l2(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """Beyond magnitude gating: the Jaccard of two RLVR runs is above the magnitude null."""
    sample = _above(evidence, roles, "jaccard_matched")
    over = {"shuffled steps": _above_shuffled(evidence, roles)}
    return (Measured("Jaccard minus magnitude null", sample, over, (), JACCARD),)


def _variance(found: Row, axis: int, null: str) -> float | None:
    """ln(variance of the line means of C along an axis / that of a null)."""
    side = "col" if axis else "row"
    return log_ratio(found.get(f"{side}_variance"), found.get(f"{side}_variance_{null}_mean"))


def _more(found: Row, null: str) -> float | None:
    """By how much the head axis exceeds the other axis, in ln(variance / null)."""
    return less(_variance(found, 1 - found["axis"], null), _variance(found, found["axis"], null))


def l3(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """Stripes: changes gather in rows of q, k, v and columns of o, more than shuffled, and more than across them."""
    pairs = rl_pairs(roles)

    def along(null: str) -> Sample:
        return per_pair(evidence, pairs, lambda found: _variance(found, found["axis"], null), kinds=ATTENTION)

    def against(null: str) -> Sample:
        return per_pair(evidence, pairs, lambda found: _more(found, null), kinds=ATTENTION)

    own = Measured("ln(variance of the head axis / shuffled)", along("shuffled"), {"magnitude": along("matched")},
                   ("magnitude",), STRIPES)  # fmt: skip
    words = "the same, head axis minus the other axis"
    return own, Measured(words, against("shuffled"), {"magnitude": against("matched")}, ("magnitude",), STRIPES)


def l5(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """Stripes lie within heads as well as across: both parts of the variance are above their nulls."""
    pairs = rl_pairs(roles)

    def part(name: str, null: str) -> Sample:
        return per_pair(
            evidence,
            pairs,
            lambda found: log_ratio(found.get(f"head_{name}"), found.get(f"head_{name}_{null}")),
            kinds=ATTENTION,
        )

    return tuple(
        Measured(f"ln(variance {words} heads / shuffled)", part(name, "shuffled"),
                 {"magnitude": part(name, "matched_mean")}, ("magnitude",), STRIPES)
        for name, words in (("between", "between"), ("within", "within"))
    )  # fmt: skip


def s1(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """RL is far sparser than SFT, and sparser than the SFT update scaled to RL's norm and rounded again."""
    sample = per_couple(evidence, roles, lambda sft, rl: sparsity(rl) - sparsity(sft))
    matched = Roles(roles.rl, tuple(f"matched:{run}" for run in roles.sft))
    over = {"SFT at RL's norm": per_couple(evidence, matched, lambda sft, rl: sparsity(rl) - sparsity(sft))}
    return (Measured("sparsity of RL minus sparsity of SFT", sample, over, tuple(over), 0.02),)


def shares(evidence: Evidence) -> Mapping[str, Any]:
    """Per run: sparsity, at every scale of D, exact zeros; means over seeds and matrices."""
    found = {}
    for run in (*REAL.rl, *REAL.sft):
        scaled = {
            f"sparsity at {scale:.3g} D": _mean(per_run(evidence, (run,), lambda row, i=i: sparsity(row, i)))
            for i, scale in enumerate(SCALES)
        }
        zeros = per_run(evidence, (run,), lambda row: row["exact_zeros"] / row["counted"])
        found[run] = {
            "sparsity_bf16": _mean(per_run(evidence, (run,), sparsity)),
            "exact_zeros": _mean(zeros),
            **scaled,
        }
    return found


def jaccards(evidence: Evidence) -> Mapping[str, Any]:
    """Jaccard of the two RLVR runs beside its nulls, means over seeds and matrices."""
    pairs = rl_pairs(REAL)
    keys = ("jaccard", "jaccard_bernoulli", "jaccard_matched")
    found = {key: _mean(per_pair(evidence, pairs, lambda row, key=key: row["pair"][key])) for key in keys}
    shuffled = per_pair(evidence, pairs, lambda row, null: null["pair"]["jaccard"], "even")
    return {**found, "jaccard_shuffled_steps": _mean(shuffled)}


def _mean(sample: Sample) -> float | None:
    found = estimate(sample)
    return found.mean if found.seeds else None


OFF = planted("off", "both runs take half steps on the same principal weights")
STRIPED = planted(
    "striped", "every line and head along the head axis has a step size of its own, the same in both runs"
)
SEEN = planted("seen", "a tenth of the weights, at random, moved so far that rounding hides nothing")

CLAIMS = (
    Weighed("P6", p6, planted("even", "the runs' own steps at shuffled places, rounded"), SEEN),
    Weighed("P7", p7, planted("null", "the runs' own steps, shuffled among weights of the same size"), SEEN, shares),
    Weighed("P8", p8, planted("gauss", "Gaussian steps of equal norm"), SEEN, shares),
    Weighed("P9", p9, OFF, ANYWHERE, jaccards),
    Weighed("S1", s1, (Roles(REAL.like("seen").rl, REAL.sft), SEEN[1]),
            (Roles(REAL.rl[:1], REAL.rl[1:]), "one RLVR run against another"), shares),
    Weighed("L1", l1, OFF, NOTHING, jaccards),
    Weighed("L2", l2, OFF, NOTHING, jaccards),
    Weighed("L3", l3, STRIPED, NOTHING),
    Weighed("L5", l5, STRIPED, NOTHING),
)  # fmt: skip
