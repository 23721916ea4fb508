"""A1 to A6: do the changes avoid the principal weights and prefer the small ones, beyond what magnitude explains?

What it is: overlaps of the update masks of the RLVR and SFT runs with M_princ(64, .5) and M_low(.5), oriented so that
positive is what the paper says. What it is not: the masks or the nulls (``measures``).
"""

from collections.abc import Mapping
from typing import Any

from offprincipal.lab.claims.matrix import Roles
from offprincipal.lab.claims.samples import REAL, Evidence, Row, cross_pairs, per_pair, per_run
from offprincipal.lab.claims.verdict import Measured, Sample
from offprincipal.lab.claims.weights import ANYWHERE, NOTHING, Weighed, planted

POINTS = 0.005
"""Least difference of an overlap share that counts (*ours*): half a point."""

MOVED = 0.01
"""Least relative difference of the mean step that counts (*ours*): one percent."""


def share(row: Row, mask: str, key: str = "changed") -> float | None:
    """``|A and M| / |M|`` of an update mask, or what a null gives for it; None where nothing changed."""
    part = row.get(f"{mask}_{key}")
    return part / row["changed"] if row["changed"] and part is not None else None


def chance(row: Row, mask: str) -> float | None:
    """``|A| / n``."""
    ones = row.get(f"{mask}_ones")
    return ones / row["counted"] if row["counted"] and ones is not None else None


def less(first: float | None, second: float | None) -> float | None:
    """``second - first``: by how much the first is below the second."""
    return None if first is None or second is None else second - first


def _avoids(evidence: Evidence, runs: tuple[str, ...], mask: str, effect: str) -> Measured:
    """An overlap below chance, and below the rounding, shuffled and magnitude nulls; the last decides."""

    def below(key: str) -> Sample:
        return per_run(evidence, runs, lambda row: less(share(row, mask), share(row, mask, key)))

    over = {"magnitude": below("matched"), "rounding": below("rounding")}
    if mask == "principal":
        over["shuffled steps"] = per_run(
            evidence, runs, lambda row, null: less(share(row, mask), share(null, mask)), "even"
        )
    sample = per_run(evidence, runs, lambda row: less(share(row, mask), chance(row, mask)))
    return Measured(effect, sample, over, ("magnitude",), POINTS)


def a1(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """RL avoids M_princ: the overlap is below chance, and below the magnitude null."""
    return (_avoids(evidence, roles.rl, "principal", "chance minus overlap with M_princ"),)


def a2(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """RL prefers M_low: the overlap is above chance, and above that of the same steps at shuffled places.

    The magnitude null equals the observation by construction; the rounding null assumes Gaussian steps.
    """
    over = {
        "shuffled steps": per_run(
            evidence, roles.rl, lambda row, null: less(share(null, "low"), share(row, "low")), "even"
        ),
        "rounding": per_run(evidence, roles.rl, lambda row: less(share(row, "low", "rounding"), share(row, "low"))),
    }
    sample = per_run(evidence, roles.rl, lambda row: less(chance(row, "low"), share(row, "low")))
    return (Measured("overlap with M_low minus chance", sample, over, ("shuffled steps",), POINTS),)


def a3(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """What RL avoids is principal and not small: the overlap with M_princ without M_low, likewise."""
    return (_avoids(evidence, roles.rl, "principal_high", "chance minus overlap with M_princ without M_low"),)


def step_ratio(row: Row) -> float | None:
    """Mean |D| on M_princ over that on all weights; None where no float32 master was read."""
    total = row.get("principal_abs_sum")
    if total is None or not row["delta_abs_sum"]:
        return None
    return (total / row["principal_ones"]) / (row["delta_abs_sum"] / row["counted"])


def step_excess(row: Row) -> float | None:
    """Mean |D| on M_princ over what weights of the same magnitude have (N4): 1 when only magnitude matters."""
    expected = row.get("principal_abs_matched")
    return row["principal_abs_sum"] / expected if expected else None


def a4(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """SFT targets principal weights: by mean |D|, without rounding, as a dense mask is pinned near chance."""
    sample = per_run(evidence, roles.sft, lambda row: less(1.0, step_ratio(row)))
    over = {"magnitude": per_run(evidence, roles.sft, lambda row: less(1.0, step_excess(row)))}
    return (Measured("mean |D| on M_princ over the mean, minus 1", sample, over, ("magnitude",), MOVED),)


def a5(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """Geometry beyond magnitude: below the magnitude null by the mask, and by mean |D| without any rounding."""
    masked = per_run(evidence, roles.rl, lambda row: less(share(row, "principal"), share(row, "principal", "matched")))
    steps = per_run(evidence, roles.rl, lambda row: less(step_excess(row), 1.0))
    return (
        Measured("magnitude null minus overlap with M_princ", masked, least=POINTS),
        Measured("1 minus mean |D| on M_princ over weights of equal magnitude", steps, least=MOVED),
    )


def a6(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """RL and SFT change disjoint weights: their Jaccard is below what magnitude alone gives."""
    pairs = cross_pairs(roles)

    def below(key: str) -> Sample:
        return per_pair(evidence, pairs, lambda found: less(found["pair"]["jaccard"], found["pair"][key]))

    over = {"magnitude": below("jaccard_matched")}
    return (Measured("independent masks minus Jaccard of SFT and RL", below("jaccard_bernoulli"), over, ("magnitude",),
                     0.01),)  # fmt: skip


def sweep(evidence: Evidence) -> Mapping[str, Any]:
    """A1 over mask sizes and ranks: mean over seeds, matrices and runs of overlap minus magnitude null, in points."""
    found: dict[str, list[float]] = {}
    for seed in evidence.seeds:
        for part in seed.parts:
            for run in REAL.rl:
                row = part["rows"].get(run) or {}
                curves = row.get("curves", {})
                for name, word in (("principal", "alpha"), ("principal_rank", "rank")):
                    observed, expected = curves.get(f"{name}_count"), curves.get(f"{name}_matched")
                    if observed and expected and row["changed"]:
                        for x, count, null in zip(observed[0], observed[1], expected[1], strict=True):
                            found.setdefault(f"{word} {x:g}", []).append(100 * (count - null) / row["changed"])
    return {"overlap minus magnitude null, points": {key: sum(v) / len(v) for key, v in found.items()}}


OFF = planted("off", "steps halved on principal weights, smaller on large ones, halved in the principal subspace")

CLAIMS = (
    Weighed("A1", a1, OFF, NOTHING, sweep),
    Weighed("A2", a2, OFF, ANYWHERE),
    Weighed("A3", a3, OFF, NOTHING),
    Weighed("A4", a4, planted("on", "SFT steps half as large again on principal weights"), NOTHING),
    Weighed("A5", a5, OFF, NOTHING, sweep),
    Weighed("A6", a6, planted("apart", "SFT moves one random half of each matrix, RL the other"), NOTHING),
)
