"""The judged effects of a study as charts, one per group of claims, and the runs in other coordinates.

What it is: Vega-Lite specifications in the shared style, from ``claims.json`` and ``interventions.json``: points,
intervals and what the nulls alone would give. What it is not: a judgement; nothing is computed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from offprincipal.report.charts import Spec, finished, named
from offprincipal.report.palette import RUNS

VERDICTS = {
    "supported": RUNS[2],
    "explained by the null": RUNS[3],
    "not supported": RUNS[1],
    "cannot tell": RUNS[6],
}

MARKS = {
    "effect": "circle",
    "beyond the null that decides": "square",
    "what a null alone gives": "diamond",
    "least that counts": "M0,-1V1",
}
EFFECT, BEYOND, NULL, LEAST = MARKS

UNITS = {
    "logarithm": "natural logarithm of a ratio (0.69 is a factor of two)",
    "difference": "difference of shares, of indices or as named",
}

WIDTH, STEP = 330, 24

LETTER, LABEL = 6, 420  # pixels of a letter and of the longest label

Row = Mapping[str, Any]


def effects(records: Sequence[Row]) -> dict[str, Spec]:
    """``effects-X`` for every group of claims that has a judged effect, X its letter."""
    groups: dict[str, list[Row]] = {}
    for record in sorted(records, key=lambda record: int(re.sub(r"\D", "", record["id"]))):
        if record["judged"]:
            groups.setdefault(record["id"][0], []).append(record)
    return {f"effects-{letter}": _panels(group) for letter, group in sorted(groups.items())}


def _panels(records: Sequence[Row]) -> Spec:
    """One panel per unit below each other: effects of different units share no axis."""
    rows = [row for record in records for row in _rows(record)]
    extent = min(LABEL, LETTER * max(len(row["row"].split("|", 1)[1]) for row in rows))
    panels = [_panel(unit, rows, extent) for unit in UNITS if any(row["unit"] == unit for row in rows)]
    chart = alt.vconcat(*panels, spacing=18).properties(title=records[0]["group"])
    return finished(chart, rows)


def _rows(record: Row) -> Iterator[dict[str, Any]]:
    """The marks of one claim, effect by effect: the effect, what exceeds each decisive null, the nulls, the least."""
    unit = "difference"
    own = {judged["verdict"] for judged in record["judged"]}
    for number, judged in enumerate(record["judged"]):
        words = judged["effect"]
        if not words.startswith("the same"):
            unit = "logarithm" if words.startswith("ln(") else "difference"
        # where a control failed the claim's verdict is none of its effects'
        verdict = judged["verdict"] if record["verdict"] in own else record["verdict"]
        shared = {"unit": unit, "verdict": verdict}
        at = shared | {"row": f"{record['id']} {number} |{record['id']}  {words}"}
        yield from _estimated(at, EFFECT, judged["estimate"])
        least = judged["least"]
        marks = [(NULL, value) for value in judged["expected"].values()]
        marks += [(LEAST, value) for value in ((least, -least) if judged["equal"] else (least,)) if least]
        yield from (at | {"mark": mark, "value": value} for mark, value in marks if value is not None)
        for null in judged["decisive"]:
            below = shared | {"row": f"{record['id']} {number} {null}|beyond {null}"}
            yield from _estimated(below, BEYOND, judged["over"][null])


def _estimated(at: dict[str, Any], mark: str, found: Row) -> Iterator[dict[str, Any]]:
    if found["mean"] is not None:
        ends = "" if found["low"] is None else f" [{found['low']:.2g}, {found['high']:.2g}]"
        told = f"{found['mean']:.3g}{ends}".replace("-", "−") + ("" if found["over"] == "seeds" else ", one seed")
        yield at | {"mark": mark, "value": found["mean"], "low": found["low"], "high": found["high"], "told": told}


def _panel(unit: str, rows: Sequence[Row], extent: int) -> alt.LayerChart | alt.FacetChart:
    """Zero, intervals, points and numbers of one unit; labels take `extent` pixels, so that panels align."""
    order = list(dict.fromkeys(row["row"] for row in rows if row["unit"] == unit))
    axis = alt.Axis(ticks=False, domain=False, grid=True, labelLimit=LABEL, minExtent=extent, maxExtent=extent,
                    labelExpr="slice(datum.label, indexof(datum.label, '|') + 1)", labelPadding=8)  # fmt: skip
    y = alt.Y("row:N", sort=order, title=None, axis=axis)
    x = alt.X("value:Q", title=UNITS[unit], axis=alt.Axis(tickCount=6, format=".3~g"))
    colour, shape = _scaled(alt.Color, "verdict", VERDICTS), _scaled(alt.Shape, "mark", MARKS)
    base = alt.Chart(named()).transform_filter(f"datum.unit === '{unit}'")
    found = base.transform_filter("isValid(datum.told)")
    zero = alt.Chart(alt.sequence(1)).mark_rule(color="var(--muted)", strokeWidth=1).encode(x=alt.datum(0))
    spans = found.mark_rule(strokeWidth=2).encode(alt.X("low:Q"), alt.X2("high:Q"), y, colour)
    points = found.mark_point(filled=True, size=60, opacity=1).encode(x, y, colour, shape)
    beside = base.transform_filter("!isValid(datum.told)").mark_point(
        filled=False, size=60, strokeWidth=1.6, color="var(--ink)", opacity=1
    )
    told = found.mark_text(align="left", fontSize=11).encode(y, colour, text="told:N", x=alt.value(WIDTH + 10))
    layers = alt.layer(zero, spans, beside.encode(x, y, shape), points, told)
    return layers.properties(width=WIDTH, height=alt.Step(STEP))


def _scaled(channel: Any, field: str, table: Mapping[str, str]) -> Any:
    """A channel with the same marks in every figure, and its legend in two columns."""
    scale = alt.Scale(domain=list(table), range=list(table.values()))
    return channel(f"{field}:N", scale=scale, sort=None, legend=alt.Legend(columns=2))


PLACES = {
    (True, "as_is"): "changed matrices, index by index",
    (True, "mapped_back"): "changed matrices, mapped back",
    (True, "other_seed"): "changed matrices, another seed",
    (False, "as_is"): "the others, index by index",
    (False, "other_seed"): "the others, another seed",
}
SERIES = {"observed": "circle", "magnitude null": "diamond", "independent masks": "square"}
COLOURS = ("var(--ink)", "var(--warm)", "var(--run-5)")


def coordinates(found: Mapping[str, Any]) -> Spec:
    """What the run from a changed base shares with the untouched run: index by index, mapped back, beside both nulls.

    One strip per kind of intervention; as a scale what an untouched run with another seed shares.
    """
    rows = [
        {
            "strip": f"{row['intervention']}: {', '.join(row['kinds'])} of block {row['block']}",
            "place": PLACES[row["touched"], row["compared"]], "series": series, "value": row[series]["mean"],
            "low": row[series]["low"] if series == "observed" else None, "high": row[series]["high"],
        }
        for row in found["rows"] if (row["touched"], row["compared"]) in PLACES
        for series in SERIES
    ]  # fmt: skip
    axis = alt.Axis(ticks=False, domain=False, grid=True, minExtent=190, maxExtent=190, labelLimit=190)
    y = alt.Y("place:N", sort=list(PLACES.values()), title=None, axis=axis)
    x = alt.X("value:Q", title="Jaccard index of the two update masks", scale=alt.Scale(zero=False, padding=10))
    colour = alt.Color("series:N", scale=alt.Scale(domain=list(SERIES), range=list(COLOURS)), sort=None)
    shape = alt.Shape("series:N", scale=alt.Scale(domain=list(SERIES), range=list(SERIES.values())), sort=None)
    base = alt.Chart().encode(y, colour)
    spans = (
        base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2).encode(alt.X("low:Q"), alt.X2("high:Q"))
    )
    observed, nulls = (base.transform_filter(f"datum.series {sign} 'observed'") for sign in ("===", "!=="))
    nulls = nulls.mark_point(filled=False, size=80, strokeWidth=1.8, opacity=1).encode(x, shape)
    observed = observed.mark_point(filled=True, size=45, opacity=1).encode(x, shape)
    layered = alt.layer(nulls, spans.encode(alt.X("low:Q"), alt.X2("high:Q")), observed, data=named())
    strips = list(dict.fromkeys(row["strip"] for row in rows))
    header = alt.Header(labelOrient="top", labelPadding=3)
    sized = layered.properties(width=430, height=alt.Step(24))
    return finished(sized.facet(row=alt.Row("strip:N", sort=strips, title=None, header=header), spacing=12), rows)
