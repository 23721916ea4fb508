"""The two charts of a forecast: visible share against the magnitude of a weight, sparsity against the step size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pyarrow as pa

from offprincipal.report.palette import RUNS

PER_BINADE = 4
"""Bins per power of two along ``|w0|`` (*ours*): fine enough to show the saw-teeth of a binade."""

LEAST = 1e-5
"""Bins with a smaller share of the weights are left out: a handful of weights makes no curve."""


def forecast_charts(summary: Mapping[str, Any], curve: pa.Table) -> list[dict[str, Any]]:
    """Title, words and Vega-Lite specification of each chart, for the ``section`` of ``forecast.json``."""
    first, counted = summary["updates"][0]["name"], summary["kind"] != "learning rate"
    lines = "Lines: counted; dashed: closed form." if counted else "Closed form."
    return [
        {
            "title": "Visible share against the magnitude of the weight",
            "words": f"{first.capitalize()}. {lines} The step is the same, the gap between neighbours is not.",
            "spec": magnitudes(curve, first),
        },
        {
            "title": "Unchanged share against the size of the steps",
            "words": f"{first.capitalize()}, every step times a factor and rounded again, over all weights.",
            "spec": factors(summary),
        },
    ]


def magnitudes(curve: pa.Table, update: str) -> dict[str, Any]:
    """Visible share per bin of ``|w0|``, one colour per format: counted as a line, the closed form dashed."""
    rows: list[dict[str, Any]] = []
    columns = {name: np.array(curve[name].to_pylist()) for name in ("update", "format", "code", "weights", "expected")}
    counted = np.array([np.nan if count is None else count for count in curve["counted"].to_pylist()], np.float64)
    names = list(dict.fromkeys(columns["format"].tolist()))
    for name in names:
        own = (columns["update"] == update) & (columns["format"] == name)
        bins = columns["code"][own] * PER_BINADE // 128
        weights = np.bincount(bins, columns["weights"][own])
        enough = np.flatnonzero(weights > LEAST * weights.sum())
        for series, values in (("counted", counted[own]), ("closed form", columns["expected"][own])):
            if np.isnan(values).any():
                continue
            shares = np.bincount(bins, values)[enough] / weights[enough]
            places = np.ldexp(1.0 + (enough % PER_BINADE) / PER_BINADE, enough // PER_BINADE - 127)
            rows += [{"format": name, "series": series, "w": float(w), "share": round(float(share), 6)}
                     for w, share in zip(places, shares, strict=True) if w > 0]  # fmt: skip
    chart = (
        alt.Chart(alt.Data(values=rows), width="container", height=230)
        .mark_line()
        .encode(
            x=alt.X("w:Q", scale=alt.Scale(type="log"), title="|w0|", axis=alt.Axis(format=".0e", tickCount=8)),
            y=alt.Y("share:Q", title="visible", axis=alt.Axis(format="%")),
            color=_colours(names),
            strokeDash=alt.StrokeDash("series:N", legend=None,
                                      scale=alt.Scale(domain=["counted", "closed form"], range=[[1, 0], [4, 3]])),
            tooltip=[alt.Tooltip("format:N"), alt.Tooltip("series:N"), alt.Tooltip("w:Q", format=".3g", title="|w0|"),
                     alt.Tooltip("share:Q", format=".3%", title="visible")],
        )
    )  # fmt: skip
    return _plain(chart)


def factors(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Sparsity against a factor on every step, one line per format."""
    found = [row for row in summary["sweep"] if row["scope"] == "all"]
    rows = [{"format": row["format"], "factor": row["factor"], "sparsity": row["sparsity"]} for row in found]
    chart = (
        alt.Chart(alt.Data(values=rows), width="container", height=230)
        .mark_line(point=True)
        .encode(
            x=alt.X("factor:Q", scale=alt.Scale(type="log"), title="factor on every step"),
            y=alt.Y("sparsity:Q", title="unchanged", axis=alt.Axis(format="%")),
            color=_colours(list(dict.fromkeys(row["format"] for row in rows))),
            tooltip=[alt.Tooltip("format:N"), alt.Tooltip("factor:Q"),
                     alt.Tooltip("sparsity:Q", format=".3%", title="unchanged")],
        )
    )  # fmt: skip
    return _plain(chart)


def _colours(names: list[str]) -> alt.Color:
    return alt.Color("format:N", title=None, scale=alt.Scale(domain=names, range=RUNS[: len(names)]))


def _plain(chart: alt.Chart) -> dict[str, Any]:
    """The specification without what the page sets itself."""
    return {key: value for key, value in chart.to_dict().items() if key not in ("$schema", "config")}
