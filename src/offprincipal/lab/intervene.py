"""``offprincipal lab run --intervene``: RLVR from a base whose coordinates were changed in one block.

What it is: the causal half of the theory in the laboratory (PNT 4.3, Fig. 6) with the control that the paper leaves
out. A rotated and a permuted base, proved to be the same function; the run of ``rlvr-1`` from each, on equal problems
with an equal seed; the same runs mapped back to the original coordinates; and an untouched run with another seed. What
it is not: a verdict (``claims``, I1 to I4). One folder per stage, whole or absent, so that it may be stopped.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from offprincipal import rewrite
from offprincipal.errors import InputError
from offprincipal.lab.overlaps import (
    COMPARED,
    INTERVENTIONS,
    OTHER_SEED,
    RUN,
    agreements,
    finest,
    summarise,
)
from offprincipal.lab.parts import limit
from offprincipal.lab.progress import Progress, silent
from offprincipal.lab.quiet import stage_seed
from offprincipal.lab.rlvr import run_grpo
from offprincipal.lab.run import LabRun, run_lab, versions, write_stage
from offprincipal.lab.settings import Preset
from offprincipal.lab.world import load_arm
from offprincipal.store import write_file

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Intervention:
    """A change of coordinates of one block.

    Attributes:
        depth: of the block, as a share of the model: PNT's layers 20 and 25 of 36.
        write: a transform of `rewrite`.
    """

    depth: float
    write: Callable[..., dict[str, Any]]

    def block(self, layers: int) -> int:
        """Which block of a model with so many.

        >>> [KINDS[name].block(36) for name in KINDS], [KINDS[name].block(3) for name in KINDS]
        ([25, 20, 20], [2, 1, 1])
        """
        return int(self.depth * layers + 1e-9)


KINDS = {
    "rotate": Intervention(25 / 36, rewrite.rotate),
    "permute": Intervention(20 / 36, partial(rewrite.permute, neurons=False)),
    "neurons": Intervention(20 / 36, partial(rewrite.permute, heads=False)),
}
"""Rotate: v and o. Permute: heads, in q, k, v, o. Neurons: gate, up, down (*ours*, not in the paper)."""


@dataclass(frozen=True)
class Interventions:
    """The laboratory, and what ``interventions.json`` in its folder ``interventions`` holds."""

    lab: LabRun
    answer: dict[str, Any]

    @property
    def out(self) -> Path:
        """The folder of the interventions."""
        return self.lab.out / INTERVENTIONS


def run_interventions(
    out: Path,
    preset: str | Preset = "tiny",
    seed: int = 0,
    *,
    neurons: bool = False,
    progress: Progress = silent,
    minutes: float | None = None,
) -> Interventions:
    """Train the laboratory, then the run of ``rlvr-1`` again from changed bases, skipping what is finished.

    ``out/interventions/NAME/`` has ``base`` (the transform, verified; ``transform.json``), ``rlvr-1`` (the run from
    it, an arm like any other) and ``mapped/rlvr-1`` (its float32 master mapped back, in float32). NAME is ``rotate``,
    ``permute`` and, if asked, ``neurons``. ``out/interventions/other-seed`` is an untouched run on the problems of
    ``rlvr-1`` with another seed. ``out/interventions/interventions.json`` compares them, matrix by matrix.

    Args:
        out: the folder of a laboratory, or a new one.
        preset: a name of `offprincipal.lab.settings.PRESETS`, or a preset of your own.
        seed: of the laboratory; rotation and orders are drawn from it as well.
        neurons: a third base, with the hidden neurons of one MLP in another order.
        progress: called as ``progress(stage, done, total)`` after every step.
        minutes: stop after so many, at the end of a step; the same call goes on there (`parts`).

    Raises:
        UsageError: an unknown preset, or the extra ``lab`` is not installed.
        InputError: ``out`` holds something else, such as a run of another preset or seed, or cannot be written.
        CheckFailed: a changed base is not the same function; nothing of it is kept.
        parts.Stopped: the minutes are over.
    """
    with limit(minutes):
        lab = run_lab(out, preset, seed, progress)
        names = ["rotate", "permute", *(["neurons"] if neurons else [])]
        _train(lab, lab.out / INTERVENTIONS / OTHER_SEED, lab.out / "base", stage_seed(seed, OTHER_SEED), progress)
        for name in names:
            _intervene(lab, name, progress)
    answer = _answer(lab, names, progress)
    write_file(lab.out / INTERVENTIONS / "interventions.json", (json.dumps(answer, indent=1) + "\n").encode())
    return Interventions(lab, answer)


def _intervene(lab: LabRun, name: str, progress: Progress) -> None:
    """The changed base, the run from it, and the run mapped back."""
    kind, folder = KINDS[name], lab.out / INTERVENTIONS / name
    base, block = folder / "base", kind.block(lab.preset.decoder.layers)
    change = partial(kind.write, lab.out / "base", layers=[block], seed=stage_seed(lab.seed, name), verify=True)
    _once(base, change, f"{name}: change the base", progress)
    _train(lab, folder / RUN, base, stage_seed(lab.seed, RUN), progress)
    back = partial(rewrite.map_back, base, finest(folder / RUN), base=lab.out / "base")
    _once(folder / "mapped" / RUN, back, f"{name}: map back", progress)


def _once(folder: Path, write: Callable[..., Any], stage: str, progress: Progress) -> None:
    """Write a checkpoint; it appears under its name only when it is whole and verified."""
    if folder.exists():
        return
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    write(out=unfinished, progress=lambda done, total, name: progress(stage, done, total))
    os.replace(unfinished, folder)


def _train(lab: LabRun, folder: Path, base: Path, own: int, progress: Progress) -> None:
    """The run of ``rlvr-1`` from this base with this seed."""
    if folder.exists():
        return
    told = folder.relative_to(lab.out / INTERVENTIONS).as_posix()

    def train() -> tuple[Any, Any]:
        model, tokenizer = load_arm(base)
        settings = {"arm": told, "split": RUN, "seed": own, "data_seed": lab.seed, "progress": progress}
        run_grpo(model, tokenizer, lab.preset, **settings)
        return model.cpu(), tokenizer

    write_stage(folder, base, train, lab.preset, seed=lab.seed, own=own)


def _answer(lab: LabRun, names: Sequence[str], progress: Progress) -> dict[str, Any]:
    """What ``interventions.json`` holds."""
    folders = {name: lab.out / INTERVENTIONS / name for name in names}
    changes = {name: rewrite.Transform.load(folder / "base") for name, folder in folders.items()}
    rows, preserved = [], {}
    for done, (name, folder) in enumerate(folders.items(), start=1):
        block = KINDS[name].block(lab.preset.decoder.layers)
        found = [{"intervention": name, "block": block, **row} for row in agreements(lab.out, folder)]
        rows += found
        touched = [row for row in found if row["touched"]]
        preserved[name] = {
            "verify": _read(folder / "base" / "transform.json")["verify"],
            "touched": sorted(changes[name].actions),
            "nss_exact": max(row["nss_exact"] for row in touched),
            "nss_stored": max(row["nss_stored"] for row in touched),
        }
        progress("compare", done, len(folders))
    return {
        "schema_version": SCHEMA_VERSION,
        "settings": _settings(lab, folders),
        "preserved": preserved,
        "summary": summarise(rows),
        "rows": rows,
    }


def _settings(lab: LabRun, folders: dict[str, Path]) -> dict[str, Any]:
    """What decides the numbers. Threads too: another number sums in another order, and runs part from there."""
    records = {RUN: lab.records[RUN], "rlvr-2": lab.records["rlvr-2"]}
    records |= {f"{name}/{RUN}": _read(folder / RUN / "run.json") for name, folder in folders.items()}
    records[OTHER_SEED] = _read(lab.out / INTERVENTIONS / OTHER_SEED / "run.json")
    kept = ("stage_seed", "threads", "accuracy_before", "accuracy_after", "kl_base_to_arm", "kl_arm_to_base")
    return {
        "preset": lab.preset.name,
        "seed": lab.seed,
        "problems": RUN,
        "weights": "updates from float32 masters against each run's own base as stored; mapped back in float32",
        "compared": COMPARED,
        "runs": {run: {key: record[key] for key in kept} for run, record in records.items()},
        "versions": versions(),
    }


def _read(file: Path) -> dict[str, Any]:
    """A record of a finished stage.

    Raises:
        InputError: it is gone or torn.
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as problem:
        do_next = f"delete {str(file.parent)!r} and run the same command"
        raise InputError(f"read {str(file)!r}", str(problem), do_next) from problem
