"""Rows to tables: per layer, per kind, per model. Numerators and denominators are added up; division comes last.

Sparsity is weighted by parameter count. Overlaps, spectral shifts and angles are means over the linear matrices,
unweighted, with their spread and a bootstrap interval over matrices (DEFINITIONS section 6).
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa

from offprincipal.measures.excess import z_score
from offprincipal.measures.seeds import numpy_generator
from offprincipal.measures.sizes import GRID

MASKS = ("low", "principal", "principal_high", "safe")
"""The masks that overlaps are reported with, in this order."""

KINDS = (
    *("embed", "position", "q_a", "q_b", "q", "kv_a", "kv_b", "k", "v", "o"),
    *("router", "gate", "up", "down", "norm", "bias", "head", "other"),
)
"""Kinds in the order in which a model uses them."""

RESAMPLES = 1000
"""Bootstrap resamples of a mean over matrices (*ours*)."""

DEFINITIONS = {
    "sparsity_bf16": "1 - changed / counted over every paired floating tensor, both sides rounded to bfloat16; "
    "weighted by parameters. PNT Definition 2.1; +0 and -0 are equal",
    "sparsity_bf16_linear": "the same over 2-D weights inside blocks: no embedding, head, norm or bias",
    "sparsity_native": "the same in the stored dtypes (the eta rule, 1e-3, where they differ)",
    "sparsity_atol_1e-5": "1 - share with |D| > 1e-5, subtracted in the stored dtype: the rule of arXiv 2505.11711",
    "relative_delta_norm": "||D||_F / ||W0||_F over every paired tensor, D = W - W0 in float64",
    "overlap_X": "|A and M| / |M|: share of the changed weights in mask A; unweighted mean over linear matrices",
    "overlap_X_chance": "|A| / n, what independent entries give (N-chance)",
    "overlap_X_matched": "what P(changed | magnitude code) alone gives (N-magnitude), exact; for a mask that is a "
    "function of magnitude, as A = low, it equals the observation by construction",
    "overlap_X_rounding": "what Gaussian steps of one scale leave visible in bfloat16 (N-rounding), the scale matched "
    "to the number of changes, 20 seeded draws",
    "overlap_X_excess": "overlap_X - overlap_X_matched, with a bootstrap interval (95 %) over matrices",
    "overlap_X_excess_z": "sum of observed - expected counts over the root of the summed variance, linear matrices",
    "principal": "M_princ(64, 0.5): the half of each matrix with the largest |rank-64 part of W0|",
    "principal_high": "M_princ without M_low: principal and not small",
    "safe": "M_low united with the complement of M_princ",
    "nss": "||s(W) - s(W0)|| / ||s(W0)||, all singular values, float64",
    "spectral_residual": "||s(W) - s(W0)|| / ||D||_F",
    "kappa_spec": "spectral_residual^2 * max(out, in): about 1 for isotropic noise",
    "angle_max_deg": "largest principal angle between the leading k-dimensional subspaces of W0 and W, either side, "
    "over matrices whose gap at k is open",
    "energy_principal_lift": "||U_k^T D V_k||^2 / ||D||^2 over its expectation for Gaussian noise, k = 64",
    "low": "the half of each matrix with the smallest |W0| (ties by flat index)",
}
"""What the numbers of a summary mean, in words; written into every summary."""


def shares(rows: pa.Table) -> dict[str, Any]:
    """Counts and their ratios over any set of rows: sparsities and norms.

    >>> rows = pa.table({"counted": [4], "changed": [1], "changed_native": [1], "changed_atol": [0],
    ...                  "changed_bitwise": [1], "delta_sq": [4.0], "base_sq": [16.0]})
    >>> shares(rows)["sparsity_bf16"], shares(rows)["relative_delta_norm"]
    (0.75, 0.5)
    """
    total = {name: _sum(rows, name) for name in ("counted", "changed", "changed_native", "changed_atol")}
    bitwise, delta_sq, base_sq = (_sum(rows, name) for name in ("changed_bitwise", "delta_sq", "base_sq"))
    return {
        "counted": total["counted"],
        "changed": total["changed"],
        "sparsity_bf16": _rest(total["changed"], total["counted"]),
        "sparsity_bitwise": _rest(bitwise, total["counted"]),
        "sparsity_native": _rest(total["changed_native"], total["counted"]),
        "sparsity_atol_1e-5": _rest(total["changed_atol"], total["counted"]),
        "delta_norm": math.sqrt(delta_sq),
        "relative_delta_norm": math.sqrt(delta_sq / base_sq) if base_sq else None,
    }


def overlap(rows: pa.Table, mask: str) -> dict[str, Any]:
    """Overlap of the update with one mask beside its three nulls: mean over matrices, spread, interval, z.

    Matrices without a change, or without this measure, are left out and the number of the others is given. Empty when
    no row has the measure. Keys are ``overlap_<mask>`` and the same with ``_sd``, ``_chance``, ``_matched``,
    ``_rounding``, ``_excess``, ``_excess_low``, ``_excess_high``, ``_excess_z``, ``_rounding_z``, ``_matrices``.
    """
    if f"{mask}_ones" not in rows.column_names:
        return {}
    measured = zip(rows[f"{mask}_ones"].to_pylist(), rows["changed"].to_pylist(), strict=True)
    rows = rows.filter(pa.array([ones is not None and changed > 0 for ones, changed in measured], pa.bool_()))
    if not rows.num_rows:
        return {}
    column = {key: _floats(rows, f"{mask}_{key}") for key in ("ones", "changed", "matched", "matched_var", "rounding")}
    rounding_var, changed, counted = (_floats(rows, name) for name in (f"{mask}_rounding_var", "changed", "counted"))
    observed, matched = column["changed"] / changed, column["matched"] / changed
    low, high = bootstrap(observed - matched)
    found, expected = float(column["changed"].sum()), float(column["matched"].sum())
    name = f"overlap_{mask}"
    return {
        name: float(observed.mean()),
        f"{name}_sd": float(observed.std(ddof=1)) if len(observed) > 1 else None,
        f"{name}_chance": float((column["ones"] / counted).mean()),
        f"{name}_matched": float(matched.mean()),
        f"{name}_rounding": float((column["rounding"] / changed).mean()),
        f"{name}_excess": float((observed - matched).mean()),
        f"{name}_excess_low": low,
        f"{name}_excess_high": high,
        f"{name}_excess_z": z_score(found, expected, float(column["matched_var"].sum())),
        f"{name}_rounding_z": z_score(found, float(column["rounding"].sum()), float(rounding_var.sum())),
        f"{name}_matrices": rows.num_rows,
    }


def bootstrap(values: np.ndarray, level: float = 0.95) -> tuple[float | None, float | None]:
    """Percentile interval of the mean over resampled entries; seeded by the values' number, None for fewer than two.

    >>> bootstrap(np.array([1.0, 1.0, 1.0]))
    (1.0, 1.0)
    """
    if len(values) < 2:
        return None, None
    picks = numpy_generator(0, "bootstrap", str(len(values))).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def model(rows: pa.Table) -> dict[str, Any]:
    """The model-level numbers of one run: the keys of a run in ``summary.json``."""
    linear = rows.filter(rows["linear"])
    numbers = shares(rows)
    numbers["sparsity_bf16_linear"] = shares(linear)["sparsity_bf16"]
    numbers["tensors"], numbers["matrices"] = rows.num_rows, linear.num_rows
    numbers["nonfinite_base"], numbers["nonfinite_tuned"] = (
        _sum(rows, name) for name in ("nonfinite_base", "nonfinite_tuned")
    )
    for mask in MASKS:
        numbers.update(overlap(linear, mask))
    return numbers | geometry(linear)


def geometry(rows: pa.Table) -> dict[str, Any]:
    """Spectral and subspace numbers over the matrices that were factored; empty when none was.

    Means over matrices are unweighted. Angles are in degrees, the larger of left and right, at gaps that are open;
    ``angle_max_deg`` is the largest over matrices, ``angle_mean_deg`` the mean. ``energy_principal_lift`` is the share
    of D's energy in both principal subspaces over what Gaussian noise has there, ``_haar`` over D's own spectrum with
    random singular vectors. Matrices that did not change have no residual, kappa or lift.
    """
    factored = [row for row in rows.to_pylist() if row.get("spectrum_base_sq")]
    if not factored:
        return {}
    moved = [row for row in factored if row["delta_sq"] > 0]
    nss = [math.sqrt(row["spectrum_shift_sq"] / row["spectrum_base_sq"]) for row in factored]
    kappa = [
        row["spectrum_shift_sq"] / row["delta_sq"] * max(row["out_features"], row["in_features"]) for row in moved
    ]
    found: dict[str, Any] = {"nss_mean": _mean(nss), "nss_sd": _sd(nss), "nss_max": max(nss)}
    found["spectral_residual_mean"] = _mean([math.sqrt(row["spectrum_shift_sq"] / row["delta_sq"]) for row in moved])
    found["kappa_spec_mean"] = _mean(kappa)
    angles = {k: [_widest(row, k) for row in factored] for k in GRID}
    open_gaps = {str(k): [angle for angle in found if angle is not None] for k, found in angles.items()}
    found["angle_max_deg"] = {k: max(known) for k, known in open_gaps.items() if known}
    found["angle_mean_deg"] = {k: _mean(known) for k, known in open_gaps.items() if known}
    for side, name in (("both", "principal"), ("left", "left"), ("right", "right")):
        lifts = [row for row in moved if row[f"energy_{side}_gauss_mean"]]
        for null, suffix in (("gauss", ""), ("haar", "_haar")):
            share = [row[f"energy_{side}_sq"] / row["delta_sq"] / row[f"energy_{side}_{null}_mean"] for row in lifts]
            found[f"energy_{name}_lift{suffix}"] = _mean(share)
    found["bound_vacuous_share"] = _ratio(factored, "bound_vacuous", "bound_sizes")
    found["delta_stable_rank_mean"] = _mean(
        [row["delta_sq"] / row["delta_s1"] ** 2 for row in moved if row["delta_s1"]]
    )
    return found


def _widest(row: dict[str, Any], k: int) -> float | None:
    """The larger principal angle at k; None where the gap is closed or the matrix is too small."""
    sides = [row[f"angle_{side}_deg_{k}"] for side in ("left", "right")]
    return None if row[f"angle_meaningless_{k}"] or None in sides else max(sides)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _sd(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _ratio(rows: list[dict[str, Any]], part: str, whole: str) -> float | None:
    total = sum(row[whole] or 0 for row in rows)
    return sum(row[part] or 0 for row in rows) / total if total else None


def grouped(rows: pa.Table, by: str) -> list[dict[str, Any]]:
    """The same numbers per value of a column ("kind" or "layer"), null is a group.

    Kinds come in the order in which a block uses them, anything else in order of first appearance.
    """
    values = rows[by].to_pylist()
    order = {name: position for position, name in enumerate(KINDS)}
    seen = sorted(dict.fromkeys(values), key=lambda value: order.get(value, len(order)))  # stable: layers keep theirs
    return [{by: wanted, **model(pick(rows, by, wanted))} for wanted in seen]


def pick(rows: pa.Table, column: str, wanted: Any) -> pa.Table:
    """The rows with this value in this column; None picks the nulls.

    >>> pick(pa.table({"layer": [0, None, 1]}), "layer", None).num_rows
    1
    """
    return rows.filter(pa.array([value == wanted for value in rows[column].to_pylist()], pa.bool_()))


def _sum(rows: pa.Table, name: str) -> Any:
    return sum(rows[name].to_pylist())


def _floats(rows: pa.Table, name: str) -> np.ndarray:
    return rows[name].to_numpy().astype(np.float64)


def _rest(part: float, whole: float) -> float | None:
    return 1 - part / whole if whole else None


def without_nonfinite(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null, at any depth, so that every reader accepts the file.

    >>> without_nonfinite({"a": [math.nan, 1.0]})
    {'a': [None, 1.0]}
    """
    if isinstance(value, dict):
        return {key: without_nonfinite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nonfinite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
