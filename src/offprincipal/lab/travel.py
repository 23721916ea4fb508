"""How far the arms of ``lab arms`` went: each at its best rate, its float32 weights compared with the base.

What it is: `study`, the ranking with norm, spectrum and subspaces of every chosen arm beside it, and the points of the
whole grid. What it is not: training, or a claim (``claims``). Source: DEFINITIONS sections 2 and 3.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offprincipal import survey
from offprincipal.fanout import Engine, here
from offprincipal.lab.claims.evidence import arm_records, find, read_json
from offprincipal.lab.judge import PARTS, accuracy, per_token
from offprincipal.lab.kinds import ADAPTERS
from offprincipal.lab.ranking import rank_arms

KEYS = (
    "relative_delta_norm", "sparsity_bf16_linear", "nss_mean", "energy_left_lift", "energy_right_lift",
    "energy_principal_lift", "overlap_principal_excess",
)  # fmt: skip
"""Columns of a comparison's runs that are told of an arm; lifts are over Gaussian steps of the same norm."""


def study(folders: Sequence[Path], out: Path, *, engine: Engine = here) -> dict[str, Any] | None:
    """The arms of the first laboratory that has some: ranked, weighed, and point by point.

    Args:
        folders: laboratories, or folders of several.
        out: comparisons are kept in ``out/arms``, so that it may be stopped and run again.
        engine: where matrices are measured.

    Returns:
        ``seed`` of the laboratory, ``settings`` of the runs, ``arms`` (rows of `rank_arms` with ``adapter``: is it
        one; chosen ones with ``travel``: the means of `KEYS` over run seeds) and ``points`` (arm, learning rate, run
        seed, accuracies, KL);
        None where no laboratory has arms.

    Raises:
        InputError: a record or a checkpoint cannot be read.
    """
    for lab in find(folders):
        records = list(arm_records([lab], {lab: lab.name}))
        if records:
            rows = rank_arms(records)
            for row in rows:
                row["adapter"] = row["arm"] in ADAPTERS
                if row["chosen"]:
                    row["travel"] = _travel(lab, row, records, out / "arms", engine)
            mark = read_json(lab / "lab.json")
            settings = {"preset": mark["preset"]["name"], "rank": read_json(lab / "arms" / "arms.json")["rank"]}
            return {"seed": mark["seed"], "settings": settings, "arms": rows, "points": [_point(r) for r in records]}
    return None


def _travel(
    lab: Path, row: Mapping[str, Any], records: Sequence[Mapping[str, Any]], out: Path, engine: Engine
) -> dict[str, float]:
    """Means over the run seeds of a chosen arm; a number that some run lacks is left out."""
    own = [r for r in records if (r["arm"], r["learning_rate"]) == (row["arm"], row["learning_rate"])]
    runs = {f"seed-{record['run_seed']}": record["folder"] / "master" for record in own}
    place = out / f"{row['arm']}-{row['learning_rate']:g}-{'-'.join(runs)}"  # the best rate may change, seeds may come
    done = survey.compare(lab / "base", runs, place, engine=engine).summary["runs"]
    kept = [key for key in KEYS if all(run.get(key) is not None for run in done)]
    return {key: sum(run[key] for run in done) / len(done) for key in kept}


def _point(record: Mapping[str, Any]) -> dict[str, Any]:
    """One run in one line of numbers."""
    shares = {
        part: {name: accuracy({name: each}) for name, each in record[part]["accuracy_after"].items()} for part in PARTS
    }
    names = ("arm", "learning_rate", "run_seed", "seconds_training", "optimizer_bytes", "parameters_trained")
    return {
        **{name: record[name] for name in names},
        **shares,
        "kl_arm_to_base": per_token(record["test"]["kl_arm_to_base"]),
    }
