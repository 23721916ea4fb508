"""Principal mask and update masks of one matrix on a coarse grid: mean densities of cells, no picked entries."""

from __future__ import annotations

from typing import Any

import altair as alt

from offprincipal.report.charts import Spec, finished, named
from offprincipal.report.palette import SEQUENTIAL
from offprincipal.report.reading import Comparison, Curve
from offprincipal.report.scales import breaks, classes, spread, stepped


def pictures(comparison: Comparison) -> list[dict[str, Any]]:
    """One group per pictured matrix: its name, grid and panels (title, specification), the principal mask first.

    The principal mask is a function of the base alone, so it is drawn once however many runs there are.
    """
    told = {run["label"]: run.get("mask_picture") for run in comparison.runs}
    tensors = list(dict.fromkeys(picture["tensor"] for picture in told.values() if picture))
    if not tensors:
        return []
    found = {(c.tensor, c.name, c.run): c for c in comparison.curves(["mask_update", "mask_principal"], tensors)}
    drawn = []
    for tensor in tensors:
        grids = {label: p for label, p in told.items() if p and p["tensor"] == tensor}
        rows, columns = (int(next(iter(grids.values()))[key]) for key in ("rows", "cols"))
        panels = [("principal mask of the base", curve) for label in grids
                  if (curve := found.get((tensor, "mask_principal", label)))][:1]  # fmt: skip
        panels += [(f"changed by {label}", curve) for label in grids
                   if (curve := found.get((tensor, "mask_update", label)))]  # fmt: skip
        whole = [(title, picture(curve, rows, columns)) for title, curve in panels if len(curve.y) == rows * columns]
        if whole:
            drawn.append({"tensor": tensor, "rows": rows, "cols": columns, "panels": whole})
    return drawn


def picture(curve: Curve, rows: int, columns: int) -> Spec:
    """One mask as a grid of cells in row order, coloured by the share of a cell's entries that the mask holds."""
    values = [round(float(v), 4) for v in curve.y]
    thresholds = breaks(values, "sparsity")
    chart = (
        alt.Chart(named())
        .transform_window(i="row_number()")
        .transform_calculate(r=f"floor((datum.i - 1) / {columns})", c=f"(datum.i - 1) % {columns}", d="datum.data")
        .transform_calculate(**{"class": classes("d", thresholds)})
        .mark_rect()
        .encode(
            x=alt.X("c:O", axis=None, scale=alt.Scale(paddingInner=0)),
            y=alt.Y("r:O", axis=None, scale=alt.Scale(paddingInner=0)),
            color=stepped(spread(SEQUENTIAL, len(thresholds) + 1), [f"{100 * t:g}%" for t in thresholds], length=200),
            tooltip=[alt.Tooltip("r:O", title="row block"), alt.Tooltip("c:O", title="column block"),
                     alt.Tooltip("d:Q", format=".1%", title="density")],
        )
        .properties(width=4 * columns, height=4 * rows)
    )  # fmt: skip
    return finished(chart, values, pad=2, facets=1, cells=columns, aspect=rows / columns)
