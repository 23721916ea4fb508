"""G6 to G8: how far the trained arms went, in KL and in weights, against their learning rate and against SFT.

What it is: the KL that the arms recorded on answers, and |D| of their float32 masters. What it is not: the statements
about KL and Fisher, which need no run (``leash``), or a path: the laboratory keeps the end of each run.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from offprincipal.lab.claims.matrix import Roles
from offprincipal.lab.claims.samples import REAL, Evidence, Row, log_ratio, per_run
from offprincipal.lab.claims.verdict import Measured, Sample
from offprincipal.lab.claims.weights import Weighed

AXIS = 0.0125
"""Nats per token: where the axis of the paper's Fig. 9 ends, 300 steps on DS-Qwen-1.5B."""


def _families(evidence: Evidence, value: Callable[[Row, str], float | None]) -> Sample:
    """Per seed the values of both task families; seeds whose runs lack a record are left out."""
    found = []
    for seed in evidence.seeds:
        whole = all(run in seed.records for run in (*REAL.rl, *REAL.sft))
        known = (
            [value({"records": seed.records, "seed": seed}, family) for family in ("math", "code")] if whole else []
        )
        found.append(np.array([each for each in known if each is not None]))
    return found


def token_kl(record_: Mapping[str, Any], family: str) -> float:
    """KL(arm || base) per token on the arm's answers, nats."""
    found = record_["kl_arm_to_base"][family]
    return found["nats"] / found["tokens"] if found["tokens"] else math.nan


def _mean_kl(row: Row, family: str) -> float:
    return float(np.mean([token_kl(row["records"][run], family) for run in REAL.rl]))


def g6(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """The KL to the base at the end of training without a KL penalty; whether it rises on the way is not recorded."""
    sample = _families(evidence, lambda row, family: AXIS - _mean_kl(row, family))
    return (Measured("0.0125 minus KL(RL || base), nats per token, at the end", sample),)


def g7(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """1 minus mean |D| over the sum of the learning rates; beside it, a walk of as many random signs."""
    lengths = _lengths(evidence)

    def straight(row: Row) -> float | None:
        return 1 - row["delta_abs_sum"] / row["counted"] / lengths[0] if lengths and row.get("fine") else None

    def shorter(row: Row) -> float | None:
        return (
            (lengths[1] - row["delta_abs_sum"] / row["counted"]) / lengths[0] if lengths and row.get("fine") else None
        )

    over = {"random signs": per_run(evidence, roles.rl, shorter)}
    words = "1 minus mean |D| / (steps x learning rate)"
    return (Measured(words, per_run(evidence, roles.rl, straight), over, (), 0.5),)


def _lengths(evidence: Evidence) -> tuple[float, float] | None:
    """Sum of the learning rates of an RLVR run, and the mean |sum| of the same steps with random signs."""
    for seed in evidence.seeds:
        for run in REAL.rl:
            if run in seed.records:
                plan = seed.records[run]["settings"]["rlvr"]
                warm = max(1, plan["steps"] // 10)
                rates = [plan["learning_rate"] * min(1.0, step / warm) for step in range(plan["steps"])]
                return sum(rates), math.sqrt(2 / math.pi * sum(rate * rate for rate in rates))
    return None


def g8(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """RL's KL to the base is below SFT's, and below it for the same norm (KL goes like the norm squared)."""

    def raw(row: Row, family: str) -> float | None:
        return log_ratio(token_kl(row["records"]["sft"], family), _mean_kl(row, family))

    def beyond(row: Row, family: str) -> float | None:
        sizes = log_ratio(_norm_sq(row["seed"].parts, REAL.sft), _norm_sq(row["seed"].parts, REAL.rl))
        found = raw(row, family)
        return None if sizes is None or found is None else found - sizes

    over = {"norm": _families(evidence, beyond)}
    return (Measured("ln(KL of SFT / KL of RL)", _families(evidence, raw), over, ("norm",), math.log(1.25)),)


def _norm_sq(parts: Sequence[Row], runs: Sequence[str]) -> float:
    """||D||^2 over the linear matrices, mean over runs."""
    sums = [sum(part["rows"][run]["delta_sq"] for part in parts if run in part["rows"]) for run in runs]
    return sum(sums) / len(sums)


def kls(evidence: Evidence) -> Mapping[str, Any]:
    """KL(arm || base) per token, of each seed, run and family."""
    return {
        seed.name: {run: {family: token_kl(seed.records[run], family) for family in ("math", "code")}
                    for run in (*REAL.rl, *REAL.sft) if run in seed.records}
        for seed in evidence.seeds
    }  # fmt: skip


def largest(evidence: Evidence) -> Mapping[str, Any]:
    """Largest |D| of one coordinate over the sum of the learning rates (Adam: about 1 at most, 3.2 in theory)."""
    lengths = _lengths(evidence)
    rows = (part["rows"].get(run) for seed in evidence.seeds for part in seed.parts for run in REAL.rl)
    found = [row["delta_abs_max"] / lengths[0] for row in rows if row and lengths]
    return {"largest |D| / (steps x learning rate)": max(found, default=None)}


CLAIMS = (Weighed("G6", g6, numbers=kls), Weighed("G7", g7, numbers=largest), Weighed("G8", g8, numbers=kls))
