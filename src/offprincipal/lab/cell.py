"""One run of the grid of ``arms``: trained, checked, judged and written into its folder, whole or not at all.

What it is: what a worker process does, and what is recorded while an arm trains: TRL's log, and the KL to the base on
a fixed set of the base's answers. What it is not: the grid, or the judgement of which arm is better.
"""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from offprincipal.lab.judge import PARTS, Answers, answers_of, compare_arms, log_probabilities, some_answers
from offprincipal.lab.kinds import ADAPTERS, Finished, Task, train_arm
from offprincipal.lab.progress import Progress, silent
from offprincipal.lab.quiet import quiet, stage_seed
from offprincipal.lab.rlvr import run_grpo
from offprincipal.lab.run import versions
from offprincipal.lab.settings import Preset
from offprincipal.lab.tasks import FAMILIES
from offprincipal.lab.world import load_arm, save_arm
from offprincipal.rows import one_thread

if TYPE_CHECKING:
    from transformers import Trainer

SPLIT = "rlvr-1"
"""The problems that every arm trains on: those of the arm of that name in ``lab run``."""

LOGGED = ("reward", "frac_reward_zero_std", "entropy", "grad_norm", "completions/mean_length")
"""What is kept of TRL's log of every step. The entropy is that of answers with an advantage (``sampling.lighten``)."""

LOOKS, LEASHED = 12, 16
"""How often the KL to the base is measured on the way, and on the answers to how many problems per family."""


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


@cache
def answers_of_base(base: Path, preset: Preset, data_seed: int, part: str) -> Mapping[str, Answers]:
    """The base answers the held-out problems once per process."""
    return answers_of(base, preset, data_seed=data_seed, part=part)


@cache
def _leash(base: Path, preset: Preset, data_seed: int) -> dict[str, tuple[Answers, torch.Tensor]]:
    """Per family a few of the base's answers to validation problems, and its log-probabilities at their tokens."""
    answers = answers_of_base(base, preset, data_seed, PARTS[0])
    model, _ = load_arm(base)
    few = {family: some_answers(answers[family], LEASHED * preset.judged_samples) for family in FAMILIES}
    return {family: (each, log_probabilities(model.eval(), each)) for family, each in few.items()}


def _judge(base: Path, arm: Path, preset: Preset, data_seed: int) -> dict[str, Any]:
    """Accuracy and KL on both halves of the held-out problems."""
    return {
        part: compare_arms(
            base, arm, preset, data_seed=data_seed, part=part, before=answers_of_base(base, preset, data_seed, part)
        )
        for part in PARTS
    }


def train_cell(
    cell: Cell, *, out: Path, preset: Preset, seed: int, size: tuple[int, float], progress: Progress = silent
) -> Cell:
    """Train, check, judge and write one arm; it appears under its name only when it is whole.

    On one thread, so that the bytes do not depend on how many runs share the machine. Returns the cell.
    """
    folder = out / "arms" / cell.place
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    started = time.monotonic()
    own = stage_seed(cell.seed, "arms")  # the same for every arm, so that arms differ in nothing but their rule
    with one_thread(), quiet(own):
        leash = _leash(out / "base", preset, seed)
        model, tokenizer = load_arm(out / "base")
        found: list[dict[str, Any]] = []
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
            attach=partial(watch, leash=leash, every=max(1, preset.rlvr.steps // LOOKS), found=found),
        )
        torch.manual_seed(own)  # whether this process had to judge the base before or not
        began = time.monotonic()
        done = train_arm(cell.arm, model, Task(out, unfinished, *size, own, run))
        trained = time.monotonic()
        save_arm(done.model, tokenizer, unfinished)
        if cell.arm in ADAPTERS and cell.arm != "dora":
            _export(out / "base", unfinished)
        record = _record(cell, preset, seed, own, done)
        record |= {"path": {"kl_base_to_arm": found, **logged(done.trainer)}}
        record |= {"seconds_training": round(trained - began, 1), **_judge(out / "base", unfinished, preset, seed)}
        record["seconds"] = round(time.monotonic() - started, 1)
    (unfinished / "run.json").write_text(json.dumps(record, indent=1) + "\n")
    os.replace(unfinished, folder)
    return cell


def watch(trainer: "Trainer", *, leash: Mapping[str, tuple[Answers, torch.Tensor]], every: int, found: list) -> None:
    """Measure KL(base || model) on the answers of `leash` every so many steps, into `found`.

    Nats summed over both families' tokens, exact over the vocabulary, with the weights being trained.
    """
    from transformers import TrainerCallback

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step % every == 0:
                nats = 0.0
                for answers, log_p in leash.values():
                    log_q = log_probabilities(given["model"], answers)
                    nats += float((log_p.exp() * (log_p - log_q)).sum())
                tokens = sum(len(log_p) for _, log_p in leash.values())
                found.append({"step": state.global_step, "nats": nats, "tokens": tokens})

    trainer.add_callback(Look())


def logged(trainer: "Trainer") -> dict[str, list[float | None]]:
    """`LOGGED`, one number per step."""
    steps = [entry for entry in trainer.state.log_history if "reward" in entry]
    return {name: [entry.get(name) for entry in steps] for name in LOGGED}


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
