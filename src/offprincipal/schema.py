"""The columns that a comparison writes, as Arrow schemas: numerators and denominators, never only a ratio."""

import pyarrow as pa

from offprincipal.measures.sizes import GRID


def _fields(kind: pa.DataType, names: str) -> list[pa.Field]:
    return [pa.field(name, kind) for name in names.split()]


def _mask_fields(mask: str) -> list[pa.Field]:
    counted = _fields(pa.int64(), f"{mask}_ones {mask}_changed")
    expected = f"{mask}_matched {mask}_matched_var {mask}_rounding {mask}_rounding_var"
    return counted + _fields(pa.float64(), expected)


def _each_rank(kind: pa.DataType, names: str) -> list[pa.Field]:
    return [pa.field(f"{name}_{k}", kind) for name in names.split() for k in GRID]


def _energy_fields() -> list[pa.Field]:
    nulls_of = "{0}_sq {0}_gauss_mean {0}_gauss_sd {0}_haar_mean {0}_haar_sd"
    sides = (f"energy_{side}" for side in ("left", "right", "both"))
    return [each for side in sides for each in _fields(pa.float64(), nulls_of.format(side))]


SCHEMA = pa.schema(
    [
        *_fields(pa.string(), "run tensor kind"),
        *_fields(pa.int32(), "layer expert"),
        *_fields(pa.bool_(), "linear"),
        *_fields(pa.int64(), "out_features in_features"),
        *_fields(pa.string(), "base_dtype tuned_dtype"),
        *_fields(pa.int64(), "counted changed changed_bitwise changed_native changed_atol"),
        *_fields(pa.int64(), "nonfinite_base nonfinite_tuned"),
        *_fields(pa.float64(), "base_sq delta_sq delta_abs_sum delta_abs_max"),
        *_fields(pa.float64(), "low_alpha"),
        *_mask_fields("low"),
        *_fields(pa.float64(), "rounding_scale"),
        *_fields(pa.string(), "base_xxh3 tuned_xxh3"),
        *_fields(pa.int64(), "geometry_holes"),
        *_fields(pa.float64(), "spectrum_base_sq spectrum_shift_sq base_s1 tuned_s1 delta_s1 base_stable_rank"),
        *_fields(pa.float64(), "delta_entropy_rank"),
        *_fields(pa.int32(), "delta_rank_1e6 delta_rank_99"),
        *_each_rank(pa.float64(), "ky_fan angle_left_deg angle_right_deg angle_gap"),
        *_each_rank(pa.bool_(), "angle_meaningless"),
        *_fields(pa.int32(), "bound_sizes bound_vacuous energy_rank"),
        *_energy_fields(),
        *_fields(pa.int32(), "principal_rank"),
        *_fields(pa.float64(), "principal_alpha"),
        *(each for mask in ("principal", "principal_high", "safe") for each in _mask_fields(mask)),
        *_fields(pa.int64(), "principal_ties principal_high_ties safe_ties"),
        *_fields(pa.float64(), "principal_abs_sum principal_abs_matched"),
    ]
)
"""Columns of ``tensors.parquet``."""

CURVES = pa.schema([*_fields(pa.string(), "run tensor curve"), *_fields(pa.float64(), "x y")])
"""Columns of ``curves.parquet``, long form."""
