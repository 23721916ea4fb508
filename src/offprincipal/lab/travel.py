"""How far the arms of ``lab arms`` went: each at its best rate, its float32 weights compared with the base.

What it is: `study`, the ranking with norm, spectrum, subspaces, forgetting and way of every chosen arm beside it, and
the points of the whole grid. What it is not: training, or a claim (``claims``). Source: DEFINITIONS sections 2 and 3.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offprincipal import survey
from offprincipal.fanout import Engine, here
from offprincipal.lab import draws, forgetting, kl_paths
from offprincipal.lab.claims.evidence import arm_records, find, read_json
from offprincipal.lab.judge import PARTS, accuracy, per_token
from offprincipal.lab.kinds import ADAPTERS, DRAWS
from offprincipal.lab.ranking import rank_arms

STAGES = ("sft", "sft-off", "rlvr-1", "rlvr-2")
"""Stages of ``lab run`` whose forgetting is told for scale."""

Record = Mapping[str, Any]

KEYS = (
    "relative_delta_norm", "sparsity_bf16_linear", "nss_mean", "energy_left_lift", "energy_right_lift",
    "energy_principal_lift", "overlap_principal_excess",
)  # fmt: skip
"""Columns of a comparison's runs that are told of an arm; lifts are over Gaussian steps of the same norm."""


def study(folders: Sequence[Path], out: Path, *, engine: Engine = here) -> dict[str, Any] | None:
    """The arms of the first laboratory that has some: ranked, weighed, and point by point.

    Args:
        folders: laboratories, or folders of several.
        out: comparisons are kept in ``out/arms``, losses in ``out/forgetting``, so that it may be stopped and go on.
        engine: where matrices are measured.

    Returns:
        ``seed`` of the laboratory, ``settings`` of the runs, ``arms``: rows of `rank_arms` with ``adapter``: is it
        one, and ``draw``: is it another draw of random; chosen ones with ``travel``: the means of `KEYS` over run
        seeds, ``forgotten``: `forgetting.over_seeds`, and ``kl_path``: `kl_paths.to_dense`, None for dense itself;
        ``points`` (arm, learning rate, run seed, accuracies, KL), ``forgetting`` (the texts, what the base and the
        arms lose on them, and what the stages of ``lab run`` forgot), ``kl_path_null`` (`kl_paths.between_seeds`) and
        ``draws`` (`draws.spread`);
        None where no laboratory has arms.

    Raises:
        InputError: a record or a checkpoint cannot be read.
        UsageError: the extra ``lab`` is not installed.
    """
    for lab in find(folders):
        records = list(arm_records([lab], {lab: lab.name}))
        if records:
            return _study(lab, records, out, engine)
    return None


def _study(lab: Path, records: Sequence[Record], out: Path, engine: Engine) -> dict[str, Any]:
    rows, mark = rank_arms(records), read_json(lab / "lab.json")
    for row in rows:
        row.update(adapter=row["arm"] in ADAPTERS, draw=row["arm"] in DRAWS)
    best = {row["arm"]: _own(row, records) for row in rows if row["chosen"]}
    dense = best.get("dense", [])
    for row in rows:
        if row["chosen"]:
            own = best[row["arm"]]
            row["travel"] = _travel(lab, row, own, out / "arms", engine)
            row["kl_path"] = kl_paths.to_dense(own, dense) if row["arm"] != "dense" else None
    forgetting = _forgetting(lab, rows, best, out / "forgetting", mark, engine)
    settings = {"preset": mark["preset"]["name"], "rank": read_json(lab / "arms" / "arms.json")["rank"]}
    return {
        "seed": mark["seed"],
        "settings": settings,
        "arms": rows,
        "points": [_point(record) for record in records],
        "forgetting": forgetting,
        "kl_path_null": kl_paths.between_seeds(dense),
        "draws": draws.spread(records),
    }


def _own(row: Mapping[str, Any], records: Sequence[Record]) -> list[Record]:
    """The runs of a row, by run seed."""
    own = [r for r in records if (r["arm"], r["learning_rate"]) == (row["arm"], row["learning_rate"])]
    return sorted(own, key=lambda record: record["run_seed"])


def _forgetting(
    lab: Path,
    rows: Sequence[dict[str, Any]],
    best: Mapping[str, Sequence[Record]],
    out: Path,
    mark: Mapping[str, Any],
    engine: Engine,
) -> dict[str, Any]:
    """Put ``forgotten`` into chosen rows; what it is measured on, every run's loss, and the stages for scale."""
    runs = [record for group in best.values() for record in group]
    stages = [stage for stage in STAGES if (lab / stage).is_dir()]
    folders = [*(record["folder"] for record in runs), *(lab / stage for stage in stages)]
    base, *after = forgetting.read(lab, folders, out, mark, engine)
    lost = dict(zip([(record["arm"], record["run_seed"]) for record in runs], after, strict=False))
    for row in rows:
        if row["chosen"]:
            rises = [forgetting.rise(lost[row["arm"], record["run_seed"]], base) for record in best[row["arm"]]]
            row["forgotten"] = forgetting.over_seeds(rises)
    return {
        "texts": forgetting.TEXTS,
        "split": "heldout, test half",
        "corruption": mark["preset"]["corruption"],
        "base": base,
        "runs": [{"arm": arm, "run_seed": seed, "losses": counts} for (arm, seed), counts in lost.items()],
        "stages": {stage: forgetting.rise(each, base) for stage, each in zip(stages, after[len(runs) :], strict=True)},
    }


def _travel(lab: Path, row: Mapping[str, Any], own: Sequence[Record], out: Path, engine: Engine) -> dict[str, float]:
    """Means over the run seeds of a chosen arm; a number that some run lacks is left out."""
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
