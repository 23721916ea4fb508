"""The overview charts as Vega-Lite specifications: one specification for the page and for the paper's figures.

Each function returns a plain dict, or None where there is nothing to draw. ``usermeta`` tells the page how to fit the
chart into its column: ``pad`` is what axes take of the width, ``facets`` how many panels may stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
from altair.utils import schemapi

from offprincipal.report import cells as reduce
from offprincipal.report.palette import DIVERGING, RUNS, SEQUENTIAL, config
from offprincipal.report.scales import breaks, classes, power, spread, stepped

Spec = dict[str, Any]
LEFT = 46  # pixels that the labels left of a heatmap take, the same in every one so that they align


def finished(chart: alt.TopLevelMixin, rows: Sequence[Any], **usermeta: Any) -> Spec:
    """The chart as a dict with its rows, the shared config and the page's hints; valid where altair checks at all."""
    spec = chart.to_dict(validate=schemapi.DEBUG_MODE)
    spec.pop("config", None)
    usermeta.setdefault("letters", 8)
    spec |= {"datasets": {"rows": list(rows)}, "config": config(), "usermeta": usermeta}
    return spec


def named() -> alt.NamedData:
    """Every chart reads the dataset called rows."""
    return alt.NamedData(name="rows")


def run_scale(labels: Sequence[str], *before: tuple[str, str]) -> alt.Scale:
    """One colour per run, the same in every chart; ``before`` are (name, colour) pairs that come first."""
    colours = [RUNS[i % len(RUNS)] for i in range(len(labels))]
    return alt.Scale(domain=[b[0] for b in before] + list(labels), range=[b[1] for b in before] + colours)


METRICS = {
    "sparsity": ("Sparsity", lambda v: f"{100 * v:g}%"),
    "z": (
        "z of the principal overlap beyond the magnitude null",
        lambda v: f"{v:g}".replace("-", "−").replace("000", "k"),
    ),
    "nss": ("NSS, how far singular values moved", power),
    "angle": ("Largest principal angle, degrees", lambda v: f"{v:g}°"),
}


def heatmap(found: list[dict[str, Any]], labels: Sequence[str], metric: str) -> Spec | None:
    """Layer x kind cells of one number, one strip per run, with every number of the cell in the tooltip."""
    values = [cell[metric] for cell in found if cell[metric] is not None]
    if not values:
        return None
    thresholds = breaks(values, metric)
    ramp = DIVERGING if metric == "z" else spread(SEQUENTIAL, len(thresholds) + 1)
    title, told = METRICS[metric]
    layers = sorted({cell["layer"] for cell in found})
    tooltip = [alt.Tooltip("run:N"), alt.Tooltip("tensor:N"), alt.Tooltip("matrices:Q")]
    tooltip += [alt.Tooltip(f"t{i}:N", title=name) for i, name in enumerate(reduce.TOOLTIPS)]
    chart = (
        alt.Chart(named())
        .transform_filter(f"datum.{metric} !== null")
        .transform_calculate(**{"class": classes(metric, thresholds)})
        .mark_rect(stroke="var(--paper)", strokeWidth=0.6)
        .encode(
            x=alt.X("layer:O", title="layer",
                    axis=alt.Axis(labelAngle=0, labelOverlap="greedy", labelSeparation=8, ticks=False, domain=False),
                    scale=alt.Scale(domain=list(range(layers[0], layers[-1] + 1)))),
            y=alt.Y("kind:N", title=None, sort=reduce.kind_order({cell["kind"] for cell in found}),
                    axis=alt.Axis(ticks=False, domain=False, minExtent=LEFT, maxExtent=LEFT)),
            color=stepped(ramp, [told(t) for t in thresholds]),
            tooltip=tooltip,
        )
        .properties(width=520, height=alt.Step(13))
    )  # fmt: skip
    faceted = chart.facet(row=by_run(labels), spacing=14)
    return finished(faceted, found, title=title, pad=LEFT + 14, facets=1, shared="cells")


def by_run(labels: Sequence[str]) -> alt.Row:
    """One strip per run, named above it."""
    return alt.Row("run:N", sort=list(labels), title=None, header=alt.Header(labelOrient="top", labelPadding=3))


SERIES = ("observed", "magnitude null", "rounding null", "chance")
SERIES_COLOURS = ("var(--ink)", "var(--warm)", "var(--violet)", "var(--faint)")
SERIES_DASHES = ([1, 0], [6, 3], [2, 2], [1, 0])


def over_alpha(found: list[dict[str, Any]], labels: Sequence[str], mask: str) -> Spec | None:
    """Overlap minus chance over the size of a mask, one panel per run: observed beside every null."""
    rows = [point for point in found if point["mask"] == mask]
    if not rows:
        return None
    order = [name for name in SERIES if any(point["series"] == name for point in rows)]
    colours, dashes = ([table[SERIES.index(name)] for name in order] for table in (SERIES_COLOURS, SERIES_DASHES))
    stroke = alt.Legend(symbolType="stroke", symbolSize=300, symbolStrokeWidth=2)
    base = alt.Chart().encode(
        x=alt.X("alpha:Q", title="size of the mask (share of all weights)", scale=alt.Scale(domain=[0, 0.5]),
                axis=alt.Axis(format="%", values=[0.1, 0.2, 0.3, 0.4, 0.5], grid=False)),
        y=alt.Y("bias:Q", title="overlap minus chance, points", axis=alt.Axis(tickCount=5)),
        color=alt.Color("series:N", scale=alt.Scale(domain=order, range=colours), legend=stroke),
        strokeDash=alt.StrokeDash("series:N", scale=alt.Scale(domain=order, range=dashes)),
        tooltip=[alt.Tooltip("run:N"), alt.Tooltip("series:N"),
                 alt.Tooltip("alpha:Q", format=".0%", title="mask size"),
                 alt.Tooltip("share:Q", format=".2%", title="overlap"),
                 alt.Tooltip("bias:Q", format="+.2f", title="minus chance, points"),
                 alt.Tooltip("sd:Q", format=".2%", title="sd over matrices"), alt.Tooltip("matrices:Q")],
    )  # fmt: skip
    dots = base.transform_filter("datum.series != 'chance'").mark_point(size=34).encode(strokeDash=alt.value([1, 0]))
    layered = alt.layer(base.mark_line(), dots, data=named()).properties(width=260, height=190)
    chart = layered.facet(facet=alt.Facet("run:N", sort=list(labels), title=None), columns=3, spacing=24)
    return finished(chart, rows, pad=58, facets=len(labels), gap=24, least=200, letters=14)


def excess(overlaps: list[dict[str, Any]], labels: Sequence[str]) -> Spec | None:
    """Overlap minus chance, in points, of every mask and run at the default size: observed beside both nulls."""
    if not overlaps:
        return None
    order = [name for name in SERIES[:3] if any(row["series"] == name for row in overlaps)]
    left = alt.Axis(ticks=False, domain=False, grid=True, minExtent=110, maxExtent=110)
    base = alt.Chart().encode(
        y=alt.Y("mask:N", sort=None, title=None, axis=left),
        x=alt.X("bias:Q", title="overlap minus chance, percentage points"),
        tooltip=[alt.Tooltip("run:N"), alt.Tooltip("mask:N"), alt.Tooltip("series:N"),
                 alt.Tooltip("told:N", title="overlap"),
                 alt.Tooltip("bias:Q", format="+.2f", title="minus chance, points"),
                 alt.Tooltip("z:N", title="z of the observed against it")],
    )  # fmt: skip
    colours, shapes = list(SERIES_COLOURS[: len(order)]), ["circle", "diamond", "triangle-up"][: len(order)]
    points = base.mark_point(size=75, filled=True, opacity=0.95).encode(
        color=alt.Color("series:N", scale=alt.Scale(domain=order, range=colours)),
        shape=alt.Shape("series:N", scale=alt.Scale(domain=order, range=shapes)),
    )
    zero = alt.Chart().mark_rule(color="var(--faint)").encode(x=alt.datum(0))
    layered = alt.layer(zero, points, data=named()).properties(width=430, height=alt.Step(24))
    chart = layered.facet(row=by_run(labels), spacing=12)
    return finished(chart, overlaps, pad=130, facets=1, letters=14)


def ulp_steps(found: list[dict[str, Any]], labels: Sequence[str]) -> Spec | None:
    """How many steps of the bf16 grid the changed weights moved, as shares of all changes."""
    if not found:
        return None
    order = list(dict.fromkeys(row["step"] for row in sorted(found, key=lambda row: row["at"])))
    chart = (
        alt.Chart(named(), width="container", height=190)
        .mark_bar(cornerRadiusEnd=1)
        .encode(
            x=alt.X("step:N", sort=order, title="steps of the bf16 grid", axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("run:N", sort=list(labels)),
            y=alt.Y("share:Q", title="share of the changes", axis=alt.Axis(format="%", tickCount=5)),
            color=alt.Color("run:N", scale=run_scale(labels)),
            tooltip=[alt.Tooltip("run:N"), alt.Tooltip("step:N", title="bf16 steps"),
                     alt.Tooltip("share:Q", format=".2%")],
        )
    )  # fmt: skip
    return finished(chart, found)
