"""Everything the page needs, gathered once: charts by name, the table, and the words around them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from offprincipal import __version__
from offprincipal.report import cells, charts, claims, closeup, gates, many, numbers, palette, pictures, story
from offprincipal.report.reading import Comparison
from offprincipal.report.words import NONE, percent, plain, points

LONG = (
    "runs",
    "consensus",
    "trajectory",
    "path",
    "probes",
    "definitions",
)  # keys of the summary that have a section of their own
ORIGIN = ("ref", "commit", "identity", "content_sha256", "dtypes", "architecture")  # where a run comes from
TABLE_LIMIT = 8000  # rows of the table in the page; beyond it experts other than the first are left to tensors.parquet


def parts(comparison: Comparison) -> dict[str, Any]:
    """Charts, closeups, table and words of one comparison. Nothing is written."""
    labels = comparison.labels
    told = story.stories(comparison)
    found = closeup.closeups(comparison)
    alphas, layered = cells.over_alpha(comparison), cells.cells(comparison)
    shown = pictures.pictures(comparison)
    steps = many.trajectory(comparison.summary.get("trajectory"))
    consensus = comparison.summary.get("consensus") or {}
    agree = many.pairs(consensus, labels) if len(labels) > 1 and consensus else []
    specs = {f"map-{metric}": charts.heatmap(layered, labels, metric) for metric in charts.METRICS}
    specs |= {f"alpha-{mask}": charts.over_alpha(alphas, labels, mask) for mask in ("principal", "low")}
    specs["excess"] = charts.excess(_excess_rows(told), labels)
    specs["ulps"] = charts.ulp_steps(cells.ulp_shares(comparison), labels)
    specs |= {f"matrix-{name}": spec for name, spec in closeup.charts(found, labels).items()}
    for i, group in enumerate(shown):
        specs |= {f"mask-{i}-{j}": spec for j, (_, spec) in enumerate(group["panels"])}
    specs["jaccard"] = many.jaccard(agree) if agree else None
    specs["consensus"] = many.histogram(consensus) if agree else None
    specs |= {f"step-{i}": spec for i, (_, spec) in enumerate(steps)}
    probed, probe_charts, unshown = gates.gates(comparison.directory)
    judged, torn = claims.scoreboard(comparison.directory)
    specs |= probe_charts
    drawn = {name: spec for name, spec in specs.items() if spec is not None}
    table, cut = _table(comparison)
    words = {
        "told": told, "signs": _signs(told), "glance": story.glance(told), "overlaps": _overlap_table(told),
        "shown": shown,
        "path": many.path(comparison.summary.get("path")),
        "steps": [title for title, _ in steps], "agree": [_pair(pair) for pair in agree],
        "stripes": [(a, kind, _r(row), _r(column)) for a, kind, row, column in closeup.stripes(labels, found)],
        "gates": probed, "claims": judged, "has": set(drawn), "labels": labels,
        "base": _base(comparison.summary.get("base")),
        "missing": _missing(comparison, drawn) + unshown + torn, "unpaired": comparison.unpaired, "cut": cut,
        "closeups": found, "facts": facts(comparison.summary), "version": __version__,
        "definitions": _definitions(comparison.summary.get("definitions")),
    }  # fmt: skip
    return {
        "charts": drawn, "closeups": found, "table": table, "words": words, "labels": list(labels),
        "config": palette.config(), "palette": {"light": palette.LIGHT, "dark": palette.DARK},
    }  # fmt: skip


def _excess_rows(told: tuple[story.RunStory, ...]) -> list[dict[str, Any]]:
    rows = []
    for run in told:
        for o in run.overlaps:
            nulls = [("observed", o.observed, NONE), ("magnitude null", o.magnitude, plain(o.z)),
                     ("rounding null", o.rounding, plain(o.z_rounding))]  # fmt: skip
            for series, share, z in nulls:
                if not math.isnan(share) and (o.mask, series) != ("low", "magnitude null"):
                    rows.append({"run": run.label, "mask": numbers.MASKS[o.mask], "series": series,
                                 "told": percent(share, 2), "bias": 100 * (share - o.chance), "z": z})  # fmt: skip
    return rows


def _overlap_table(told: tuple[story.RunStory, ...]) -> list[dict[str, Any]]:
    """Every overlap with its nulls as words. The magnitude null of the low mask is the observation: no z."""
    lines = []
    for run in told:
        for o in run.overlaps:
            own = o.mask == "low"
            lines.append({
                "run": run.label, "mask": numbers.MASKS[o.mask], "matrices": o.matrices,
                "observed": percent(o.observed, 2), "chance": percent(o.chance, 2),
                "magnitude": "= observed" if own else percent(o.magnitude, 2),
                "excess": NONE if own else points(o.excess),
                "interval": NONE if own or math.isnan(o.low) else f"{points(o.low)} to {points(o.high)}",
                "z": NONE if own else plain(o.z),
                "rounding": percent(o.rounding, 2), "z_rounding": plain(o.z_rounding),
                "feasible": f"{percent(o.feasible[0], 0)} to {percent(o.feasible[1], 0)}",
            })  # fmt: skip
    return lines


def _signs(told: tuple[story.RunStory, ...]) -> list[dict[str, Any]]:
    """The thresholds, one line per sign, with what each run measured and how it voted."""
    lines = []
    for i, (name, _, rl, sft, _, why) in enumerate(told[0].signs):
        votes = [(run.signs[i][1], run.signs[i][4]) for run in told]
        lines.append({"name": name, "rl": rl, "sft": sft, "why": why, "votes": votes})
    return lines


def _pair(pair: dict[str, Any]) -> dict[str, str]:
    def shown(key: str) -> str:
        value = pair.get(key)
        return plain(float(value)) if isinstance(value, int | float) else NONE

    return {"runs": f"{pair['a']} · {pair['b']}", **{key: shown(key) for key in (*many.AGREEMENT, "z")}}


def _r(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.2f}".replace("-", "−")


COLUMNS = (
    ("run", "run", "text", ""), ("tensor", "tensor", "name", ""), ("kind", "kind", "text", ""),
    ("layer", "layer", "int", ""), ("shape", "shape", "text", "output x input"), ("counted", "weights", "int", ""),
    ("sparsity", "sparsity", "pct", "share of weights that did not change, bf16"),
    ("relative", "‖D‖/‖W₀‖", "sci", "relative length of the update"), ("nss", "NSS", "sci", "spectral shift"),
    ("angle", "angle °", "g", "largest principal angle"),
    ("kappa", "κ_spec", "g", "spectral change, noise is about 1"),
    ("principal", "in principal", "pct", "share of the changes inside the principal mask"),
    ("principal_magnitude", "magnitude null", "pct", "what magnitude alone gives"),
    ("principal_excess", "excess, pts", "pts", "observed minus magnitude null"),
    ("principal_z", "z", "g", "of the excess"),
    ("low", "in low", "pct", "share of the changes on the smallest weights"),
    ("low_rounding", "rounding null", "pct", "what rounding alone gives"), ("low_z", "z (rounding)", "g", ""),
)  # fmt: skip


def _table(comparison: Comparison) -> tuple[dict[str, Any], int]:
    """The table of tensors by columns, and how many rows did not fit. A column without any value is left out."""
    rows = comparison.rows
    cut = 0
    if rows.length > TABLE_LIMIT:
        kept = ~(rows.number("expert") > 0)
        kept &= np.cumsum(kept) <= TABLE_LIMIT
        cut, rows = int((~kept).sum()), rows.where(kept)
    each = numbers.per_tensor(rows)
    each |= {"layer": rows.number("layer"), "counted": rows.number("counted")}
    shapes = [
        f"{int(m)}" if n == 1 else f"{int(m)} × {int(n)}"
        for m, n in zip(rows.number("out_features"), rows.number("in_features"), strict=True)
        if not math.isnan(m + n)
    ]
    texts = {name: rows.text(name).tolist() for name in ("run", "tensor", "kind")}
    texts["shape"] = shapes if len(shapes) == rows.length else [""] * rows.length
    columns = []
    for key, title, form, hint in COLUMNS:
        values = texts[key] if key in texts else [_short(v) for v in each[key].tolist()]
        if any(v not in (None, "") for v in values):
            columns.append({"key": key, "title": title, "form": form, "hint": hint, "values": values})
    return {"columns": columns, "rows": rows.length}, cut


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.5g}")


def _base(base: Any) -> str:
    if isinstance(base, dict):
        commit = base.get("commit")
        return f"{base.get('ref', '')}" + (f"@{str(commit)[:12]}" if commit else "")
    return str(base or "")


def _missing(comparison: Comparison, drawn: dict[str, Any]) -> list[str]:
    """One line for every section that has nothing to show."""
    lines = []
    if not comparison.rows.has("principal_ones"):
        lines.append("Principal masks were not measured: no off-principal overlap is shown.")
    if not comparison.rows.has("spectrum_base_sq"):
        lines.append("Spectra and principal angles were not measured.")
    if len(comparison.labels) == 1:
        lines.append("There is one run, so there is nothing to say about agreement between runs.")
    if not any(name.startswith("step-") for name in drawn):
        lines.append("The runs are not steps of one run (--trajectory), so no trajectory is shown.")
    if not any(name.startswith("map-") for name in drawn):
        lines.append("No linear weight has a layer number, so there are no layer maps.")
    return lines


def _definitions(found: Any) -> list[tuple[str, str]]:
    return [(str(key), str(value)) for key, value in found.items()] if isinstance(found, dict) else []


def facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Provenance as (name, words): every plain value of the summary outside the runs, nested names joined by a dot."""
    found: list[tuple[str, str]] = []

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}.{key}" if name else str(key), inner)
        elif isinstance(value, list):
            if not any(isinstance(inner, dict | list) for inner in value):
                found.append((name, ", ".join(str(inner) for inner in value)))
        elif value is not None:
            found.append((name, str(value)))

    walk("", {k: v for k, v in summary.items() if k not in LONG})
    for run in summary["runs"]:
        walk(f"run {run['label']}", {k: run[k] for k in ORIGIN if k in run})
    return found
