"""``offprincipal lab arms``: the same RLVR run from the same base, by different rules about which weights may move.

What it is: dense, masked and adapter arms over a grid of learning rates and seeds, one folder each, whole or absent,
so that it may be stopped and run again. What it is not: the rules themselves (``kinds``), or the judgement of which
arm is better beyond a ranking (``ranking``).
"""

import dataclasses
import itertools
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from offprincipal.errors import UsageError
from offprincipal.lab.judge import PARTS, Answers, answers_of, compare_arms
from offprincipal.lab.kinds import ADAPTERS, ARMS, Finished, Task, train_arm
from offprincipal.lab.progress import Progress, silent
from offprincipal.lab.quiet import quiet, stage_seed
from offprincipal.lab.ranking import rank_arms
from offprincipal.lab.rlvr import run_grpo
from offprincipal.lab.run import NEEDED, claim, open_lab, versions
from offprincipal.lab.settings import Preset
from offprincipal.lab.world import load_arm, save_arm

SPLIT = "rlvr-1"
"""The problems that every arm trains on: those of the arm of that name in ``lab run``."""

RANK = 8
"""Rank of every adapter (*ours*; PeRL and GeoRA use 16 and 32 on models of width 1,536 and more)."""

ADAPTER_RATE = 10.0
"""Learning rate of adapters over that of full training, where none is given ("LoRA without Regret")."""


@dataclass(frozen=True)
class ArmsRun:
    """Where the arms lie, what each recorded, and the table of them, best first."""

    out: Path
    records: tuple[dict[str, Any], ...]
    ranking: list[dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    arm: str
    learning_rate: float
    seed: int

    @property
    def place(self) -> str:
        """Its folder below ``arms/``.

        >>> Cell("safe", 2.5e-5, 0).place
        'safe/lr-2.5e-05/seed-0'
        """
        return f"{self.arm}/lr-{self.learning_rate:g}/seed-{self.seed}"


def run_arms(
    out: Path,
    preset: str | Preset = "tiny",
    seed: int = 0,
    *,
    arms: Sequence[str] = ARMS,
    learning_rates: Sequence[float] = (),
    seeds: Sequence[int] = (0,),
    rank: int = RANK,
    alpha: float | None = None,
    progress: Progress = silent,
) -> ArmsRun:
    """Train every arm at every learning rate and seed into ``out/arms/``, skipping what is finished there.

    Every arm sees the same problems, the same number of steps and, with the same seed, the same random draws. The base
    is ``out/base``, as ``lab run`` leaves it; it is trained if it is missing. ``out/arms/<arm>/lr-<rate>/seed-<n>/``
    is an arm as ``lab run`` writes them: the decoder in bfloat16 (an adapter merged in float32, then rounded),
    ``master/`` in float32, ``run.json``; adapters also lie in ``adapter/`` (PEFT, as trained) and, but for DoRA, in
    ``plain/`` (LoRA on the base). ``out/arms/ranking.json`` holds the table.

    Args:
        out: the folder of a laboratory, or a new one.
        preset: a name of `offprincipal.lab.settings.PRESETS`, or a preset of your own.
        seed: of the laboratory: problems and base.
        arms: some of `kinds.ARMS`.
        learning_rates: tried with every arm; by default the preset's, and ten times that for adapters.
        seeds: of the runs: order of the problems, sampled answers, first adapter weights.
        rank: of the adapters.
        alpha: their scaling is alpha / rank; by default twice the rank.
        progress: called as ``progress(stage, done, total)`` after every step.

    Raises:
        UsageError: an unknown arm or preset, a number that makes no sense, or a package of the extra is missing.
        InputError: ``out`` holds something else, such as adapters of another rank.
        CheckFailed: an arm did not train what it says; nothing of it is written.
    """
    out, alpha = Path(out), 2.0 * rank if alpha is None else alpha
    _refuse(arms, learning_rates, seeds, rank)
    settings = open_lab(out, preset, seed, progress, needed=(*NEEDED, "peft"))
    mark = {"schema_version": 1, "rank": rank, "alpha": alpha}
    claim(out / "arms", "arms.json", mark, f"run the arms in {str(out / 'arms')!r}")
    cells = _grid(arms, learning_rates or None, seeds, settings)
    judge = _Judge(out / "base", settings, seed)
    for cell in cells:
        if not (out / "arms" / cell.place).exists():
            _run_cell(out, cell, settings, seed, (rank, alpha), judge, progress)
    records = tuple(json.loads(file.read_text()) for file in sorted((out / "arms").glob("*/lr-*/seed-*/run.json")))
    ranking = rank_arms(records)
    partial_file = out / "arms" / ".ranking.json.partial"
    partial_file.write_text(json.dumps({"schema_version": 1, "arms": ranking}, indent=1) + "\n")
    partial_file.rename(out / "arms" / "ranking.json")
    return ArmsRun(out / "arms", records, ranking)


def _refuse(arms: Sequence[str], learning_rates: Sequence[float], seeds: Sequence[int], rank: int) -> None:
    unknown = [arm for arm in arms if arm not in ARMS]
    problems = (
        (bool(unknown), f"there is no arm {unknown[:1]}", f"choose from {', '.join(ARMS)}"),
        (not arms or not seeds, "no arm or no seed was given", "give at least one of each"),
        (any(not 0 < rate < 1 for rate in learning_rates), f"learning rates are {learning_rates}", "between 0 and 1"),
        (rank < 1, f"the rank is {rank}", "give 1 or more"),
    )
    for wrong, found, do_next in problems:
        if wrong:
            raise UsageError("run the arms", found, do_next)


def _grid(arms: Sequence[str], rates: Sequence[float] | None, seeds: Sequence[int], preset: Preset) -> list[Cell]:
    """Every arm at every rate, seed by seed, so that a study that is stopped has whole rounds."""
    cells = []
    for seed, arm in itertools.product(dict.fromkeys(seeds), dict.fromkeys(arms)):
        own = preset.rlvr.learning_rate * (ADAPTER_RATE if arm in ADAPTERS else 1.0)
        cells += [Cell(arm, rate, seed) for rate in dict.fromkeys(rates or (own,))]
    return cells


class _Judge:
    """Compares arms with the base on both halves of the held-out problems; the base answers them once."""

    def __init__(self, base: Path, preset: Preset, data_seed: int):
        self._base, self._preset, self._data_seed = base, preset, data_seed
        self._before: dict[str, Mapping[str, Answers]] = {}

    def __call__(self, arm: Path) -> dict[str, Any]:
        found = {}
        for part in PARTS:
            asked = {"data_seed": self._data_seed, "part": part}
            if part not in self._before:
                self._before[part] = answers_of(self._base, self._preset, **asked)
            found[part] = compare_arms(self._base, arm, self._preset, before=self._before[part], **asked)
        return found


def _run_cell(
    out: Path, cell: Cell, preset: Preset, seed: int, size: tuple[int, float], judge: _Judge, progress: Progress
) -> None:
    """Train, check, judge and write one arm; it appears under its name only when it is whole."""
    folder = out / "arms" / cell.place
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    started = time.monotonic()
    own = stage_seed(cell.seed, "arms")  # the same for every arm, so that arms differ in nothing but their rule
    with quiet(own):
        model, tokenizer = load_arm(out / "base")
        run = partial(
            run_grpo,
            tokenizer=tokenizer,
            preset=preset,
            arm=cell.place,
            split=SPLIT,
            seed=own,
            data_seed=seed,
            progress=progress,
            learning_rate=cell.learning_rate,
        )
        done = train_arm(cell.arm, model, Task(out, unfinished, *size, own, run))
        trained = time.monotonic()
        save_arm(done.model, tokenizer, unfinished)
        if cell.arm in ADAPTERS and cell.arm != "dora":
            _export(out / "base", unfinished)
        record = _record(cell, preset, seed, own, done) | {"seconds_training": round(trained - started, 1)}
        record |= judge(unfinished) | {"seconds": round(time.monotonic() - started, 1)}
    (unfinished / "run.json").write_text(json.dumps(record, indent=1) + "\n")
    os.replace(unfinished, folder)


def _export(base: Path, folder: Path) -> None:
    """The trained adapter as plain LoRA on the base."""
    from offprincipal.train.adapters import export_adapter

    export_adapter(folder / "adapter", folder / "plain", init=folder / "begun")


def _record(cell: Cell, preset: Preset, seed: int, own: int, done: Finished) -> dict[str, Any]:
    """What was asked and what was trained; the measurements follow."""
    return {
        "schema_version": 1,
        "arm": cell.arm,
        "learning_rate": cell.learning_rate,
        "run_seed": cell.seed,
        "seed": seed,
        "stage_seed": own,
        "split": SPLIT,
        "settings": dataclasses.asdict(preset),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "parameters": done.model.num_parameters(),
        "parameters_trained": done.parameters,
        "optimizer_bytes": _state_bytes(done.trainer.optimizer),
        "steps": done.trainer.state.global_step,
        **done.facts,
    }


def _state_bytes(optimizer: Any) -> int:
    """Bytes of everything that the optimizer keeps between steps, measured on its tensors."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if hasattr(optimizer, "state_bytes"):
        return optimizer.state_bytes()
    kept = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in kept if isinstance(value, torch.Tensor))
