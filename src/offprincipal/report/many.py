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
    """How many weights no run changed, one run changed, ..., all runs changed, beside the magnitude null."""
    columns = {"observed": consensus.get("histogram"), "magnitude null": consensus.get("histogram_matched")}
    shown = {name: counts for name, counts in columns.items() if isinstance(counts, list) and sum(counts)}
    if "observed" not in shown:
        return None
    rows = [
        {
            "runs": str(i),
            "series": name,
            "share": c / sum(counts),
            "told": count(c),
            "percent": percent(c / sum(counts)),
        }
        for name, counts in shown.items()
        for i, c in enumerate(counts)
    ]
    chart = (
        alt.Chart(named(), width="container", height=190)
        .mark_bar(cornerRadiusEnd=1)
        .encode(
            x=alt.X("runs:O", title="changed in this many runs", axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("series:N", sort=list(shown)),
            y=alt.Y("share:Q", title="share of the weights", axis=alt.Axis(format="%", tickCount=5)),
            color=alt.Color("series:N", scale=alt.Scale(domain=list(shown), range=list(COLOURS[: len(shown)]))),
            tooltip=[alt.Tooltip("runs:O"), alt.Tooltip("series:N"), alt.Tooltip("told:N", title="weights"),
                     alt.Tooltip("percent:N", title="share")],
        )
    )  # fmt: skip
    return finished(chart, rows, letters=14)


STEPS = {
    "density": ("Share of weights changed", "%"),
    "changed_since_previous": ("Share changed since the step before", "%"),
    "relative_delta_norm": ("‖D‖ / ‖W₀‖", "~g"),
    "jaccard_end": ("Jaccard with the last step", "~g"),
    "subspace_end": ("Subspace of D, similarity with the last step", "~g"),
    "rank1_share": ("Share of the rank-1 part of D", "%"),
    "nss_mean": ("NSS, mean", "~g"),
    "angle_max_deg": ("Largest principal angle, degrees", "~g"),
}
NULLS = {
    "matched": "magnitude null",
    "chance": "chance",
    "gauss": "N-gauss",
}  # endings of the columns that hold a null
PATH = {
    "never": "never moved, share of the weights",
    "cancelled": "moved, but back again at the end",
    "effective": "moved, and still moved at the end",
    "linearity_r2": "linearity of the path, R²",
    "linearity_r2_random_walk": "… of a random walk with as many steps",
    "straight_share": "weights that moved in one direction only, share of those that moved",
}


def path(found: Any) -> list[tuple[str, str]]:
    """The numbers of the whole path in words: (name, value)."""
    if not isinstance(found, Mapping):
        return []
    known = [(name, found[key]) for key, name in PATH.items() if isinstance(found.get(key), int | float)]
    return [(name, plain(value) if "R²" in name or "walk" in name else percent(value)) for name, value in known]


def trajectory(steps: Any) -> list[tuple[str, Spec]]:
    """One small chart for every number that the steps of a run carry, beside its null: (title, specification)."""
    if not isinstance(steps, list) or len(steps) < 2:
        return []
    nulls = {f"{key}_{end}": (key, name) for key in STEPS for end, name in NULLS.items()}
    keys = dict.fromkeys(key for step in steps for key in step if key not in nulls and key not in ("label", "step"))
    drawn = []
    for key in [k for k in STEPS if k in keys] + [k for k in keys if k not in STEPS]:
        title, form = STEPS.get(key, (key.replace("_", " "), "~g"))
        series = {key: "observed"} | {null: name for null, (of, name) in nulls.items() if of == key}
        rows = [
            {"step": str(step.get("label", i)), "series": name, "value": value}
            for column, name in series.items()
            for i, step in enumerate(steps)
            if (value := _single(step.get(column))) is not None
        ]
        if sum(row["series"] == "observed" for row in rows) >= 2:
            drawn.append((title, _line(rows, form, [str(step.get("label", i)) for i, step in enumerate(steps)])))
    return drawn


def _line(rows: list[dict[str, Any]], form: str, order: Sequence[str]) -> Spec:
    names = list(dict.fromkeys(row["series"] for row in rows))
    legend = alt.Legend(symbolType="stroke", symbolSize=220, symbolStrokeWidth=2.5) if len(names) > 1 else None
    colours = ["var(--accent)"] + ["var(--warm)" if name == "magnitude null" else "var(--faint)" for name in names[1:]]
    base = alt.Chart().encode(
        x=alt.X("step:N", sort=list(order), title=None, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("value:Q", title=None, axis=alt.Axis(format=form, tickCount=4), scale=alt.Scale(zero=False)),
        color=alt.Color("series:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
        tooltip=[alt.Tooltip("step:N"), alt.Tooltip("series:N"), alt.Tooltip("value:Q", format=".4~g")],
    )
    layers = alt.layer(base.mark_line(), base.mark_point(size=45), data=named()).properties(
        width="container", height=130
    )
    return finished(layers, rows, letters=14)


def _single(value: Any) -> float | None:
    """A plain number; of a number per k, the one at the largest k. Labels and nulls give None."""
    if isinstance(value, Mapping):
        known = {int(k): v for k, v in value.items() if str(k).isdigit() and isinstance(v, int | float)}
        return float(known[max(known)]) if known else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
