"""How much the draw of a random mask decides: other draws at equal rate and run seed, against other run seeds.

What it is: spreads of test accuracy over ``random`` and its `DRAWS`. What it is not: a comparison of rules.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from offprincipal.lab.kinds import DRAWS
from offprincipal.lab.ranking import accuracy

ARMS = ("random", *DRAWS)


def spread(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per learning rate with several draws, by rate: how test accuracy differs between draws and between run seeds.

    Returns:
        ``learning_rate``; ``draws`` and ``seeds`` that are there; ``over_draws``: among the draws of one run seed, and
        ``over_seeds``: among the run seeds of one draw, each with ``range`` (largest minus least, mean over the other)
        and ``sd`` (its variance with n - 1, pooled over the other), None where none has two; ``sampling``: standard
        deviation of one accuracy if every answer were sampled by itself, which is the most that sampling can do.
    """
    rates: dict[float, dict[tuple[str, int], Mapping[str, Any]]] = defaultdict(dict)
    for record in records:
        if record["arm"] in ARMS:
            rates[record["learning_rate"]][record["arm"], record["run_seed"]] = record["test"]["accuracy_after"]
    return [_at(rate, found) for rate, found in sorted(rates.items()) if len({arm for arm, _ in found}) > 1]


def _at(rate: float, found: Mapping[tuple[str, int], Any]) -> dict[str, Any]:
    shares = {run: accuracy(families) for run, families in found.items()}
    draws = [arm for arm in ARMS if any(arm == run[0] for run in shares)]
    seeds = sorted({seed for _, seed in shares})
    samples = sum(family["samples"] for family in next(iter(found.values())).values())
    mean = sum(shares.values()) / len(shares)
    return {
        "learning_rate": rate,
        "draws": draws,
        "seeds": seeds,
        "over_draws": _spread([[shares[d, s] for d in draws if (d, s) in shares] for s in seeds]),
        "over_seeds": _spread([[shares[d, s] for s in seeds if (d, s) in shares] for d in draws]),
        "sampling": math.sqrt(mean * (1 - mean) / samples),
    }


def _spread(groups: Sequence[Sequence[float]]) -> dict[str, float] | None:
    """Of the groups of two and more.

    >>> _spread([[1.0, 3.0], [5.0]])
    {'range': 2.0, 'sd': 1.4142135623730951}
    """
    kept = [group for group in groups if len(group) > 1]
    if not kept:
        return None
    ranges = [max(group) - min(group) for group in kept]
    squares = sum(sum((value - sum(group) / len(group)) ** 2 for value in group) for group in kept)
    freedom = sum(len(group) - 1 for group in kept)
    return {"range": sum(ranges) / len(ranges), "sd": math.sqrt(squares / freedom)}
