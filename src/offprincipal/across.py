"""Several runs on the whole model, from the rows that ``together`` left of each tensor.

Means over linear matrices are unweighted, as for overlaps; pooled numbers add up counts first and say so in their
name.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa

from offprincipal.errors import UsageError
from offprincipal.measures.excess import z_score

Rows = list[dict[str, Any]]


def steps_of(labels: Sequence[str]) -> tuple[float, ...]:
    """The step numbers of the checkpoints of one run: the last number in each label, else 1, 2, 3, ...

    Raises:
        UsageError: fewer than two steps, or numbers that do not rise.

    >>> steps_of(["step_100", "step_200"]), steps_of(["first", "last"])
    ((100.0, 200.0), (1.0, 2.0))
    """
    asked = "follow one run over its steps (--trajectory)"
    if len(labels) < 2:
        raise UsageError(asked, "only one checkpoint was given", "give two or more, in the order of training")
    numbers = [re.findall(r"\d+(?:\.\d+)?", label) for label in labels]
    if not all(numbers):
        return tuple(float(i + 1) for i in range(len(labels)))
    steps = tuple(float(found[-1]) for found in numbers)
    if steps[0] <= 0 or any(after <= before for before, after in pairwise(steps)):
        raise UsageError(asked, f"the step numbers are {list(steps)}", "give checkpoints in the order of training")
    return steps


def consensus_summary(rows: Rows, pairs: Rows) -> dict[str, Any]:
    """The key ``consensus`` of a summary: Jaccard of the update masks beside its baselines.

    The mean over pairs of runs of the unweighted mean over linear matrices (the paper's Table 2 does so for one
    block), the same per pair of runs, and the histogram of how many runs changed each weight.
    """
    linear = [row for row in pairs if row["linear"] and row["either"]]
    together = dict.fromkeys((row["run_a"], row["run_b"]) for row in pairs)
    keys = ("jaccard", "jaccard_bernoulli", "jaccard_matched")
    summaries = []
    for a, b in together:
        own = [row for row in linear if (row["run_a"], row["run_b"]) == (a, b)]
        total = {key: sum(row[key] for row in own) for key in ("both", "either", "both_matched", "both_matched_var")}
        summaries.append(
            {"a": a, "b": b, "matrices": len(own)}
            | {key: _mean(own, key) for key in keys}
            | {
                "jaccard_pooled": total["both"] / total["either"] if total["either"] else None,
                "excess_z": z_score(float(total["both"]), total["both_matched"], total["both_matched_var"])
                if own
                else None,
            }
        )
    inside = [row for row in rows if row["linear"]]
    histogram = [sum(times) for times in zip(*(row["times"] for row in inside), strict=True)]
    matched = [sum(times) for times in zip(*(row["times_matched"] for row in inside), strict=True)]
    summary: dict[str, Any] = {key: _mean(summaries, key) for key in keys}
    return summary | {"pairs": summaries, "histogram": histogram, "histogram_matched": matched}


def trajectory_summary(steps: Rows, paths: Rows, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys ``trajectory`` (a record per step) and ``path`` (the whole run) of a summary, over linear matrices."""
    records = []
    for run in runs:
        own = [row for row in steps if row["linear"] and row["run"] == run["label"]]
        factored = [row for row in own if row["sim_end_sq"] is not None and row["delta_sq"]]
        share = [{"rank1": row["rank1_sq"] / row["delta_sq"], "sim": row["sim_end_sq"] / row["sim_end_k"],
                  "chance": row["sim_end_chance"]} for row in factored]  # fmt: skip
        counted = sum(row["counted"] for row in own)
        records.append(
            {
                "label": run["label"],
                "step": own[0]["step"] if own else None,
                "density": sum(row["changed"] for row in own) / counted if counted else None,
                "changed_since_previous": sum(row["changed_since_previous"] for row in own) / counted
                if counted
                else None,
                "relative_delta_norm": run["relative_delta_norm"],
                "jaccard_end": _mean(own, "end_jaccard"),
                "jaccard_end_matched": _mean(own, "end_jaccard_matched"),
                "rank1_share": _mean(share, "rank1"),
                "rank1_share_gauss": _mean(factored, "rank1_gauss"),
                "subspace_end": _mean(share, "sim"),
                "subspace_end_chance": _mean(share, "chance"),
                "nss_mean": run.get("nss_mean"),
                "angle_max_deg": run.get("angle_max_deg"),
            }
        )
    return {"trajectory": records, "path": _path_summary([row for row in paths if row["linear"]])}


def _path_summary(paths: Rows) -> dict[str, Any]:
    counted = sum(row["counted"] for row in paths)
    split = {
        key: sum(row[key] for row in paths) / counted if counted else None
        for key in ("never", "cancelled", "effective")
    }
    moved = [row for row in paths if row["variation_sq"]]
    variation, linear = (sum(row[key] for row in moved) for key in ("variation_sq", "linear_sq"))
    straight, movers = (sum(row[key] for row in moved) for key in ("straight", "moved"))
    return {
        **split,
        "linearity_r2": linear / variation if variation else None,
        "linearity_r2_random_walk": moved[0]["linear_random_walk"] if moved else None,
        "straight_share": straight / movers if movers else None,
    }


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if values else None


def table(rows: Rows) -> pa.Table:
    """Rows of one kind as a table; a column that holds nothing anywhere is float64, as its values would be."""
    found = pa.Table.from_pylist(rows)
    schema = [pa.field(f.name, pa.float64()) if pa.types.is_null(f.type) else f for f in found.schema]
    return found.cast(pa.schema(schema))
