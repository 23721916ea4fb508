"""The whole grid of arms as charts: wrong answers against learning rate and against distance to the base.

What it is: Vega-Lite specifications in the shared style, from ``arms.json``. Wrong answers on a logarithmic scale show
arms that differ by a point and runs that collapsed in one picture, with nothing cut off. What it is not: words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from offprincipal.report.charts import Spec, finished, named, run_scale

LEAST = 1e-3
"""Share of wrong answers below which a point is drawn here: a logarithm has no zero (*ours*)."""

OTHERS = "random, other draws"

TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.4, 0.6, 1.0)

DISTANCES = [scale * 10.0**power for power in range(-7, 3) for scale in (1, 3)]

REFERENCES = ("dense", "lora")
"""Drawn in ink."""

Row = Mapping[str, Any]


def charts(arms: Mapping[str, Any]) -> dict[str, Spec]:
    """``rates-`` and ``distance-``, each for masks and adapters: the good learning rates of adapters are others."""
    found = {}
    for part, adapter in (("masks", False), ("adapters", True)):
        rows = [row for row in arms["arms"] if row["adapter"] == adapter]
        if rows:
            found[f"rates-{part}"] = _rates(rows)
            found[f"distance-{part}"] = _distance(rows)
    return found


def _rates(rows: Sequence[Row]) -> Spec:
    """Against learning rate, mean and range over run seeds."""
    rates = sorted({row["learning_rate"] for row in rows})
    x = _log("learning_rate:Q", "learning rate", rates)
    lines = _lines(rows, x)
    span = alt.Chart(named()).mark_rule(opacity=0.5).encode(x, _wrong("least"), alt.Y2("most:Q"), _colour(rows))
    return finished((_base(rows) + span + lines).properties(width=430, height=300), _flat(rows))


def _distance(rows: Sequence[Row]) -> Spec:
    """Against KL to the base: what an arm gets for how far it goes."""
    x = _log("kl:Q", "KL(arm || base), nats per token", DISTANCES)
    shown = [row for row in _flat(rows) if row["kl"] > 0]
    return finished((_base(rows) + _lines(rows, x)).properties(width=430, height=300), shown)


def _lines(rows: Sequence[Row], x: alt.X) -> alt.Chart:
    """A line and points per arm, in the order of its rates."""
    drawn = alt.Chart(named()).mark_line(point=True)
    return drawn.encode(x, _wrong("wrong"), _colour(rows), alt.Order("learning_rate:Q"), alt.Detail("arm:N"))


def _log(field: str, title: str, ticks: Sequence[float]) -> alt.X:
    scale = alt.Scale(type="log", nice=False, padding=8)
    return alt.X(
        field, title=title, scale=scale, axis=alt.Axis(format=".3~g", values=list(ticks), labelOverlap="greedy")
    )


def _wrong(field: str) -> alt.Y:
    axis = alt.Axis(format="~%", values=list(TICKS))
    scale = alt.Scale(type="log", reverse=True, nice=False, padding=8)
    return alt.Y(f"{field}:Q", title="wrong answers, test half (fewer is higher)", scale=scale, axis=axis)


def _colour(rows: Sequence[Row]) -> alt.Color:
    names = sorted({row["arm"] for row in rows if not row["draw"]} - set(REFERENCES))
    before = [(arm, "var(--ink)") for arm in REFERENCES if any(row["arm"] == arm for row in rows)]
    before += [(OTHERS, "var(--faint)")] if any(row["draw"] for row in rows) else []
    legend = alt.Legend(columns=5, symbolOpacity=1)
    return alt.Color("name:N", title=None, sort=None, scale=run_scale(names, *before), legend=legend)


def _base(rows: Sequence[Row]) -> alt.LayerChart | alt.FacetChart:
    """The base before any arm: what lies below it unlearned."""
    wrong = 1 - rows[0]["test_before"]
    one = alt.Chart(alt.sequence(1))
    rule = one.mark_rule(strokeDash=[5, 4]).encode(alt.Y(datum=wrong))
    text = one.mark_text(align="left", dy=-5, text="the base", color="var(--muted)", fontSize=11)
    return alt.layer(rule, text.encode(alt.Y(datum=wrong), x=alt.value(2)))


def _flat(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One point per arm and rate."""
    return [
        {
            "arm": row["arm"], "name": OTHERS if row["draw"] else row["arm"], "learning_rate": row["learning_rate"],
            "wrong": max(1 - row["test"], LEAST), "least": max(1 - row["test_range"][1], LEAST),
            "most": max(1 - row["test_range"][0], LEAST), "kl": row["kl_arm_to_base"],
        }
        for row in sorted(rows, key=lambda row: (row["arm"], row["learning_rate"]))
    ]  # fmt: skip
