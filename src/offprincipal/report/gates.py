"""What probes and forecasts say of themselves: the ``section`` of every ``probe-*.json`` and of ``forecast.json``.

A section is words, tables of formatted cells and Vega-Lite charts. Nothing is computed here. A file that does not fit
is left out of the page, and the page says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offprincipal.report.palette import config

FIRST = ("probe-kl", "probe-curvature", "probe-fisher", "forecast")
"""The order of the sections; others follow by name."""


@dataclass(frozen=True)
class Gate:
    """One section.

    Attributes:
        title: its heading.
        sentences: paragraphs.
        tables: each with ``title``, ``columns``, ``rows`` and ``note``.
        figures: name of the chart, its title and its words.
    """

    title: str
    sentences: tuple[str, ...]
    tables: tuple[dict[str, Any], ...]
    figures: tuple[tuple[str, str, str], ...]


def gates(directory: Path) -> tuple[list[Gate], dict[str, dict[str, Any]], list[str]]:
    """The sections of a comparison's folder, their charts by name, and a line about each file or chart left out."""
    files = [*directory.glob("probe-*.json"), *directory.glob("forecast.json")]
    order = {name: place for place, name in enumerate(FIRST)}
    found, charts, lines = [], {}, []
    for file in sorted(files, key=lambda file: (order.get(file.stem, len(FIRST)), file.stem)):
        try:
            gate, own, refused = _gate(file.stem, json.loads(file.read_text(encoding="utf-8"))["section"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            lines.append(f"{file.name} is not shown: it has no section that can be read ({type(problem).__name__}).")
            continue
        found.append(gate)
        charts |= own
        lines += [f"A chart of {file.name} is not shown: {reason}." for reason in refused]
    return found, charts, lines


def _gate(stem: str, section: dict[str, Any]) -> tuple[Gate, dict[str, dict[str, Any]], list[str]]:
    tables = tuple(
        {"title": str(table["title"]), "columns": [str(column) for column in table["columns"]],
         "rows": [[str(cell) for cell in row] for row in table["rows"]], "note": str(table.get("note", ""))}
        for table in section["tables"]
    )  # fmt: skip
    charts, figures, refused = {}, [], []
    for number, chart in enumerate(section.get("charts", [])):
        name, reason = f"gate-{stem}-{number}", _wrong(chart["spec"])
        if reason:
            refused.append(reason)
            continue
        plain = {key: value for key, value in chart["spec"].items() if key != "$schema"}
        charts[name] = plain | {"config": config(), "usermeta": {"letters": 20}}
        figures.append((name, str(chart["title"]), str(chart.get("words", ""))))
    sentences = tuple(str(sentence) for sentence in section["sentences"])
    return Gate(str(section["title"]), sentences, tables, tuple(figures)), charts, refused


def _wrong(spec: Any) -> str:
    """Why a chart cannot be drawn; empty where it can."""
    import altair

    if _names(spec, "url"):
        return "it asks for data from elsewhere"
    try:
        altair.Chart.from_dict(spec)
    except Exception as problem:  # altair raises many kinds, and one bad chart must not cost the page
        return f"it is no Vega-Lite chart ({type(problem).__name__})"
    return ""


def _names(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_names(inner, key) for inner in value.values())
    return isinstance(value, list) and any(_names(inner, key) for inner in value)
