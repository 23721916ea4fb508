"""The arms in one table: what each gained, how far it went, what it cost; learning rates chosen on validation only.

What it is: sums and means of the records that ``arms`` wrote, and each arm at its best rate against dense training and
LoRA, seed by seed, with an interval. What it is not: the claims about arms (``claims.training``).
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from offprincipal.lab.claims.verdict import MIN_SEEDS, estimate
from offprincipal.lab.judge import PARTS, accuracy, per_token

REFERENCES = ("dense", "lora")
"""The arms that every other one is held against, each at its best rate on validation."""

SUSTAINED = 5
"""Steps over which the reward is averaged before an arm is said to have collapsed (*ours*)."""

EDGES = {"largest": " ^", "smallest": " v"}
"""How the table marks a best rate at the edge of its arm's own grid."""

Group = Sequence[Mapping[str, Any]]


def rank_arms(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per arm and learning rate, best validation accuracy first.

    Accuracies are shares of all sampled answers, both families together; KL(arm || base) in nats per token of the
    arm's own answers, on the test half. Means over seeds, with the least and the largest beside the accuracies.
    ``chosen`` marks each arm's best rate on validation; test numbers decide nothing. ``edge`` says where the rate lies
    among those tried with this arm (`edge`). A chosen row has ``against``: for each of `REFERENCES` the test accuracy
    minus the reference's, seed by seed (`against`). ``collapsed`` counts the seeds that end below half of the base's
    accuracy (`collapse`), ``collapse_step`` is the earliest of their steps.
    """
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["arm"], record["learning_rate"]].append(record)
    rows = [_row(arm, rate, group) for (arm, rate), group in groups.items()]
    rows.sort(key=lambda row: (-row["validation"], row["arm"], row["learning_rate"]))
    seen: set[str] = set()
    for row in rows:
        row["chosen"] = row["arm"] not in seen
        seen.add(row["arm"])
        row["edge"] = edge(row["learning_rate"], {rate for arm, rate in groups if arm == row["arm"]})
    best = {row["arm"]: groups[row["arm"], row["learning_rate"]] for row in rows if row["chosen"]}
    for row in rows:
        others = [name for name in REFERENCES if row["chosen"] and name in best and name != row["arm"]]
        row["against"] = {name: against(best[row["arm"]], best[name]) for name in others}
    return rows


def against(group: Group, reference: Group) -> dict[str, Any]:
    """Test accuracy of an arm minus that of another, over the run seeds that both have.

    Returns:
        ``mean``, ``low``, ``high`` (95 %, `estimate` over seeds and families within), ``seeds``, and ``says``:
        "better", "worse", "no difference" where the interval covers zero, or "too few seeds"; ``shown`` is all that in
        words, in points.
    """
    own, other = (
        {record["run_seed"]: record["test"]["accuracy_after"] for record in side} for side in (group, reference)
    )
    shared = sorted(own.keys() & other.keys())
    sample = [
        np.array([accuracy({name: own[seed][name]}) - accuracy({name: other[seed][name]}) for name in own[seed]])
        for seed in shared
    ]
    found = estimate(sample)
    says = "too few seeds"
    if len(shared) >= MIN_SEEDS and found.low is not None and found.high is not None:
        says = "better" if found.low > 0 else "worse" if found.high < 0 else "no difference"
    ends = "" if found.low is None or found.high is None else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return {**found.row(), "says": says, "shown": f"{100 * found.mean:+.1f}{ends} {says}"}


def collapse(record: Mapping[str, Any]) -> int | None:
    """The step from which on the mean reward of `SUSTAINED` steps stays below half of the base's accuracy; or None.

    >>> before = {"accuracy_before": {"math": {"samples": 10, "right": 6}}}
    >>> collapse({"validation": before, "path": {"reward": [0.6] * 4 + [0.1] * 8}})
    8
    """
    rewards = record.get("path", {}).get("reward", [])
    floor = accuracy(record["validation"]["accuracy_before"]) / 2
    low = [_mean(rewards[max(0, i + 1 - SUSTAINED) : i + 1]) < floor for i in range(len(rewards))]
    if not low or not low[-1]:
        return None
    return len(low) - next((i for i, below in enumerate(reversed(low)) if not below), len(low)) + 1


def edge(rate: float, tried: Collection[float]) -> str | None:
    """Where a rate lies among those tried with its arm: the best one may lie beyond an edge.

    >>> edge(2e-3, {7e-4, 2e-3}), edge(7e-4, {7e-4, 2e-3}), edge(7e-4, {7e-4}), edge(2, {1, 2, 3})
    ('largest', 'smallest', 'only', None)
    """
    if len(tried) == 1:
        return "only"
    return {max(tried): "largest", min(tried): "smallest"}.get(rate)


def _row(arm: str, rate: float, group: Group) -> dict[str, Any]:
    validation, test = ([accuracy(record[part]["accuracy_after"]) for record in group] for part in PARTS)
    fallen = [step for step in map(collapse, group) if step is not None]
    return {
        "arm": arm,
        "learning_rate": rate,
        "seeds": sorted(record["run_seed"] for record in group),
        "validation_before": accuracy(group[0]["validation"]["accuracy_before"]),
        "validation": _mean(validation),
        "validation_range": [min(validation), max(validation)],
        "test_before": accuracy(group[0]["test"]["accuracy_before"]),
        "test": _mean(test),
        "test_range": [min(test), max(test)],
        "kl_arm_to_base": _mean([per_token(record["test"]["kl_arm_to_base"]) for record in group]),
        "kl_base_to_arm": _mean([per_token(record["test"]["kl_base_to_arm"]) for record in group]),
        "collapsed": len(fallen),
        "collapse_step": min(fallen, default=None),
        "parameters_trained": group[0]["parameters_trained"],
        "optimizer_bytes": group[0]["optimizer_bytes"],
        "seconds_training": _mean([record["seconds_training"] for record in group]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def print_ranking(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The table as a person reads it."""
    table = Table(
        title="Arms by validation accuracy", title_justify="left", title_style="bold", caption_justify="left"
    )
    table.caption = (
        "* the arm's best learning rate on validation; ^ v the largest, the smallest that it was given; "
        "accuracies in percent \\[range over seeds]; KL in nats per token"
    )
    columns = (
        "arm",
        "lr",
        "seeds",
        "validation",
        "test",
        "gain",
        "minus dense",
        "collapsed",
        "KL(arm, base)",
        "trained",
        "state bytes",
        "seconds",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "arm" else "right")
    for row in rows:
        table.add_row(
            row["arm"] + (" *" if row["chosen"] else ""),
            f"{row['learning_rate']:g}{EDGES.get(row['edge'], '') if row['chosen'] else ''}",
            str(len(row["seeds"])),
            _percent(row, "validation"),
            _percent(row, "test"),
            f"{100 * (row['test'] - row['test_before']):+.1f}",
            row["against"].get("dense", {}).get("shown", "-"),
            f"{row['collapsed']} of {len(row['seeds'])}" if row["collapsed"] else "-",
            f"{row['kl_arm_to_base']:.3g}",
            f"{row['parameters_trained']:,}",
            f"{row['optimizer_bytes']:,}",
            f"{row['seconds_training']:.1f}",
        )
    console.print(table)


def _percent(row: Mapping[str, Any], part: str) -> str:
    low, high = row[f"{part}_range"]
    spread = f" [{100 * low:.1f}, {100 * high:.1f}]" if len(row["seeds"]) > 1 else ""
    return f"{100 * row[part]:.1f}{spread}"
