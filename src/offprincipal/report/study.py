"""A study as a folder that a repository can hold: page, data and figures. Nothing is computed that is not in the data.

What it is: ``README.md`` (the scoreboard and the arms), ``claims.md`` (every claim opened), ``claims.json``,
``arms.json``, ``matched.json``, ``interventions.json`` and figures as SVG, in the shared style of the report's charts,
on white, so that they are legible on a dark page as well. What it is not: a judgement, or the report of one
comparison (``page``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offprincipal.report import matching, page
from offprincipal.report.arms import section, wrapped
from offprincipal.store import explained, write_file

if TYPE_CHECKING:
    from offprincipal.report.charts import Spec

BELIEFS = "beliefs.md"
"""Where a person may write what the study is taken to show; linked where it lies in the folder, never written."""


def publish(
    answered: Mapping[str, Any],
    details: str,
    arms: Mapping[str, Any] | None,
    out: Path,
    *,
    hide: Mapping[str, str],
    moved: Mapping[str, Any] | None = None,
    matched: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write the folder.

    Args:
        answered: what ``claims.json`` holds.
        details: what ``claims.md`` holds.
        arms: `offprincipal.lab.travel.study` of the same laboratories, or None.
        out: the folder; files of the same names are replaced, others are left.
        hide: a text to what stands in its place: folders of this machine.
        moved: `offprincipal.lab.coordinates.study` of the same laboratories, or None.
        matched: `offprincipal.lab.claims.matching.study` of the same laboratories, or None.

    Returns:
        The files.

    Raises:
        UsageError: the extra ``report`` is missing.
        InputError: the folder cannot be written.
    """
    page.need_extra()
    with explained(f"write {str(out)!r}"):
        out.mkdir(parents=True, exist_ok=True)
    parts = {"claims": answered, "arms": arms, "matched": matched, "interventions": moved}
    figures = drawn(parts)
    texts = {"README.md": _page(parts, list(figures), read=(out / BELIEFS).is_file()), "claims.md": details}
    texts |= {
        f"{name}.json": json.dumps(part, indent=1, allow_nan=False) + "\n" for name, part in parts.items() if part
    }
    for name, text in texts.items():
        for found, instead in hide.items():
            text = text.replace(found, instead)
        write_file(out / name, text.encode())
    return [out / name for name in texts] + page.write_figures(figures, out, formats=("svg",))


def drawn(parts: Mapping[str, Any]) -> dict[str, Spec]:
    """The figures of the folder, by name, in the order of the page; `parts` by the names of their files."""
    from offprincipal.report import arm_charts, effects  # they need the extra

    found = effects.effects(parts["claims"]["records"])
    found |= {"interventions": effects.coordinates(parts["interventions"])} if parts["interventions"] else {}
    found |= {"matched": matching.chart(parts["matched"])} if parts["matched"] else {}
    return found | (arm_charts.charts(parts["arms"]) if parts["arms"] else {})


def _page(parts: Mapping[str, Any], figures: Sequence[str], read: bool) -> str:
    answered, arms, moved, matched = (parts[name] for name in ("claims", "arms", "interventions", "matched"))
    records, labs = answered["records"], len(answered["laboratories"])
    whose = "one laboratory" if labs == 1 else f"{labs} laboratories of their own problems and bases"
    counts = ", ".join(f"{number} {verdict}" for verdict, number in answered["counts"].items() if number)
    lines = [
        "# Results of the laboratory", "",
        f"{len(records)} claims of the paper over {whose}: {counts}.",
        "What is surprising stands first. Each claim opens to its numbers, nulls, controls, settings and command in",
        "[claims.md](claims.md); the same for programs in [claims.json](claims.json). Intervals are 95 % over seeds.",
        "An effect opens to its [picture](#the-effects). Made by",
        f"`{answered['command']}`." + (f" What was read in it: [{BELIEFS}]({BELIEFS})." if read else ""), "",
        "| claim | the paper says | verdict | effect | beyond the null | seeds |", "|---|---|---|---|---|---|",
        *(_claim(record, figures) for record in records),
        *_effects(figures), *(_moved(moved) if moved else []),
        *([*matching.section(matched), *_pictures(["matched"])] if matched else []),
    ]  # fmt: skip
    if arms:
        lines += section(arms)
        lines += _pictures([name for name in figures if name.startswith(("distance-", "rates-"))])
    versions = ", ".join(f"{name} {version}" for name, version in answered["versions"].items())
    return "\n".join([*lines, "", f"Versions: {versions}."]) + "\n"


def _claim(record: Mapping[str, Any], figures: Sequence[str]) -> str:
    """One claim as a line of the table; its effect is a link to the picture of its group, where there is one."""
    shown, figure = record["shown"], f"effects-{record['id'][0]}"
    link = f"[{record['id']}](claims.md#{record['id'].lower().replace(' ', '-')})"
    effect = f"[{shown['effect']}]({figure}.svg)" if shown["effect"] and figure in figures else shown["effect"]
    cells = (record["says"], shown["verdict"], effect, shown["beyond"], shown["seeds"])
    return f"| {link} | {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _effects(figures: Sequence[str]) -> list[str]:
    shown = [name for name in figures if name.startswith("effects-")]
    if not shown:
        return []
    told = (
        "One picture per group of claims. Circle: the effect, signed so that positive is what the claim says, with "
        "its interval; square: what exceeds the null that decides; diamond: what a null alone gives; tick: the least "
        "size that counts. Colour: the verdict on that effect. Claims that are bounds or equalities have none, so "
        "no picture. What has another unit has an axis of its own."
    )
    return ["", "## The effects", "", *wrapped(told), *_pictures(shown)]


def _moved(moved: Mapping[str, Any]) -> list[str]:
    labs = moved["laboratories"]
    over = "95 % intervals over laboratories" if labs > 1 else "no interval"
    told = (
        f"Claims I2 and I3, {labs} {'laboratory' if labs == 1 else 'laboratories'}: what the update masks of a run "
        "from a rotated or permuted base share with those of the untouched run, index by index and mapped back to its "
        f"coordinates; means over matrices, {over}. Beside it what independent masks of the same densities and masks "
        "with the same rate at each magnitude would share. Numbers: [interventions.json](interventions.json)."
    )
    return ["", "## The same run in other coordinates", "", *wrapped(told), *_pictures(["interventions"])]


def _pictures(names: Sequence[str]) -> list[str]:
    return [line for name in names for line in ("", f"![{name}]({name}.svg)")]
