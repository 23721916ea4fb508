"""The records as two files: ``claims.json`` for programs, ``claims.md`` for a person with a minute.

What is surprising comes first: not supported, then explained by the null, then what cannot be told.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from offprincipal.lab.claims.catalogue import BY_ID, GROUPS
from offprincipal.lab.claims.record import NOT_RUN, Record
from offprincipal.lab.claims.samples import Evidence
from offprincipal.lab.claims.verdict import CANNOT_TELL, EXPLAINED, LEVEL, MIN_SEEDS, NOT_SUPPORTED, POWER, SUPPORTED
from offprincipal.results import versions
from offprincipal.store import write_file
from offprincipal.tables import without_nonfinite

SCHEMA_VERSION = 1
ORDER = (NOT_SUPPORTED, EXPLAINED, CANNOT_TELL, SUPPORTED, NOT_RUN)

DEFINITIONS = {
    SUPPORTED: "the effect is there, of at least the least size that counts, and exceeds every decisive null",
    NOT_SUPPORTED: "the effect is absent: the interval ends below the least size that counts",
    EXPLAINED: "the effect is there, and what exceeds a decisive null is absent",
    CANNOT_TELL: f"fewer than {MIN_SEEDS} seeds, an interval that leaves it open, or a control that failed",
    NOT_RUN: "something is missing; the command makes it",
    "interval": f"{LEVEL:.0%}, over seeds and then matrices: bootstrap variance in closed form, Student's factor",
    "seeds_needed": f"seeds that would show the least effect that counts with power {POWER:.0%}",
}


def answer(records: Sequence[Record], evidence: Evidence, command: str | None) -> dict[str, Any]:
    """What ``claims.json`` holds: the records, the surprising first, and how many came to which verdict."""
    rows = [
        {**vars(BY_ID[record.id]), "group": GROUPS[record.id[0]], **json.loads(json.dumps(record.row()))}
        for record in records
    ]
    rows = without_nonfinite(rows)
    rows = [{**row, "shown": shown(row)} for row in rows]
    counts = {verdict: sum(record.verdict == verdict for record in records) for verdict in ORDER}
    return {
        "schema_version": SCHEMA_VERSION,
        "laboratories": [{"name": s.name, "folder": str(s.folder), "matrices": len(s.parts)} for s in evidence.seeds],
        "counts": counts,
        "records": ordered(rows),
        "definitions": DEFINITIONS,
        "versions": versions(),
        "command": command,
    }


def write(answered: dict[str, Any], out: Path) -> None:
    """``claims.md``, then ``claims.json``, each whole or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    write_file(out / "claims.md", markdown(answered).encode())
    write_file(out / "claims.json", json.dumps(answered, indent=1, allow_nan=False).encode())


def ordered(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records by verdict, the surprising first; too few seeds by what they lean to; then in the paper's order."""

    def place(record: dict[str, Any]) -> tuple[int, int]:
        leans = record["leans"]
        return ORDER.index(record["verdict"]), ORDER.index(leans) if leans else len(ORDER)

    return sorted(records, key=place)


def markdown(answered: dict[str, Any]) -> str:
    """The scoreboard: one line per claim, then each claim with numbers, settings and command."""
    labs = answered["laboratories"]
    counts = ", ".join(f"{number} {verdict}" for verdict, number in answered["counts"].items() if number)
    lines = [
        "# Claims, judged",
        "",
        f"{len(answered['records'])} claims over {len(labs)} laborator{'y' if len(labs) == 1 else 'ies'}: {counts}.",
        "Controls: + the planted effect was found, - none was found where there is none, ! a control failed.",
        "",
        "| claim | the paper says | verdict | effect [95 %] | beyond the null | controls | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    records = answered["records"]
    lines += [_line(record) for record in records]
    for record in records:
        lines += ["", *_details(record)]
    lines += ["", "## What the words mean", "", *(f"- **{k}**: {v}" for k, v in answered["definitions"].items())]
    return "\n".join(lines) + "\n"


def _line(record: dict[str, Any]) -> str:
    name = f"[{record['id']}](#{record['id'].lower().replace(' ', '-')})"
    return f"| {' | '.join([name, _cell(record['says']), *map(_cell, record['shown'].values())])} |"


def shown(record: dict[str, Any]) -> dict[str, str]:
    """The cells of a record as words: verdict, the effect that decided, what exceeds its nulls, controls, seeds.

    A claim of several effects is as good as its worst, so the first whose verdict is the claim's own is shown.
    """
    decided = (judged for judged in record["judged"] if judged["verdict"] == record["verdict"])
    judged = next(decided, next(iter(record["judged"]), None))
    beyond = [f"{name} {interval(judged['over'][name])}" for name in judged["decisive"]] if judged else []
    needed = f" (needs {record['seeds_needed']})" if record["seeds_needed"] else ""
    return {
        "verdict": verdict(record),
        "effect": interval(judged["estimate"]) if judged else "",
        "beyond": "; ".join(beyond),
        "controls": controls(record),
        "seeds": f"{record['seeds']}{needed}" if judged else "",
    }


def verdict(record: dict[str, Any]) -> str:
    """The verdict, and of too few seeds what they lean to.

    >>> verdict({"verdict": "cannot tell", "leans": "not supported"})
    'cannot tell: too few seeds (leans to not supported)'
    """
    leans = record["leans"]
    return f"{record['verdict']}: too few seeds (leans to {leans})" if leans else record["verdict"]


def controls(record: dict[str, Any]) -> str:
    """How the controls came out: ``+`` and ``-`` as they should, ``!`` otherwise."""
    shown = []
    for sign, control in (("+", record["positive"]), ("-", record["negative"])):
        if control["passed"] is not None:
            shown.append(sign if control["passed"] else f"{sign}!")
    return " ".join(shown)


def interval(found: dict[str, Any]) -> str:
    """Mean and interval in three digits.

    >>> interval({"mean": 0.12345, "low": 0.1, "high": 0.15, "over": "seeds"})
    '0.123 [0.1, 0.15]'
    """
    if found["mean"] is None:
        return "-"
    ends = "" if found["low"] is None else f" [{found['low']:.3g}, {found['high']:.3g}]"
    return f"{found['mean']:.3g}{ends}" + ("" if found["over"] == "seeds" else " (matrices only)")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _details(record: dict[str, Any]) -> list[str]:
    """One claim, opened."""
    lines = [
        f"## {record['id']}",
        "",
        f"{record['says']} ({record['where']}).",
        "",
        f"**{record['verdict']}**: {record['why']}",
        "",
    ]
    for judged in record["judged"]:
        lines.append(f"- {judged['effect']}: {interval(judged['estimate'])}; least that counts {judged['least']:.3g}")
        for name, over in judged["over"].items():
            decides = ", decisive" if name in judged["decisive"] else ""
            expected = judged["expected"][name]
            told = "-" if expected is None else f"{expected:.3g}"
            lines.append(f"  - null {name}{decides}: gives {told}, beyond it {interval(over)}")
    for sign in ("positive", "negative"):
        control = record[sign]
        if control["passed"] is not None:
            came = "as it should" if control["passed"] else "FAILED"
            lines.append(f"- {sign} control ({control['what']}): {came}, {control['found']}")
    for word in ("numbers", "settings"):
        if record[word]:
            lines.append(f"- {word}: `{json.dumps(record[word])}`")
    return [*lines, f"- `{record['command']}`"]


def print_scoreboard(answered: dict[str, Any], console: Console) -> None:
    """The scoreboard in a terminal; claims that were not run in one line."""
    table = Table(title="The paper's claims, judged", title_justify="left", title_style="bold")
    for column in ("claim", "the paper says", "verdict", "effect [95 %]", "beyond the null", "controls", "seeds"):
        table.add_column(column)
    for record in answered["records"]:
        if record["verdict"] != NOT_RUN:
            table.add_row(record["id"], record["says"], *record["shown"].values())
    console.print(table)
    left = [record["id"] for record in answered["records"] if record["verdict"] == NOT_RUN]
    if left:
        console.print(f"not run, as something is missing (claims.md has the commands): {', '.join(left)}")
