"""A study as a folder that a repository can hold: page, data and figures. Nothing is computed that is not in the data.

What it is: ``README.md`` (the scoreboard and the arms), ``claims.md`` (every claim opened), ``claims.json``,
``arms.json`` and figures as SVG, in the shared style of the report's charts. What it is not: a judgement, or the
report of one comparison (``page``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offprincipal.report import page
from offprincipal.store import explained, write_file

if TYPE_CHECKING:
    from offprincipal.report.charts import Spec

BELIEFS = "beliefs.md"
"""Where a person may write what the study is taken to show; linked where it lies in the folder, never written."""

COLUMNS = (
    "arm", "rate", "seeds", "test, %", "minus dense, points", "KL", "norm", "NSS", "energy", "trained", "state, bytes",
    "s", "collapsed",
)  # fmt: skip


def publish(
    answered: Mapping[str, Any], details: str, arms: Mapping[str, Any] | None, out: Path, *, hide: Mapping[str, str]
) -> list[Path]:
    """Write the folder.

    Args:
        answered: what ``claims.json`` holds.
        details: what ``claims.md`` holds.
        arms: `offprincipal.lab.travel.study` of the same laboratories, or None.
        out: the folder; files of the same names are replaced, others are left.
        hide: a text to what stands in its place: folders of this machine.

    Returns:
        The files.

    Raises:
        UsageError: the extra ``report`` is missing.
        InputError: the folder cannot be written.
    """
    page.need_extra()
    with explained(f"write {str(out)!r}"):
        out.mkdir(parents=True, exist_ok=True)
    figures = charts(arms) if arms else {}
    texts = {
        "README.md": _page(answered, arms, sorted(figures), read=(out / BELIEFS).is_file()),
        "claims.md": details,
        "claims.json": json.dumps(answered, indent=1, allow_nan=False) + "\n",
    }
    if arms:
        texts["arms.json"] = json.dumps(arms, indent=1, allow_nan=False) + "\n"
    for name, text in texts.items():
        for found, instead in hide.items():
            text = text.replace(found, instead)
        write_file(out / name, text.encode())
    return [out / name for name in texts] + page.write_figures(figures, out, formats=("svg",))


def charts(arms: Mapping[str, Any]) -> dict[str, Spec]:
    """Accuracy against learning rate and against distance, adapters apart: their good learning rates are others."""
    found = {}
    for part, adapter in (("masks", False), ("adapters", True)):
        rows = [row for row in arms["arms"] if row["adapter"] == adapter]
        if rows:
            found[f"rates-{part}"] = _rates(rows)
            found[f"distance-{part}"] = _distance(rows)
    return found


def _rates(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Test accuracy against learning rate, mean and range over run seeds."""
    import altair as alt

    from offprincipal.report.charts import finished, named, run_scale

    x = alt.X("learning_rate:Q", title="learning rate").scale(type="log", nice=False)
    base = alt.Chart(named()).encode(x, alt.Color("arm:N", title=None, sort=None).scale(run_scale(_names(rows))))
    line = base.mark_line(point=True).encode(alt.Y("test:Q", title="right answers, test half").axis(format="%"))
    span = base.mark_rule(opacity=0.5).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    return finished((line + span).properties(width=420, height=240), _flat(rows))


def _distance(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Test accuracy against KL to the base: what an arm gets for how far it goes."""
    import altair as alt

    from offprincipal.report.charts import finished, named, run_scale

    shown = [row for row in _flat(rows) if row["kl"] > 0]
    x = alt.X("kl:Q", title="KL(arm || base), nats per token").scale(type="log", nice=False)
    chart = alt.Chart(named()).mark_line(point=True).encode(
        x,
        alt.Y("test:Q", title="right answers, test half").axis(format="%"),
        alt.Color("arm:N", title=None, sort=None).scale(run_scale(_names(rows))),
        alt.Order("learning_rate:Q"),
    )  # fmt: skip
    return finished(chart.properties(width=420, height=240), shown)


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({row["arm"] for row in rows})


def _flat(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "arm": row["arm"], "learning_rate": row["learning_rate"], "test": row["test"],
            "low": row["test_range"][0], "high": row["test_range"][1], "kl": row["kl_arm_to_base"],
        }
        for row in sorted(rows, key=lambda row: (row["arm"], row["learning_rate"]))
    ]  # fmt: skip


def _page(answered: Mapping[str, Any], arms: Mapping[str, Any] | None, figures: Sequence[str], read: bool) -> str:
    records, labs = answered["records"], len(answered["laboratories"])
    whose = "one laboratory" if labs == 1 else f"{labs} laboratories of their own problems and bases"
    counts = ", ".join(f"{number} {verdict}" for verdict, number in answered["counts"].items() if number)
    lines = [
        "# Results of the laboratory", "",
        f"{len(records)} claims of the paper over {whose}: {counts}.",
        "What is surprising stands first. Each claim opens to its numbers, nulls, controls, settings and command in",
        "[claims.md](claims.md); the same for programs in [claims.json](claims.json). Intervals are 95 % over seeds.",
        f"Made by `{answered['command']}`." + (f" What was read in it: [{BELIEFS}]({BELIEFS})." if read else ""), "",
        "| claim | the paper says | verdict | effect | beyond the null | seeds |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for record in records:
        link = f"[{record['id']}](claims.md#{record['id'].lower().replace(' ', '-')})"
        cells = (record["says"], *(record["shown"][key] for key in ("verdict", "effect", "beyond", "seeds")))
        lines.append(f"| {link} | {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |")
    lines += _arms(arms) if arms else []
    for name in figures:
        lines += ["", f"![{name}]({name}.svg)"]
    versions = ", ".join(f"{name} {version}" for name, version in answered["versions"].items())
    return "\n".join([*lines, "", f"Versions: {versions}."]) + "\n"


def _arms(arms: Mapping[str, Any]) -> list[str]:
    """Each arm at its best rate on validation; the grid is in the figures and in ``arms.json``."""
    lines = [
        "", "## Which weights may move", "",
        f"RLVR from the base of laboratory {arms['seed']}, preset {arms['settings']['preset']}, adapters of rank",
        f"{arms['settings']['rank']}: {_coverage(arms['points'])}. Each arm at its best learning rate on the",
        "validation half; accuracy on the test half, which chose nothing: mean [least, largest] over run seeds, then",
        "minus dense training with its 95 % interval (*no difference*: it covers zero, which does not show that they",
        "are equal). KL(arm, base) in nats per token; norm of D over that of W0; NSS; energy of D in both principal",
        "subspaces over that of Gaussian steps. Collapsed: of all runs there are, those whose mean reward of five",
        "steps ends below half of the base's accuracy. Figures show means over the seeds that are there.", "",
        f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|",
    ]  # fmt: skip
    for row in arms["arms"]:
        if row["chosen"]:
            lines.append(f"| {' | '.join(_cells(row, [r for r in arms['arms'] if r['arm'] == row['arm']]))} |")
    return lines


def _coverage(points: Sequence[Mapping[str, Any]]) -> str:
    """How much of the grid is there, and by seed where something is missing.

    >>> _coverage([{"arm": "a", "learning_rate": r, "run_seed": s} for r, s in ((1, 0), (2, 0), (1, 1))])
    '3 of the 4 runs of the grid (seed 0: 2, seed 1: 1)'
    """
    sizes = [len({point[key] for point in points}) for key in ("arm", "learning_rate", "run_seed")]
    whole = sizes[0] * sizes[1] * sizes[2]
    if len(points) == whole:
        return f"all {whole} runs of the grid"
    seeds = sorted({point["run_seed"] for point in points})
    each = ", ".join(f"seed {seed}: {sum(point['run_seed'] == seed for point in points)}" for seed in seeds)
    return f"{len(points)} of the {whole} runs of the grid ({each})"


def _cells(row: Mapping[str, Any], grid: Sequence[Mapping[str, Any]]) -> list[str]:
    low, high = row["test_range"]
    minus, travel = row["against"].get("dense", {}).get("shown", "-"), row.get("travel", {})
    weights = ("relative_delta_norm", "nss_mean", "energy_principal_lift")
    fallen, runs = sum(r["collapsed"] for r in grid), sum(len(r["seeds"]) for r in grid)
    where = sorted(r["learning_rate"] for r in grid if r["collapsed"])
    return [
        row["arm"], f"{row['learning_rate']:g}", str(len(row["seeds"])),
        f"{100 * row['test']:.1f} [{100 * low:.1f}, {100 * high:.1f}]", minus, f"{row['kl_arm_to_base']:.3g}",
        *(f"{travel[key]:.3g}" if key in travel else "-" for key in weights),
        f"{row['parameters_trained']:,}", f"{row['optimizer_bytes']:,}", f"{row['seconds_training']:.0f}",
        f"{fallen} of {runs}" + (f", from {where[0]:g}" if where else ""),
    ]  # fmt: skip
