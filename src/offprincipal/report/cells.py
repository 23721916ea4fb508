"""What the overview charts draw: layer x kind cells and overlaps over alpha, reduced from the rows."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np

from offprincipal.report import numbers
from offprincipal.report.reading import Comparison
from offprincipal.report.words import percent, plain, points, scientific
from offprincipal.tables import KINDS

SERIES = {"count": "observed", "matched": "magnitude null", "rounding": "rounding null"}


def kind_order(kinds: set[str]) -> list[str]:
    """Kinds in the order in which data flows through a block, unknown ones after them by name.

    >>> kind_order({"down", "q", "mixer"})
    ['q', 'down', 'mixer']
    """
    return [k for k in KINDS if k in kinds] + sorted(kinds - set(KINDS))


def cells(comparison: Comparison) -> list[dict[str, Any]]:
    """One record per (run, layer, kind) of the linear weights: means over the matrices in it (experts), z pooled."""
    rows = comparison.rows
    rows = rows.where((rows.number("linear") > 0) & np.isfinite(rows.number("layer")))
    each = numbers.per_tensor(rows)
    groups: dict[tuple, list[int]] = defaultdict(list)
    for i, key in enumerate(zip(rows.text("run"), rows.number("layer"), rows.text("kind"), strict=True)):
        groups[key].append(i)
    counts = [rows.number(f"principal_{part}") for part in ("changed", "matched", "matched_var")]
    changed, counted, tensors = rows.number("changed"), rows.number("counted"), rows.text("tensor")
    found = []
    for (run, layer, kind), members in groups.items():
        at = {name: column[members] for name, column in each.items()}
        total = float(np.nansum(counted[members]))
        cell = {"run": run, "layer": int(layer), "kind": kind, "matrices": len(members), "tensor": tensors[members[0]],
                "sparsity": 1 - float(np.nansum(changed[members])) / total if total else math.nan,
                "z": numbers.pooled_z(*(column[members] for column in counts))}  # fmt: skip
        for name in ("nss", "angle", "kappa", "principal", "principal_chance", "principal_magnitude",
                     "principal_excess"):  # fmt: skip
            cell[name] = numbers.mean(at[name])
        found.append(_told(cell))
    return found


def _told(cell: dict[str, Any]) -> dict[str, Any]:
    """The words of the tooltip beside the numbers of the colours; NaN becomes null."""
    told = {
        "Sparsity": percent(cell["sparsity"]),
        "In principal": percent(cell["principal"], 2),
        "… chance": percent(cell["principal_chance"], 2),
        "… magnitude null": percent(cell["principal_magnitude"], 2),
        "Excess, points": points(cell["principal_excess"]),
        "z": plain(cell["z"]),
        "NSS": scientific(cell["nss"]),
        "Angle": plain(cell["angle"]) + ("°" if not math.isnan(cell["angle"]) else ""),
        "κ_spec": plain(cell["kappa"]),
    }
    kept = ("run", "layer", "kind", "matrices", "tensor", "sparsity", "z", "nss", "angle")
    return {key: finite(cell[key]) for key in kept} | {f"t{i}": word for i, word in enumerate(told.values())}


TOOLTIPS = (
    "Sparsity",
    "In principal",
    "… chance",
    "… magnitude null",
    "Excess, points",
    "z",
    "NSS",
    "Angle",
    "κ_spec",
)


def over_alpha(comparison: Comparison) -> list[dict[str, Any]]:
    """Overlap over alpha: unweighted means over matrices of (changed inside the mask) / changed, with every null.

    ``share`` is a fraction of the changes, ``bias`` the same minus chance in percentage points. The magnitude null of
    the low-magnitude mask is its observation by construction, so it is left out.
    """
    rows = comparison.rows
    kept = (rows.number("changed") > 0) & (rows.number("linear") > 0)
    changed = {
        (run, tensor): value
        for run, tensor, value in zip(
            rows.text("run")[kept], rows.text("tensor")[kept], rows.number("changed")[kept], strict=True
        )
    }
    names = [f"{mask}_{part}" for mask in ("principal", "low") for part in SERIES]
    totals: dict[tuple, list[float]] = defaultdict(list)
    for curve in comparison.curves(names):
        whole = changed.get((curve.run, curve.tensor))
        if whole is not None:
            for x, y in zip(curve.x.tolist(), curve.y.tolist(), strict=True):
                totals[curve.run, curve.name, round(x, 6)].append(y / whole)
    found = []
    for (run, name, alpha), shares in sorted(totals.items(), key=lambda item: comparison.labels.index(item[0][0])):
        mask, part = name.rsplit("_", 1)
        if (mask, part) == ("low", "matched") or not np.isfinite(shares).any():
            continue
        share = numbers.mean(shares)
        found.append({"run": run, "mask": mask, "alpha": alpha, "share": share, "bias": 100 * (share - alpha),
                      "series": SERIES[part], "matrices": len(shares),
                      "sd": finite(float(np.nanstd(shares)))})  # fmt: skip
    for run, mask, alpha in dict.fromkeys((f["run"], f["mask"], f["alpha"]) for f in found):
        found.append({"run": run, "mask": mask, "alpha": alpha, "share": alpha, "bias": 0.0, "series": "chance"})
    return found


def ulp_shares(comparison: Comparison) -> list[dict[str, Any]]:
    """How far changed weights moved, in steps of the bf16 grid: shares of all changes per run and bin."""
    totals: dict[tuple[str, float], float] = defaultdict(float)
    for curve in comparison.curves(["ulps"]):  # every tensor, also those outside the blocks
        for x, y in zip(curve.x.tolist(), curve.y.tolist(), strict=True):
            totals[curve.run, x] += y
    whole = {run: sum(v for (r, _), v in totals.items() if r == run) for run in comparison.labels}
    edges = sorted({x for _, x in totals})
    return [
        {"run": run, "step": steps(x, edges), "at": x, "share": totals[run, x] / whole[run]}
        for run in comparison.labels
        for x in edges
        if whole[run] and (run, x) in totals
    ]


def steps(lower: float, edges: list[float]) -> str:
    """The bin of a change in ulps, named by its edges; the last one is open.

    >>> steps(1, [1, 2, 4]), steps(2, [1, 2, 4]), steps(4, [1, 2, 4])
    ('1', '2–3', '≥ 4')
    """
    after = [edge for edge in edges if edge > lower]
    if not after:
        return f"≥ {lower:g}"
    return f"{lower:g}" if after[0] == lower + 1 else f"{lower:g}–{after[0] - 1:g}"


def finite(value: Any) -> Any:
    """JSON knows no NaN: null instead.

    >>> finite(float("nan")), finite(2), finite("a")
    (None, 2, 'a')
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value
