"""Charts of several runs and of a run's steps: agreement between update masks, and how a run grew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from offprincipal.report.charts import Spec, finished, named
from offprincipal.report.words import count, percent, plain

AGREEMENT = {"jaccard": "observed", "jaccard_matched": "magnitude null", "jaccard_bernoulli": "chance (Bernoulli)"}
COLOURS = ("var(--ink)", "var(--warm)", "var(--faint)")


def pairs(consensus: Mapping[str, Any], labels: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs of runs with their Jaccard and its baselines; without pairs in the summary, the one mean over all."""
    listed = consensus.get("pairs")
    if isinstance(listed, list) and listed:
        return [_named(dict(pair), labels) for pair in listed]
    values = {key: consensus.get(key) for key in AGREEMENT}
    if all(isinstance(v, list) for v in values.values() if v is not None) and isinstance(values["jaccard"], list):
        return [
            {"a": labels[i], "b": labels[j]} | {key: v[i][j] for key, v in values.items() if v is not None}
            for i in range(len(labels))
            for j in range(i + 1, len(labels))
        ]
    return [{"a": "mean of", "b": "all pairs"} | values]


def _named(pair: dict[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """The pair with its runs by name (a, b), whether the summary counts or names them, and with its z."""
    for key, other in (("a", "left"), ("b", "right")):
        run = pair.get(key, pair.get(other))
        pair[key] = labels[run] if isinstance(run, int) and run < len(labels) else str(run)
    return pair | {"z": pair.get("z", pair.get("excess_z"))}


def jaccard(found: Sequence[Mapping[str, Any]]) -> Spec | None:
    """Jaccard of the update masks of each pair of runs, beside independent masks and magnitude-matched ones."""
    rows = [
        {"pair": f"{pair['a']} · {pair['b']}", "series": name, "value": pair[key], "told": plain(pair[key])}
        for pair in found
        for key, name in AGREEMENT.items()
        if isinstance(pair.get(key), int | float)
    ]
    if not rows:
        return None
    order = [name for name in AGREEMENT.values() if any(row["series"] == name for row in rows)]
    chart = (
        alt.Chart(named(), width="container", height=max(60, 30 * len({row["pair"] for row in rows})))
        .mark_point(size=85, filled=True, opacity=0.95)
        .encode(
            y=alt.Y(
                "pair:N", sort=None, title=None, axis=alt.Axis(ticks=False, domain=False, grid=True, labelLimit=200)
            ),
            x=alt.X(
                "value:Q", title="Jaccard of the two update masks", scale=alt.Scale(zero=False, nice=True, padding=12)
            ),
            color=alt.Color("series:N", scale=alt.Scale(domain=order, range=list(COLOURS[: len(order)]))),
            shape=alt.Shape(
                "series:N", scale=alt.Scale(domain=order, range=["circle", "diamond", "square"][: len(order)])
            ),
            tooltip=[
                alt.Tooltip("pair:N", title="runs"),
                alt.Tooltip("series:N"),
                alt.Tooltip("told:N", title="Jaccard"),
            ],
        )
    )
    return finished(chart, rows, letters=18, pad=140)


def histogram(consensus: Mapping[str, Any]) -> Spec | None:
    """How many weights no run changed, one run changed, ..., all runs changed."""
    counts = consensus.get("histogram") or consensus.get("times")
    if not isinstance(counts, list) or not counts or not sum(counts):
        return None
    whole = sum(counts)
    rows = [
        {"runs": str(i), "share": c / whole, "told": count(c), "percent": percent(c / whole)}
        for i, c in enumerate(counts)
    ]
    chart = (
        alt.Chart(named(), width="container", height=190)
        .mark_bar(color="var(--accent)", cornerRadiusEnd=1)
        .encode(
            x=alt.X("runs:O", title="changed in this many runs", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title="share of the weights", axis=alt.Axis(format="%", tickCount=5)),
            tooltip=[
                alt.Tooltip("runs:O"),
                alt.Tooltip("told:N", title="weights"),
                alt.Tooltip("percent:N", title="share"),
            ],
        )
    )
    return finished(chart, rows)


STEPS = {
    "density": ("Share of weights changed", "%"),
    "jaccard_end": ("Jaccard with the last step", "~g"),
    "nss_mean": ("NSS, mean", "~g"),
    "angle_max_deg": ("Largest principal angle, degrees", "~g"),
    "relative_delta_norm": ("‖D‖ / ‖W₀‖", "~g"),
    "never": ("Never moved so far", "%"),
    "cancelled": ("Moved, but back again", "%"),
    "effective": ("Moved, and still moved", "%"),
    "linearity_r2": ("Linearity of the path, R²", "~g"),
    "rank1_share": ("Share of the rank-1 part of D", "%"),
    "subspace_end": ("Subspace similarity with the last step", "~g"),
}


def trajectory(steps: Any) -> list[tuple[str, Spec]]:
    """One small chart for every number that the steps of a run carry: (title, specification)."""
    if not isinstance(steps, list) or len(steps) < 2:
        return []
    keys = dict.fromkeys(key for step in steps for key in step)
    drawn = []
    for key in [k for k in STEPS if k in keys] + [k for k in keys if k not in STEPS]:
        rows = [
            {"at": i, "step": str(step.get("label", i)), "value": value}
            for i, step in enumerate(steps)
            if (value := _single(step.get(key))) is not None
        ]
        if len(rows) >= 2:
            drawn.append(
                (STEPS.get(key, (key.replace("_", " "), "~g"))[0], _line(rows, STEPS.get(key, ("", "~g"))[1]))
            )
    return drawn


def _line(rows: list[dict[str, Any]], form: str) -> Spec:
    base = alt.Chart(named(), width="container", height=130).encode(
        x=alt.X("step:N", sort=None, title=None, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("value:Q", title=None, axis=alt.Axis(format=form, tickCount=4), scale=alt.Scale(zero=False)),
        tooltip=[alt.Tooltip("step:N"), alt.Tooltip("value:Q", format=".4~g")],
    )
    return finished(
        alt.layer(base.mark_line(color="var(--accent)"), base.mark_point(color="var(--accent)", size=45)), rows
    )


def _single(value: Any) -> float | None:
    """A plain number; of a number per k, the one at the largest k. Labels and nulls give None."""
    if isinstance(value, Mapping):
        known = {int(k): v for k, v in value.items() if str(k).isdigit() and isinstance(v, int | float)}
        return float(known[max(known)]) if known else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
