"""Training in parts: a run that may take so many minutes ends after a step, and the same command goes on from there.

What it is: a time limit for everything inside it (`limit`), a folder in which a stage keeps its trainer's state
(`kept_in`), and what both mean for a trainer (`train_part`) and for a list of runs (`until_over`). What it is not: the
folders of finished stages, which appear whole or not at all.
"""

import contextlib
import shutil
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from offprincipal.errors import OffprincipalError, UsageError

if TYPE_CHECKING:
    from transformers import Trainer

T = TypeVar("T")

_LIMIT: ContextVar[tuple[float, float] | None] = ContextVar("minutes and when they are over", default=None)
_PLACE: ContextVar[Path | None] = ContextVar("where the stage keeps its trainer's state", default=None)


class Stopped(OffprincipalError):
    """The time that was given is over and the work is not done; the same command goes on: exit code 130."""

    exit_code = 130


@contextlib.contextmanager
def limit(minutes: float | None) -> Iterator[None]:
    """Everything inside stops with `Stopped` at the first good place after so many minutes; None sets no limit.

    Raises:
        UsageError: the time is not positive.
    """
    if minutes is not None and not minutes > 0:
        raise UsageError("train in parts", f"{minutes:g} minutes were given", "give more than 0")
    if minutes is None:
        yield
        return
    token = _LIMIT.set((minutes, time.monotonic() + 60 * minutes))
    try:
        yield
    finally:
        _LIMIT.reset(token)


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """The trainer inside keeps its state here when its time is over; the folder goes when the stage is done."""
    token = _PLACE.set(folder)
    try:
        yield
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        _PLACE.reset(token)


def over() -> bool:
    """Whether the time is over.

    >>> with limit(1.0):
    ...     over()
    False
    """
    limited = _LIMIT.get()
    return limited is not None and time.monotonic() > limited[1]


def check(what: str, reached: str) -> None:
    """Stop here if the time is over.

    Raises:
        Stopped: it is; `what` could not be finished, `reached` tells how far it came.
    """
    if over():
        raise stopped(what, reached)


def stopped(what: str, reached: str) -> Stopped:
    """The error that says how far `what` came."""
    limited = _LIMIT.get()
    minutes = f"the {limited[0]:g} minutes" if limited else "the minutes"
    return Stopped(f"finish {what}", f"{minutes} are over {reached}", "run the same command again: it goes on there")


def until_over(items: Iterable[T]) -> Iterator[T]:
    """The items as long as there is time for another."""
    for item in items:
        if over():
            return
        yield item


def train_part(trainer: "Trainer", stage: str) -> None:
    """Train from where the stage was stopped, to its end or until its time is over.

    The state that is kept is the Trainer's checkpoint: weights, optimizer, schedule, random states and log, so that a
    stage in parts ends in the bits of one that was not stopped. A rollout is used up before training stops.

    Raises:
        Stopped: the time is over.
    """
    from transformers import TrainerCallback

    place = _PLACE.get()
    every = getattr(trainer.args, "steps_per_generation", None) or 1

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if over() and state.global_step % every == 0 and state.global_step < state.max_steps:
                control.should_save = control.should_training_stop = True

    found = None
    if place is not None:
        trainer.args.output_dir = str(place)
        trainer.add_callback(Stop())
        found = _last(place)
    trainer.train(resume_from_checkpoint=None if found is None else str(found))
    if trainer.state.global_step < trainer.state.max_steps:
        raise stopped(stage, f"after step {trainer.state.global_step} of {trainer.state.max_steps}")


def _last(place: Path) -> Path | None:
    """The last checkpoint that is whole: its state is what transformers writes last."""
    whole = [state.parent for state in place.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
