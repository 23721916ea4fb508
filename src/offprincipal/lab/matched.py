"""``offprincipal lab matched``: train other algorithms beside RLVR in every laboratory, and print how they compare.

What it is: the courses of several laboratories, trained where they are missing, and their table. What it is not: one
course (``courses``), or what is measured on them (``claims.matching``).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from offprincipal.errors import InputError, UsageError
from offprincipal.fanout import Engine, here
from offprincipal.lab.claims.evidence import find, read_json
from offprincipal.lab.courses import ALGORITHMS, Course, courses, train_course
from offprincipal.lab.parts import limit, stopped, until_over
from offprincipal.lab.progress import Progress, silent
from offprincipal.lab.run import need_extra
from offprincipal.lab.settings import Preset, preset_of
from offprincipal.store import write_file

SHOWN = ("accuracy", "kl", "norm", "changed", "nss", "angle", "energy", "overlap")
"""Measures in the order of the table."""


def run_matched(
    folders: Sequence[str | Path],
    *,
    algorithms: tuple[str, ...] = ALGORITHMS,
    engine: Engine = here,
    progress: Progress = silent,
    minutes: float | None = None,
) -> list[Path]:
    """Train every course of these laboratories, skipping what is finished there; returns the laboratories.

    Args:
        folders: laboratories as ``lab run`` leaves them, or folders that hold several.
        algorithms: some of `courses.ALGORITHMS`.
        engine: where courses are trained, each on one thread; the bytes are the same wherever.
        progress: called as ``progress("matched", done, total)`` after every course.
        minutes: begin no course after so many; the same call goes on with the next.

    Raises:
        UsageError: an unknown algorithm, or a package of the extra is missing.
        InputError: there is no laboratory, or its base is missing.
        CheckFailed: a base has no right answer to train on.
        parts.Stopped: the minutes are over; what was begun is finished.
    """
    unknown = [name for name in algorithms if name not in ALGORITHMS]
    if unknown or not algorithms:
        found = f"there is no algorithm {unknown[0]!r}" if unknown else "no algorithm was given"
        raise UsageError("train matched arms", found, f"choose from {', '.join(ALGORITHMS)}")
    need_extra()
    labs = find([Path(folder) for folder in folders])
    if not labs:
        asked = f"train matched arms in {', '.join(str(folder) for folder in folders)}"
        raise InputError(asked, "there is no laboratory", "run offprincipal lab run first")
    todo: list[tuple[Path, Preset, int, Course]] = []
    for lab in labs:
        mark = read_json(lab / "lab.json")
        preset = preset_of(mark["preset"])
        if not (lab / "base").is_dir():
            command = f"run offprincipal lab run --preset {preset.name} --seed {mark['seed']} -o {lab}"
            raise InputError(f"train matched arms in {str(lab)!r}", "its base is missing", command)
        wanted = courses(preset, algorithms)
        todo += [(lab, preset, mark["seed"], each) for each in wanted if not (lab / "matched" / each.place).exists()]
    done = 0
    with limit(minutes):
        for done, _ in enumerate(engine(_train, until_over(todo)), 1):
            progress("matched", done, len(todo))
        if done < len(todo):
            raise stopped("the matched arms", f"after {done} of {len(todo)} courses")
    return labs


def _train(item: tuple[Path, Preset, int, Course]) -> Course:
    lab, preset, seed, course = item
    return train_course(course, lab=lab, preset=preset, seed=seed)


def write(answer: Mapping[str, Any], out: Path) -> Path:
    """``matched.json`` in this folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "matched.json", (json.dumps(answer, indent=1, allow_nan=False) + "\n").encode())
    return out / "matched.json"


def print_matched(answer: Mapping[str, Any], console: Console) -> None:
    """The ends of all courses, then every algorithm and rate beside RLVR: means and 95 % intervals."""
    ends = _table(f"Ends of the courses, laboratories {', '.join(answer['labs'])}", "algorithm", "lr", *SHOWN)
    for row in answer["ends"]:
        cells = (said(row[key]) for key in SHOWN)
        ends.add_row(row["algorithm"], f"{row['learning_rate']:g}", *cells)
    console.print(ends)
    pairs = _table("Beside RLVR at equal ...", "algorithm", "lr", "equal", "labs", *SHOWN)
    pairs.caption = "more than RLVR: accuracy, changed and overlap in points, the others as quotients"
    for row in answer["pairs"]:
        cells = (said(row["effects"][key]) for key in SHOWN)
        pairs.add_row(row["algorithm"], f"{row['learning_rate']:g}", row["match"], str(row["labs"]), *cells)
    console.print(pairs)


def said(found: Mapping[str, Any] | None) -> str:
    """A number in words; a dash where no laboratory has it."""
    return found["shown"] if found else "-"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("algorithm", "equal") else "right")
    return table
