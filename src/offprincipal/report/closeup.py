"""One matrix at a time: its curves, thinned so that a page holds hundreds of matrices, and their charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import numpy as np

from offprincipal.report import cells
from offprincipal.report.charts import Spec, finished, named, run_scale
from offprincipal.report.numbers import mean
from offprincipal.report.palette import DIVERGING
from offprincipal.report.reading import Comparison, Curve, Rows
from offprincipal.report.scales import classes, stepped

POINTS = 40  # of a curve, picked evenly: over k in log scale, over the index of an angle in linear scale
STROKE = alt.Legend(symbolType="stroke", symbolSize=220, symbolStrokeWidth=2.5, symbolOpacity=1)
BINS = 128  # of a row or column profile; neighbouring bins are summed, never picked
BUDGET = 700_000  # numbers in the page at most, about 4 MB of JSON; what is beyond stays in curves.parquet
STORED = ("spectrum_base", "spectrum_tuned", "angles_left", "angles_right", "row_changed", "col_changed")
NULLS = ("row_consensus_matched", "col_consensus_matched")  # of all runs together: their label is empty


@dataclass
class Closeups:
    """Thinned curves. ``axes`` are shared x values; ``tensors`` hold, per run index, {curve: [axis, [y ...]]}.

    What belongs to all runs together, the magnitude null of the consensus, stands under the index "null".
    """

    axes: list[list[float]] = field(default_factory=list)
    tensors: list[dict[str, Any]] = field(default_factory=list)
    default: int = 0
    left_out: int = 0

    def rows(self, labels: Sequence[str], curves: dict[str, str], base: str | None) -> list[dict[str, Any]]:
        """The rows of the default matrix for one chart, exactly as the page builds them for any matrix."""
        found: list[dict[str, Any]] = []
        based = False
        for run, kept in sorted(self.tensors[self.default]["runs"].items()):
            for name, series in curves.items():
                if name not in kept or (name == base and based):
                    continue
                based = based or name == base
                axis, ys = kept[name]
                label = "base" if name == base else "magnitude null" if run == "null" else labels[int(run)]
                found += [{"run": label, "series": series, "x": x, "y": y}
                          for x, y in zip(self.axes[axis], ys, strict=True)]  # fmt: skip
        return found


def closeups(comparison: Comparison) -> Closeups:
    """The curves of as many linear matrices as the page can hold, layer by layer, spread evenly if not all fit."""
    names = _order(comparison.rows)
    room = max(1, BUDGET // (len(comparison.labels) * (4 * POINTS + 2 * BINS)))
    kept = names if len(names) <= room else [names[i * len(names) // room] for i in range(room)]
    wanted = list(dict.fromkeys(kept))
    found = Closeups(left_out=len(names) - len(wanted))
    if not wanted:
        return found
    places = {name: i for i, name in enumerate(wanted)}
    shapes = _shapes(comparison.rows, places)
    tensors: list[dict[str, Any]] = [{"name": name, **shapes[name], "runs": {}} for name in wanted]
    axes: dict[tuple[float, ...], int] = {}
    for curve in comparison.curves(STORED + NULLS, None if len(wanted) == len(names) else wanted):
        if curve.tensor not in places:
            continue
        tensor = tensors[places[curve.tensor]]
        index = "null" if curve.name in NULLS else str(comparison.labels.index(curve.run))
        run = tensor["runs"].setdefault(index, {})
        x, y = _thinned(curve, tensor["shape"])
        axis = axes.setdefault(tuple(x), len(axes))
        run[curve.name] = [axis, [float(f"{v:.4g}") for v in y]]
        if curve.name == "spectrum_base":
            run["_base"] = curve.y
        elif curve.name == "spectrum_tuned":
            run["_tuned"] = curve
    for tensor in tensors:
        for run in tensor["runs"].values():
            _add_shift(run, axes)
    found.axes = [list(axis) for axis in axes]
    found.tensors = [t for t in tensors if any(t["runs"].values())]
    found.left_out = len(names) - len(found.tensors) if found.tensors else 0
    found.default = _default(found.tensors)
    return found


def _order(rows: Rows) -> list[str]:
    linear = rows.where(rows.number("linear") > 0)
    kinds = cells.kind_order(set(linear.text("kind")))
    keys = zip(
        np.nan_to_num(linear.number("layer"), nan=-1), (kinds.index(k) for k in linear.text("kind")),
        np.nan_to_num(linear.number("expert"), nan=-1), linear.text("tensor"), strict=True,
    )  # fmt: skip
    return list(dict.fromkeys(key[3] for key in sorted(keys)))


def _shapes(rows: Rows, wanted: dict[str, int]) -> dict[str, dict[str, Any]]:
    columns = zip(rows.text("tensor"), rows.number("out_features"), rows.number("in_features"), rows.text("kind"),
                  rows.number("layer"), strict=True)  # fmt: skip
    return {
        name: {"shape": [int(m), int(n)], "kind": kind, "layer": None if np.isnan(layer) else int(layer)}
        for name, m, n, kind, layer in columns
        if name in wanted
    }


def _thinned(curve: Curve, shape: Sequence[int]) -> tuple[list[float], np.ndarray]:
    """Curves: points picked, ends kept. Profiles: neighbouring bins summed, as densities over their entries."""
    if curve.name.startswith(("row_", "col_")):
        bins = min(len(curve.y), BINS)
        if curve.name in NULLS:  # means of C over bins, not counts
            edges = np.arange(bins) * len(curve.y) // bins
            widths = np.diff(edges, append=len(curve.y))
            return curve.x[edges].tolist(), np.add.reduceat(curve.y, edges) / widths
        own, other = shape if curve.name == "row_changed" else shape[::-1]
        edges = np.arange(bins) * len(curve.y) // bins
        starts = curve.x[edges]  # x is the first row of each stored bin
        sizes = np.diff(starts, append=own) * other
        return starts.tolist(), np.add.reduceat(curve.y, edges) / sizes
    at = (
        np.unique(np.linspace(0, len(curve.x) - 1, POINTS).astype(int))
        if "angles" in curve.name
        else picked(len(curve.x))
    )
    return [float(v) for v in curve.x[at]], curve.y[at]


def picked(length: int, points: int = POINTS) -> np.ndarray:
    """Which points of a curve stay: at most ``points``, evenly in log scale, first and last included.

    >>> picked(3).tolist(), picked(1000, 4).tolist()
    ([0, 1, 2], [0, 9, 99, 999])
    """
    if length <= points:
        return np.arange(length)
    return np.unique(np.rint(np.geomspace(1, length, points)).astype(int) - 1)


def _add_shift(run: dict[str, Any], axes: dict[tuple[float, ...], int]) -> None:
    """Add the relative change of each singular value, computed before the rounding for the page."""
    base, tuned = run.pop("_base", None), run.pop("_tuned", None)
    if base is None or tuned is None or len(base) != len(tuned.y):
        return
    at = picked(len(base))
    safe = np.where(base[at] > 0, base[at], np.nan)
    shift = tuned.y[at] / safe - 1
    axis = axes.setdefault(tuple(float(v) for v in tuned.x[at]), len(axes))
    run["spectrum_shift"] = [axis, [float(f"{v:.4g}") if np.isfinite(v) else None for v in shift]]


def _default(tensors: Sequence[dict[str, Any]]) -> int:
    """An output projection in the middle, where the paper looks; else any matrix in the middle."""
    middle = sorted(range(len(tensors)), key=lambda i: (tensors[i]["kind"] != "o", abs(2 * i - len(tensors))))
    return middle[0] if middle else 0


def charts(found: Closeups, labels: Sequence[str]) -> dict[str, Spec]:
    """The charts of one matrix by name, each filled with the default matrix."""
    null = any("null" in tensor["runs"] for tensor in found.tensors)
    wanted = {
        "spectrum": ({"spectrum_base": "base", "spectrum_tuned": "tuned"}, "spectrum_base", _spectrum(labels)),
        "shift": ({"spectrum_shift": "change"}, None, _shift(labels)),
        "angles": ({"angles_left": "left (output side)", "angles_right": "right (input side)"}, None, _angles(labels)),
        "rows": (
            {"row_changed": "rows", "row_consensus_matched": "rows"},
            None,
            _stripes(labels, "rows (output index)", null),
        ),
        "columns": (
            {"col_changed": "columns", "col_consensus_matched": "columns"},
            None,
            _stripes(labels, "columns (input index)", null),
        ),
    }
    drawn = {}
    for name, (curves, base, chart) in wanted.items():
        if any(curve in run for t in found.tensors for run in t["runs"].values() for curve in curves):
            rows = found.rows(labels, curves, base)
            drawn[name] = finished(chart, rows, closeup={"curves": curves, "base": base})
    return drawn


def _over_k(title: str) -> alt.X:
    axis = alt.Axis(grid=False, tickCount=4, format="~s")
    return alt.X("x:Q", title=title, scale=alt.Scale(type="log", nice=False), axis=axis)


def _spectrum(labels: Sequence[str]) -> alt.TopLevelMixin:
    scale = alt.Scale(type="log", nice=False)
    base = alt.Chart().transform_filter("datum.y > 0").encode(
        x=_over_k("k"),
        y=alt.Y("y:Q", title="singular value", scale=scale, axis=alt.Axis(tickCount=3, format="~g")),
        color=alt.Color("run:N", scale=run_scale(labels, ("base", "var(--faint)")), legend=STROKE),
        tooltip=[alt.Tooltip("run:N"), alt.Tooltip("x:Q", title="k"), alt.Tooltip("y:Q", format=".5g", title="s_k")],
    )  # fmt: skip
    wide = base.transform_filter("datum.series == 'base'").mark_line(strokeWidth=6, opacity=0.5)
    thin = base.transform_filter("datum.series != 'base'").mark_line(strokeWidth=1.4)
    return alt.layer(wide, thin, _targets(base), data=named()).properties(width="container", height=200)


def _shift(labels: Sequence[str]) -> alt.TopLevelMixin:
    base = alt.Chart().encode(
        x=_over_k("k"),
        y=alt.Y("y:Q", title="relative change of s_k", axis=alt.Axis(format="~g", tickCount=5)),
        color=alt.Color("run:N", scale=run_scale(labels), legend=STROKE),
        tooltip=[alt.Tooltip("run:N"), alt.Tooltip("x:Q", title="k"),
                 alt.Tooltip("y:Q", format="+.3e", title="change")],
    )  # fmt: skip
    layers = base.mark_line(strokeWidth=1.2), base.mark_point(size=16)
    return alt.layer(*layers, data=named()).properties(width="container", height=200)


def _angles(labels: Sequence[str]) -> alt.TopLevelMixin:
    scale = alt.Scale(type="log", nice=False)
    base = alt.Chart().transform_calculate(shown="max(datum.y, 0.001)").encode(
        x=alt.X("x:Q", title="i-th principal angle", axis=alt.Axis(grid=False, tickCount=4),
                scale=alt.Scale(nice=False)),
        y=alt.Y("shown:Q", title="degrees", scale=scale, axis=alt.Axis(tickCount=4, format="~g")),
        color=alt.Color("run:N", scale=run_scale(labels), legend=STROKE),
        strokeDash=alt.StrokeDash("series:N", scale=alt.Scale(range=[[1, 0], [4, 3]]), legend=None),
        tooltip=[alt.Tooltip("run:N"), alt.Tooltip("series:N", title="side"), alt.Tooltip("x:Q", title="i"),
                 alt.Tooltip("y:Q", format=".4~g", title="degrees")],
    )  # fmt: skip
    layers = base.mark_line(strokeWidth=1.6), _targets(base)
    return alt.layer(*layers, data=named()).properties(width="container", height=200)


def _targets(base: alt.Chart) -> alt.Chart:
    """Invisible points on a line, so that a pointer or a finger finds its values."""
    return base.mark_point(size=60, opacity=0)


def _stripes(labels: Sequence[str], title: str, null: bool) -> alt.TopLevelMixin:
    """Share changed per block of rows or columns, relative to the run's mean: one strip per run, consensus below.

    The consensus C is the mean of the runs' masks, so its profile is the mean of theirs. Its magnitude null, where it
    was measured, stands below it.
    """
    bands = [*labels, "consensus", *(["magnitude null"] if null else [])] if len(labels) > 1 else list(labels)
    relative = "datum.y / datum.mean - 1"
    base = alt.Chart().encode(
        x=alt.X("x:O", title=title, axis=alt.Axis(labelAngle=0, labelOverlap="greedy", labelSeparation=12, ticks=False,
                                                  domain=False)),
        y=alt.Y("run:N", title=None, scale=alt.Scale(domain=bands), axis=alt.Axis(ticks=False, domain=False)),
        color=stepped(DIVERGING, [f"{100 * t:+g}%".replace("-", "−") for t in RELATIVE]),
        tooltip=[alt.Tooltip("run:N"), alt.Tooltip("x:O", title="from"),
                 alt.Tooltip("y:Q", format=".2%", title="changed"),
                 alt.Tooltip("relative:Q", format="+.1%", title="against its mean")],
    )  # fmt: skip
    number = {"relative": relative}, {"class": classes("relative", RELATIVE)}
    average = {
        "joinaggregate": [alt.JoinAggregateFieldDef(op="mean", field="y", **{"as": "mean"})],
        "groupby": ["run"],
    }
    own = base.transform_joinaggregate(**average).transform_calculate(**number[0]).transform_calculate(**number[1])
    layers = [own.mark_rect()]
    if len(labels) > 1:
        both = (
            base.transform_filter("datum.run !== 'magnitude null'")
            .transform_aggregate(y="mean(y)", groupby=["x"])
            .transform_calculate(run="'consensus'")
        )
        both = both.transform_joinaggregate(**average)
        layers.append(both.transform_calculate(**number[0]).transform_calculate(**number[1]).mark_rect())
    return alt.layer(*layers, data=named()).properties(width="container", height=20 * len(bands))


RELATIVE = (-0.5, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.5)  # thresholds against the mean, ours


def stripes(labels: Sequence[str], found: Closeups) -> list[tuple[str, str, float, float]]:
    """How alike the profiles of two runs are: (runs, kind, Pearson r of rows, of columns), means over matrices."""
    totals: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for tensor in found.tensors:
        runs = sorted((run for run in tensor["runs"] if run != "null"), key=int)
        for i, one in enumerate(runs):
            for other in runs[i + 1 :]:
                left, right = tensor["runs"][one], tensor["runs"][other]
                pair = _alike(left, right, "row_changed"), _alike(left, right, "col_changed")
                totals.setdefault((f"{labels[int(one)]} · {labels[int(other)]}", tensor["kind"]), []).append(pair)
    kinds = cells.kind_order({kind for _, kind in totals})
    ordered = sorted(totals, key=lambda key: (key[0], kinds.index(key[1])))
    return [(*key, mean([r for r, _ in totals[key]]), mean([c for _, c in totals[key]])) for key in ordered]


def _alike(one: dict[str, Any], other: dict[str, Any], name: str) -> float:
    if name not in one or name not in other or len(one[name][1]) != len(other[name][1]) or len(one[name][1]) < 3:
        return float("nan")
    a, b = np.array(one[name][1]), np.array(other[name][1])
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")
