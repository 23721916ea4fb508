"""What `GeometryCallback` costs on the laboratory's GRPO run: watched and unwatched runs side by side.

Run: python benchmarks/callback.py LAB/base [--steps 20] [--repeats 3]. Runs are interleaved. The time inside the
callback is measured around its events; the share of the step time that it takes is told for several cadences, and
beside it the ratio of whole watched and unwatched runs at the default cadence.
"""

import argparse
import itertools
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from offprincipal.lab.progress import silent
from offprincipal.lab.quiet import quiet
from offprincipal.lab.rlvr import run_grpo
from offprincipal.lab.settings import PRESETS
from offprincipal.lab.world import load_arm
from offprincipal.train.callbacks import EVERY, GeometryCallback


def one_run(base: Path, steps: int, spent: list[float] | None) -> list[float]:
    """Seconds of each step but the first; with `spent`, watched at the default cadence, its seconds added there."""
    from transformers import TrainerCallback

    preset = replace(PRESETS["tiny"], rlvr=replace(PRESETS["tiny"].rlvr, steps=steps))
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            times.append(time.perf_counter())

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            times.append(time.perf_counter())

    def attach(trainer: Any) -> None:
        trainer.add_callback(Clock())
        if spent is not None:
            callback = GeometryCallback(trainer)
            for event in ("on_pre_optimizer_step", "on_step_end"):
                setattr(callback, event, timed(getattr(callback, event), spent))
            trainer.add_callback(callback)

    with quiet(0):
        model, tokenizer = load_arm(base)
        run_grpo(
            model, tokenizer, preset, arm="x", split="rlvr-1", seed=0, data_seed=0, progress=silent, attach=attach
        )
    return [after - before for before, after in itertools.pairwise(times[1:])]


def timed(event: Any, spent: list[float]) -> Any:
    def called(*args: Any, **given: Any) -> Any:
        start = time.perf_counter()
        done = event(*args, **given)
        spent.append(time.perf_counter() - start)
        return done

    return called


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    choice = parser.parse_args()
    plain: list[list[float]] = []
    watched: list[list[float]] = []
    spent: list[float] = []
    one_run(choice.base, 3, [])  # compiles kernels, fills the cache of factors
    for _ in range(choice.repeats):
        plain.append(one_run(choice.base, choice.steps, None))
        watched.append(one_run(choice.base, choice.steps, spent))
    measurements = choice.repeats * (1 + choice.steps // EVERY)
    report(plain, watched, sum(spent) / measurements)


def report(plain: list[list[float]], watched: list[list[float]], cost: float) -> None:
    step = statistics.median(second for run in plain for second in run)
    table = Table()
    for column in ("every", "share of step time"):
        table.add_column(column, justify="right")
    for every in (1, 2, 5, 10, 20):
        table.add_row(f"{every}{' *' if every == EVERY else ''}", f"{100 * cost / (every * step):.2f} %")
    console = Console(width=100)
    threads = torch.get_num_threads()
    console.print(f"one measurement {1e3 * cost:.1f} ms, one step {1e3 * step:.0f} ms (median), {threads} threads")
    console.print(table)
    ratios = [sum(b) / sum(a) for a, b in zip(plain, watched, strict=True)]
    spread = ", ".join(f"{ratio:.3f}" for ratio in sorted(ratios))
    console.print(f"whole runs, watched over unwatched: median {statistics.median(ratios):.3f} of {spread}")


if __name__ == "__main__":
    main()
