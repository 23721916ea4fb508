"""The scoreboard of ``claims.json`` beside a comparison, as ``offprincipal lab claims`` wrote it: nothing is computed.

A file that does not fit is left out of the page, and the page says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FILE, SCHEMA_VERSION = "claims.json", 1
CELLS = ("verdict", "effect", "beyond", "controls", "seeds")


@dataclass(frozen=True)
class Claim:
    """One line of the scoreboard and what it opens to.

    Attributes:
        id: of the claim.
        says: what the paper says.
        cells: verdict, effect, beyond the nulls, controls, seeds.
        why: the verdict in a sentence.
        facts: name and value of numbers and settings.
        command: what reproduces it.
    """

    id: str
    says: str
    cells: tuple[str, ...]
    why: str
    facts: tuple[tuple[str, str], ...]
    command: str


@dataclass(frozen=True)
class Scoreboard:
    """All claims, and how many came to which verdict, in words."""

    summary: str
    claims: tuple[Claim, ...]


def scoreboard(directory: Path) -> tuple[Scoreboard | None, list[str]]:
    """The scoreboard in this folder, None where there is none, and a line if it cannot be shown."""
    file = directory / FILE
    if not file.is_file():
        return None, []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["schema_version"] != SCHEMA_VERSION:
            return None, [f"{FILE} is not shown: it has schema version {found['schema_version']}."]
        claims = tuple(_claim(record) for record in found["records"])
        counts = ", ".join(f"{number} {verdict}" for verdict, number in found["counts"].items() if number)
        labs = len(found["laboratories"])
        summary = f"{len(claims)} claims over {labs} {'laboratory' if labs == 1 else 'laboratories'}: {counts}."
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        return None, [f"{FILE} is not shown: it cannot be read ({type(problem).__name__})."]
    return Scoreboard(summary, claims), []


def _claim(record: dict) -> Claim:
    cells = tuple(str(record["shown"][cell]) for cell in CELLS)
    facts = [(name, json.dumps(record[name])) for name in ("numbers", "settings") if record[name]]
    facts += [
        (f"{sign} control", f"{record[sign]['what']}: {record[sign]['found']}")
        for sign in ("positive", "negative")
        if record[sign]["passed"] is not None
    ]
    return Claim(record["id"], record["says"], cells, record["why"], tuple(facts), record["command"])
