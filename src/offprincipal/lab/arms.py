"""``offprincipal lab arms``: the same RLVR run from the same base, by different rules about which weights may move.

What it is: dense, masked and adapter arms over a grid of learning rates and seeds, one folder each, whole or absent,
so that it may be stopped and run again. What it is not: the rules themselves (``kinds``), or the judgement of which
arm is better beyond a ranking (``ranking``).
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from offprincipal import fanout
from offprincipal.errors import UsageError
from offprincipal.lab.cell import Cell, train_cell
from offprincipal.lab.kinds import ADAPTERS, ARMS, DRAWS, mask_set
from offprincipal.lab.parts import limit, stopped, until_over
from offprincipal.lab.progress import Progress, silent
from offprincipal.lab.ranking import rank_arms
from offprincipal.lab.run import NEEDED, claim, open_lab
from offprincipal.lab.settings import Preset

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
    jobs: int = 1,
    progress: Progress = silent,
    minutes: float | None = None,
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
        arms: some of `kinds.ARMS` and `kinds.DRAWS`.
        learning_rates: tried with every arm; by default the preset's, and ten times that for adapters.
        seeds: of the runs: order of the problems, sampled answers, first adapter weights.
        rank: of the adapters.
        alpha: their scaling is alpha / rank; by default twice the rank.
        jobs: worker processes, one run and one thread each; the bytes are the same with any number of them.
        progress: called as ``progress("arms", done, total)`` after every run; with one job, with the folder of the run
            after every step of it, too.
        minutes: begin no run after so many; the same call goes on with the next.

    Raises:
        UsageError: an unknown arm or preset, a number that makes no sense, or a package of the extra is missing.
        InputError: ``out`` holds something else, such as adapters of another rank.
        CheckFailed: an arm did not train what it says; nothing of it is written.
        parts.Stopped: the minutes are over; what was begun is finished, and the table written.
    """
    out, alpha = Path(out), 2.0 * rank if alpha is None else alpha
    _refuse(arms, learning_rates, seeds, rank, jobs)
    with limit(minutes):
        settings = open_lab(out, preset, seed, progress, needed=(*NEEDED, "peft"))
        mark = {"schema_version": 1, "rank": rank, "alpha": alpha}
        claim(out / "arms", "arms.json", mark, f"run the arms in {str(out / 'arms')!r}")
        cells = [cell for cell in _grid(arms, learning_rates or None, seeds, settings) if not _done(out, cell)]
        for arm in dict.fromkeys(cell.arm for cell in cells):
            mask_set(arm, out)  # before the workers start, which would make them at the same time
        train = partial(train_cell, out=out, preset=settings, seed=seed, size=(rank, alpha))
        train = partial(train, progress=progress) if jobs == 1 else train
        done = 0
        for done, _ in enumerate(fanout.engine("processes", jobs)(train, until_over(cells)), 1):
            progress("arms", done, len(cells))
        ran = _ranked(out)
        if done < len(cells):
            raise stopped("the arms", f"after {done} of {len(cells)} runs")
    return ran


def _ranked(out: Path) -> ArmsRun:
    """What is there, ranked; the table is written."""
    records = tuple(json.loads(file.read_text()) for file in sorted((out / "arms").glob("*/lr-*/seed-*/run.json")))
    ranking = rank_arms(records)
    partial_file = out / "arms" / ".ranking.json.partial"
    partial_file.write_text(json.dumps({"schema_version": 1, "arms": ranking}, indent=1) + "\n")
    partial_file.rename(out / "arms" / "ranking.json")
    return ArmsRun(out / "arms", records, ranking)


def _refuse(arms: Sequence[str], learning_rates: Sequence[float], seeds: Sequence[int], rank: int, jobs: int) -> None:
    unknown = [arm for arm in arms if arm not in (*ARMS, *DRAWS)]
    problems = (
        (bool(unknown), f"there is no arm {unknown[:1]}", f"choose from {', '.join(ARMS)}"),
        (not arms or not seeds, "no arm or no seed was given", "give at least one of each"),
        (any(not 0 < rate < 1 for rate in learning_rates), f"learning rates are {learning_rates}", "between 0 and 1"),
        (rank < 1, f"the rank is {rank}", "give 1 or more"),
        (jobs < 1, f"{jobs} jobs were asked for", "give 1 or more"),
    )
    for wrong, found, do_next in problems:
        if wrong:
            raise UsageError("run the arms", found, do_next)


def _done(out: Path, cell: Cell) -> bool:
    return (out / "arms" / cell.place).exists()


def _grid(arms: Sequence[str], rates: Sequence[float] | None, seeds: Sequence[int], preset: Preset) -> list[Cell]:
    """Every arm at every rate, seed by seed, so that a study that is stopped has whole rounds."""
    cells = []
    for seed, arm in itertools.product(dict.fromkeys(seeds), dict.fromkeys(arms)):
        own = preset.rlvr.learning_rate * (ADAPTER_RATE if arm in ADAPTERS else 1.0)
        cells += [Cell(arm, rate, seed) for rate in dict.fromkeys(rates or (own,))]
    return cells
