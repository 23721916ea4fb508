"""What the laboratory tells while it works, and how a terminal shows it."""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

OFTEN = 60.0
"""Seconds between two lines about a stage that goes on, where there is no terminal."""


class Progress(Protocol):
    """Called with the name of a stage, the steps done in it and the steps it has; done == total ends the stage."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of one step."""


def silent(stage: str, done: int, total: int) -> None:
    """Tell nothing."""


@contextlib.contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """One bar per stage on a terminal; elsewhere one line a minute, and one when a stage has ended.

    >>> with show_progress(Console(quiet=True)) as progress:
    ...     progress("base", 1, 1)
    """
    if console.is_terminal:
        columns = TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Bars(*columns, TimeRemainingColumn(), console=console) as bars:
            yield _Bar(bars)
    else:
        yield _Lines(console)


class _Bar:
    """A bar for every stage that is not finished, and a line for every one that is."""

    def __init__(self, bars: Bars):
        self._bars, self._tasks, self._lines = bars, {}, _Lines(bars.console)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total, visible=done < total)
        self._lines(stage, done, total)


class _Lines:
    def __init__(self, console: Console):
        self._console, self._started, self._told = console, {}, {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        started = self._started.setdefault(stage, now)
        told = self._told.setdefault(stage, now)
        if done == total:
            self._console.print(f"{stage}: {total} steps, {now - started:.1f} s", highlight=False)
        elif now - told >= OFTEN and not self._console.is_terminal:
            self._console.print(f"{stage}: {done} of {total} steps, {now - started:.0f} s", highlight=False)
            self._told[stage] = now
