"""What the laboratory tells while it works, and how a terminal shows it."""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress(Protocol):
    """Called with the name of a stage, the steps done in it and the steps it has; done == total ends the stage."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of one step."""


def silent(stage: str, done: int, total: int) -> None:
    """Tell nothing."""


@contextlib.contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """One bar per stage on a terminal; elsewhere one line when a stage has ended.

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
    def __init__(self, bars: Bars):
        self._bars, self._tasks = bars, {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)


class _Lines:
    def __init__(self, console: Console):
        self._console, self._started = console, {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        started = self._started.setdefault(stage, time.monotonic())
        if done == total:
            self._console.print(f"{stage}: {total} steps, {time.monotonic() - started:.1f} s", highlight=False)
