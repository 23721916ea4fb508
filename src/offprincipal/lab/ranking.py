"""The arms in one table: what each gained, how far it went, what it cost; learning rates chosen on validation only.

What it is: sums and means of the records that ``arms`` wrote. What it is not: a test of significance: with few seeds
the spread beside each mean is the range, and the reader's eye the judge.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def rank_arms(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per arm and learning rate, best validation accuracy first.

    Accuracies are shares of all sampled answers, both families together; KL(arm || base) in nats per token of the
    arm's own answers, on the test half. Means over seeds, with the least and the largest beside the accuracies.
    ``chosen`` marks each arm's best rate on validation; test numbers decide nothing.
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
    return rows


def _row(arm: str, rate: float, group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    validation, test = ([_accuracy(record[part]["accuracy_after"]) for record in group] for part in PARTS)
    return {
        "arm": arm,
        "learning_rate": rate,
        "seeds": sorted(record["run_seed"] for record in group),
        "validation_before": _accuracy(group[0]["validation"]["accuracy_before"]),
        "validation": _mean(validation),
        "validation_range": [min(validation), max(validation)],
        "test_before": _accuracy(group[0]["test"]["accuracy_before"]),
        "test": _mean(test),
        "test_range": [min(test), max(test)],
        "kl_arm_to_base": _mean([_per_token(record["test"]["kl_arm_to_base"]) for record in group]),
        "kl_base_to_arm": _mean([_per_token(record["test"]["kl_base_to_arm"]) for record in group]),
        "parameters_trained": group[0]["parameters_trained"],
        "optimizer_bytes": group[0]["optimizer_bytes"],
        "seconds_training": _mean([record["seconds_training"] for record in group]),
    }


PARTS = ("validation", "test")


def _accuracy(families: Mapping[str, Mapping[str, int]]) -> float:
    return sum(part["right"] for part in families.values()) / sum(part["samples"] for part in families.values())


def _per_token(families: Mapping[str, Mapping[str, float]]) -> float:
    return sum(part["nats"] for part in families.values()) / sum(part["tokens"] for part in families.values())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def print_ranking(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The table as a person reads it."""
    table = Table(
        title="Arms by validation accuracy", title_justify="left", title_style="bold", caption_justify="left"
    )
    table.caption = (
        "* the arm's best learning rate on validation; accuracies in percent \\[range over seeds]; "
        "KL in nats per token"
    )
    columns = (
        "arm",
        "lr",
        "seeds",
        "validation",
        "test",
        "gain",
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
            f"{row['learning_rate']:g}",
            str(len(row["seeds"])),
            _percent(row, "validation"),
            _percent(row, "test"),
            f"{100 * (row['test'] - row['test_before']):+.1f}",
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
