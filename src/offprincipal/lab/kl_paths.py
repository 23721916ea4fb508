"""How differently two arms walk away from the base: the KL that ``lab arms`` recorded on the way, against dense's.

What it is: sums over the looks in ``run.json`` (``path.kl_base_to_arm``). What it is not: a measure of weights, or of
the function at the end (``judge``). The distance is *ours*.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offprincipal.lab.claims.verdict import estimate

LEAST = 1e-6
"""Nats per token; a smaller KL is taken as this much, so that a step at which nothing moved yet has a logarithm."""

Record = Mapping[str, Any]


def apart(one: Record, other: Record) -> tuple[float, float] | None:
    """How far two runs' KL lies apart, at the steps at which both were looked at.

    Returns:
        Mean over looks of |ln KL_one(t) - ln KL_other(t)|, and the same without the bars: positive where `one` is
        farther from the base. KL(base || arm) in nats per token, at least `LEAST`, on the same answers of the base.
        ln 2 = .69 is a factor of two on average. None where they share no look.

    >>> def run(*nats):
    ...     looks = [{"step": step, "nats": each, "tokens": 10} for step, each in enumerate(nats)]
    ...     return {"path": {"kl_base_to_arm": looks}}
    >>> apart(run(4.0, 1.0), run(1.0, 4.0)) == (math.log(4), 0)
    True
    """
    first, second = (_looks(record) for record in (one, other))
    steps = sorted(first.keys() & second.keys())
    if not steps:
        return None
    ratios = [math.log(first[step] / second[step]) for step in steps]
    return sum(map(abs, ratios)) / len(steps), sum(ratios) / len(steps)


def _looks(record: Record) -> dict[int, float]:
    looks = record.get("path", {}).get("kl_base_to_arm", [])
    return {look["step"]: max(look["nats"] / look["tokens"], LEAST) for look in looks}


def to_dense(group: Sequence[Record], dense: Sequence[Record]) -> dict[str, Any] | None:
    """An arm's distance to dense training with the same run seed: the same problems and the same random draws.

    Returns:
        ``mean``, ``low``, ``high`` (95 % over run seeds, None where there is one), ``seeds``, and ``ahead``, the mean
        with signs; None where no run seed has both.
    """
    others = {record["run_seed"]: record for record in dense}
    found = [apart(record, others[record["run_seed"]]) for record in group if record["run_seed"] in others]
    both = [each for each in found if each is not None]
    if not both:
        return None
    over = estimate([np.array([distance]) for distance, _ in both])
    ahead = sum(sign for _, sign in both) / len(both)
    return {**over.row(), "ahead": ahead}


def between_seeds(dense: Sequence[Record]) -> dict[str, Any] | None:
    """The null of `to_dense`: dense runs of different seeds, pair by pair. Pairs share runs, so there is no interval.

    Returns:
        ``mean``, ``least`` and ``largest`` over ``pairs`` pairs; None where there is no pair.
    """
    found = [apart(one, other) for one, other in itertools.combinations(dense, 2)]
    values = [each[0] for each in found if each is not None]
    if not values:
        return None
    return {"mean": sum(values) / len(values), "least": min(values), "largest": max(values), "pairs": len(values)}
