"""D7 and L4, from what lies beside a laboratory; and the claims that only public checkpoints can decide.

What it is: readers of ``LAB/*/probe-curvature.json`` and of a trajectory's comparison ``LAB/*/``; the list of what the
laboratory lacks, each with its command. What it is not: the probes or the comparisons.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from offprincipal.lab.claims.evidence import read_json
from offprincipal.lab.claims.locality import ATTENTION
from offprincipal.lab.claims.record import NotRun, Record
from offprincipal.lab.claims.samples import Evidence, Row
from offprincipal.lab.claims.training import first_folder
from offprincipal.lab.claims.verdict import Measured, Sample
from offprincipal.lab.claims.weights import judged_record

LACKING = {
    "S1 public": ("the public pairs of Table 1, one after another", "--list"),
    "S3": ("recent public checkpoints", "deepscaler -o out/deepscaler"),
    "L6": ("RL runs of other model families", "deepseek-math -o out/deepseek-math"),
    "X1": ("tool-use checkpoints of Table 3", "skyrl-web -o out/skyrl-web"),
    "X2": ("preference-trained checkpoints of Table 3", "llama3-preference -o out/llama3-preference"),
    "X3": ("UloRL-A3B, a mixture of experts", "ulorl -o out/ulorl"),
}
"""Claims that need public checkpoints: what the laboratory lacks, and what to ask of ``reproduce``."""


def curvature(lab: Path) -> Row | None:
    """``probe-curvature.json`` in a laboratory's folder or one below it."""
    files = sorted([*lab.glob("probe-curvature.json"), *lab.glob("*/probe-curvature.json")])
    return read_json(files[0]) if files else None


def d7(evidence: Evidence) -> tuple[Measured, ...]:
    """Fisher quotient of random directions inside the principal subspaces over whole random directions, per matrix."""
    return (
        Measured("ln(Fisher quotient of random principal directions / of random ones)", _premise(evidence, "fisher"),
                 {}, (), math.log(1.25)),
    )  # fmt: skip


def judge_d7(evidence: Evidence) -> Record:
    """D7, with what was asked of the probes."""
    made = d7(evidence)
    probes = [probe for seed in evidence.seeds if seed.folder and (probe := curvature(seed.folder))]
    kept = ("batches", "draws", "rank")
    settings = {name: sorted({probe["settings"][name] for probe in probes}) for name in kept}
    settings["tokens"] = [probe["tokens"] for probe in probes]
    return judged_record("D7", made, evidence, settings=settings)


def _premise(evidence: Evidence, form: str) -> Sample:
    found = [curvature(seed.folder) for seed in evidence.seeds if seed.folder]
    if not any(found):
        folder = first_folder(evidence)
        raise NotRun(
            "the curvature of the base",
            f"offprincipal probe curvature {folder}/base rl={folder}/rlvr-1 --prompts {folder}/held-out.jsonl "
            f"-o {folder}/probes",
        )
    samples = []
    for probe in filter(None, found):
        rows = [row["contrasts"].get(f"{form} random on") for row in probe["runs"][0]["matrices"]]
        samples.append(np.array([math.log(row["ratio"]) for row in rows if row and row.get("ratio", 0) > 0]))
    return samples


def trajectories(lab: Path) -> list[dict[str, Any]]:
    """Rows of ``consensus.parquet`` of every trajectory compared into a folder of the laboratory."""
    rows = []
    for steps in sorted(lab.glob("*/steps.parquet")):
        rows += pq.read_table(steps.parent / "consensus.parquet").to_pylist()
    return rows


def l4(evidence: Evidence) -> tuple[Measured, ...]:
    """Correlation over time of the profile along the head axis, above the magnitude null, and above the other axis."""
    found = [[row for row in trajectories(seed.folder) if row["linear"] and row["kind"] in ATTENTION]
             for seed in evidence.seeds if seed.folder]  # fmt: skip
    if not any(found):
        folder = first_folder(evidence)
        course = f"{folder}/matched/rlvr/lr-RATE"
        command = f"offprincipal compare {folder}/base {course}/step-*/master --trajectory -o {folder}/steps"
        raise NotRun("checkpoints along one run", command)

    def along(row: Row, own: bool, null: str = "") -> float | None:
        side = "col" if (row["kind"] == "o") is own else "row"
        return row.get(f"{side}_pearson{null}")

    def sample(value: Callable[[Row], float | None]) -> Sample:
        return [np.array([x for row in rows if (x := value(row)) is not None]) for rows in found]

    above = sample(lambda row: _minus(along(row, True), along(row, True, "_matched_mean")))
    axes = sample(lambda row: _minus(along(row, True), along(row, False)))
    plain = sample(lambda row: along(row, True))
    return (
        Measured(
            "correlation of profiles along the head axis over time", plain, {"magnitude": above}, ("magnitude",), 0.1
        ),
        Measured("the same minus the other axis", axes, least=0.1),
    )


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def lacking(id_: str) -> Callable[[Evidence], Record]:
    """A claim that the laboratory cannot decide."""
    what, entry = LACKING[id_]

    def tell(evidence: Evidence) -> Record:
        raise NotRun(what, f"offprincipal reproduce {entry}")

    return tell


CLAIMS: tuple[tuple[str, Callable[[Evidence], Record]], ...] = (
    ("D7", judge_d7),
    ("L4", lambda evidence: judged_record("L4", l4(evidence), evidence)),
    *((id_, lacking(id_)) for id_ in LACKING),
)
