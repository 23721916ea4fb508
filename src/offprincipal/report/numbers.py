"""Rows to numbers: what each tensor says, and the unweighted means over matrices with their nulls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from offprincipal import tables
from offprincipal.measures.sizes import GRID
from offprincipal.report.reading import Rows

MASKS = {
    "principal": "principal",
    "principal_high": "principal, not low",
    "low": "low magnitude",
    "safe": "safe",
}


@dataclass(frozen=True)
class Overlap:
    """How much of one run's update lies inside a mask: means over matrices, unweighted, beside the nulls.

    Shares are fractions of the changed weights. ``magnitude`` is what the magnitude of the base weights alone would
    give, ``rounding`` what random signs and bf16 rounding would. ``excess`` = observed - magnitude; ``z`` is that of
    the counts, summed over matrices; ``low``..``high`` is a bootstrap interval (95 %) of the excess over matrices;
    ``feasible`` is what the densities of update and mask leave possible at all.
    """

    mask: str
    observed: float
    chance: float
    magnitude: float
    rounding: float
    excess: float
    z: float
    z_rounding: float
    low: float
    high: float
    matrices: int
    feasible: tuple[float, float]

    @property
    def bias(self) -> float:
        """Observed minus chance: below 0 the update avoids the mask."""
        return self.observed - self.chance

    @property
    def explained(self) -> float:
        """The share of the bias that magnitude alone gives; NaN where there is no bias to speak of."""
        return (self.magnitude - self.chance) / self.bias if abs(self.bias) >= 1e-3 else math.nan


def overlap(linear: pa.Table, rows: Rows, mask: str) -> Overlap | None:
    """The overlap of one mask over the linear matrices of one run that changed at all; None if it was not measured.

    The means, the interval and z are those of `offprincipal.tables`, so that the page says what the summary says.
    """
    found = tables.overlap(linear, mask)
    if not found:
        return None
    name, part = f"overlap_{mask}", overlaps(rows, mask)
    kept = np.isfinite(part["observed"])

    def told(key: str) -> float:
        value = found[f"{name}_{key}"]
        return math.nan if value is None else float(value)

    return Overlap(
        mask, found[name], told("chance"), told("matched"), told("rounding"), told("excess"), told("excess_z"),
        told("rounding_z"), told("excess_low"), told("excess_high"), found[f"{name}_matrices"],
        (mean(part["least"][kept]), mean(part["most"][kept])),
    )  # fmt: skip


def overlaps(rows: Rows, mask: str) -> dict[str, np.ndarray]:
    """Per tensor: observed share, chance, both nulls with their variances, excess over magnitude and its z."""
    changed = np.where((rows.number("changed") > 0) & (rows.number("linear") > 0), rows.number("changed"), np.nan)
    found = {
        "observed": rows.number(f"{mask}_changed") / changed,
        "chance": rows.number(f"{mask}_ones") / rows.number("counted"),
        "magnitude": rows.number(f"{mask}_matched") / changed,
        "magnitude_var": rows.number(f"{mask}_matched_var") / changed**2,
        "rounding": rows.number(f"{mask}_rounding") / changed,
        "rounding_var": rows.number(f"{mask}_rounding_var") / changed**2,
    }
    density = changed / rows.number("counted")
    found["least"] = np.fmax(0.0, (density + found["chance"] - 1) / density)
    found["most"] = np.fmin(1.0, found["chance"] / density)
    found["excess"] = found["observed"] - found["magnitude"]
    found["z"] = divided(found["excess"], np.sqrt(found["magnitude_var"]))
    found["z_rounding"] = divided(found["observed"] - found["rounding"], np.sqrt(found["rounding_var"]))
    return found


def per_tensor(rows: Rows) -> dict[str, np.ndarray]:
    """The numbers of every tensor that the table and the heatmaps show, as columns; NaN where not measured."""
    shift = rows.number("spectrum_shift_sq")
    longest = np.fmax(rows.number("out_features"), rows.number("in_features"))
    principal, low = overlaps(rows, "principal"), overlaps(rows, "low")
    return {
        "sparsity": 1 - divided(rows.number("changed"), rows.number("counted")),
        "relative": np.sqrt(divided(rows.number("delta_sq"), rows.number("base_sq"))),
        "nss": np.sqrt(divided(shift, rows.number("spectrum_base_sq"))),
        "kappa": divided(shift, rows.number("delta_sq")) * longest,
        "angle": angle(rows, headline_k(rows)),
        "principal": principal["observed"], "principal_chance": principal["chance"],
        "principal_magnitude": principal["magnitude"], "principal_excess": principal["excess"],
        "principal_z": principal["z"],
        "low": low["observed"], "low_rounding": low["rounding"], "low_z": low["z_rounding"],
    }  # fmt: skip


def angle(rows: Rows, k: int | None) -> np.ndarray:
    """The larger of the left and right largest angle at k, in degrees; NaN at a closed gap or where k does not fit."""
    if k is None:
        return np.full(rows.length, np.nan)
    larger = np.fmax(rows.number(f"angle_left_deg_{k}"), rows.number(f"angle_right_deg_{k}"))
    return np.where(rows.number(f"angle_meaningless_{k}") > 0, np.nan, larger)


def headline_k(rows: Rows) -> int | None:
    """The largest k of the grid at which at least half of the measured matrices have an angle; None without angles."""
    measured = np.isfinite(rows.number("spectrum_base_sq")) & (rows.number("linear") > 0)
    for k in reversed(GRID):
        has = np.isfinite(rows.number(f"angle_left_deg_{k}")) & measured
        if has.any() and has.sum() * 2 >= measured.sum():
            return k
    return None


def mean(values: np.ndarray | Sequence[float]) -> float:
    """The mean of what is finite; NaN of nothing.

    >>> mean([1.0, float("nan"), 3.0])
    2.0
    """
    array = np.asarray(values, float)
    array = array[np.isfinite(array)]
    return float(array.mean()) if array.size else math.nan


def pooled_z(observed: np.ndarray, expected: np.ndarray, variance: np.ndarray) -> float:
    """Z of several matrices against a null: summed counts over the root of the summed variances; NaN without any."""
    total = float(np.nansum(variance))
    return float(np.nansum(observed - expected)) / math.sqrt(total) if total > 0 else math.nan


def divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """A quotient that is NaN, not an error, where the denominator is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)
