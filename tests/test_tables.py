"""Reductions by hand: sums first, one division last; unweighted means with their spread."""

import math

import numpy as np
import pyarrow as pa
import pytest

from offprincipal import tables
from offprincipal.schema import SCHEMA


def row(**columns: object) -> dict:
    return {
        "run": "a", "tensor": "t", "kind": "q", "layer": 0, "linear": True, "counted": 100, "changed": 10,
        "changed_bitwise": 10, "changed_native": 10, "changed_atol": 5, "nonfinite_base": 0, "nonfinite_tuned": 0,
        "base_sq": 4.0, "delta_sq": 1.0, "low_ones": 50, "low_changed": 8, "low_matched": 7.0, "low_matched_var": 4.0,
        "low_rounding": 6.0, "low_rounding_var": 1.0, **columns,
    }  # fmt: skip


def table(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def test_sparsity_is_weighted_by_parameters_and_linear_is_apart():
    numbers = tables.model(
        table(row(), row(tensor="e", kind="embed", linear=False, layer=None, counted=900, changed=90))
    )
    assert numbers["sparsity_bf16"] == pytest.approx(1 - 100 / 1000)
    assert numbers["sparsity_bf16_linear"] == pytest.approx(0.9)
    assert (numbers["tensors"], numbers["matrices"]) == (2, 1)


def test_overlap_is_an_unweighted_mean_with_every_null_beside_it():
    found = tables.overlap(table(row(), row(tensor="u", counted=1000, changed=100, low_changed=60, low_ones=500,
                                            low_matched=50.0, low_rounding=55.0)), "low")  # fmt: skip
    assert found["overlap_low"] == pytest.approx((0.8 + 0.6) / 2)
    assert found["overlap_low_matched"] == pytest.approx((0.7 + 0.5) / 2)
    assert found["overlap_low_rounding"] == pytest.approx((0.6 + 0.55) / 2)
    assert found["overlap_low_chance"] == 0.5
    assert found["overlap_low_excess"] == pytest.approx(0.1)
    assert found["overlap_low_excess_z"] == pytest.approx((68 - 57) / math.sqrt(8))
    assert found["overlap_low_rounding_z"] == pytest.approx((68 - 61) / math.sqrt(2))
    assert found["overlap_low_sd"] == pytest.approx(np.std([0.8, 0.6], ddof=1))
    assert found["overlap_low_matrices"] == 2


def test_matrices_without_a_change_or_without_the_measure_are_left_out():
    assert tables.overlap(table(row(changed=0, low_changed=0)), "low") == {}
    assert tables.overlap(table(row(low_ones=None)), "low") == {}
    assert tables.overlap(table(row()), "no_such_mask") == {}


def test_one_matrix_has_no_spread_and_no_interval():
    found = tables.overlap(table(row()), "low")
    assert found["overlap_low_sd"] is None
    assert (found["overlap_low_excess_low"], found["overlap_low_excess_high"]) == (None, None)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = [low <= 1.0 <= high for low, high in (tables.bootstrap(random.normal(1, 1, 30)) for _ in range(300))]
    assert 0.88 < np.mean(hits) < 0.985


def test_groups_come_in_the_order_of_the_model():
    rows = [row(kind=kind, layer=layer) for layer in (0, 1) for kind in ("down", "norm", "q", "weird")]
    assert [group["kind"] for group in tables.grouped(table(*rows), "kind")] == ["q", "down", "norm", "weird"]
    assert [group["layer"] for group in tables.grouped(table(*rows, row(layer=None)), "layer")] == [0, 1, None]


def test_empty_sums():
    numbers = tables.shares(table())
    assert numbers["counted"] == 0
    assert numbers["sparsity_bf16"] is None
    assert numbers["relative_delta_norm"] is None
