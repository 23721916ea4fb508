import math

import numpy as np
import pytest

from offprincipal.report import numbers
from offprincipal.report.reading import Rows


def test_the_overlap_is_the_one_of_the_summary(comparison):
    for run in comparison.runs:
        found = numbers.overlap(comparison.linear(run["label"]), comparison.rows_of(run["label"]), "principal")
        assert found.observed == pytest.approx(run["overlap_principal"])
        assert found.magnitude == pytest.approx(run["overlap_principal_matched"])
        assert found.z == pytest.approx(run["overlap_principal_excess_z"])
        assert found.matrices == 21
        assert found.low <= found.excess <= found.high


def test_the_overlap_of_one_hand_made_matrix():
    rows = Rows({"changed": np.array([10.0]), "counted": np.array([40.0]), "linear": np.array([1.0]),
                 "principal_changed": np.array([3.0]), "principal_ones": np.array([20.0]),
                 "principal_matched": np.array([4.0]), "principal_matched_var": np.array([0.25])}, 1)  # fmt: skip
    part = numbers.overlaps(rows, "principal")
    assert (part["observed"][0], part["chance"][0], part["magnitude"][0]) == (0.3, 0.5, 0.4)
    assert part["z"][0] == pytest.approx(-2.0)
    assert part["least"][0] == 0.0  # 10 changes fit beside a mask of 20 in 40
    assert part["most"][0] == 1.0


@pytest.mark.parametrize(
    ("observed", "magnitude", "explained"), [(0.4, 0.45, 0.5), (0.4, 0.35, 1.5), (0.4, 0.55, -0.5)]
)
def test_explained_by_magnitude(observed, magnitude, explained):
    found = numbers.Overlap("principal", observed, 0.5, magnitude, 0.5, 0, 0, 0, 0, 0, 1, (0, 1))
    assert found.explained == pytest.approx(explained)


def test_no_bias_has_nothing_to_explain():
    assert math.isnan(numbers.Overlap("principal", 0.5004, 0.5, 0.5, 0.5, 0, 0, 0, 0, 0, 1, (0, 1)).explained)


def test_angles_at_a_closed_gap_are_left_out(comparison):
    k = numbers.headline_k(comparison.rows)
    assert k == 128  # keys and values have 64 rows and hold 32 at most, but five matrices of seven hold 128
    columns = dict(comparison.rows.columns) | {f"angle_meaningless_{k}": np.ones(comparison.rows.length)}
    assert np.isnan(numbers.angle(Rows(columns, comparison.rows.length), k)).all()


def test_z_of_several_matrices_adds_counts():
    z = numbers.pooled_z(np.array([10.0, 20.0]), np.array([12.0, 24.0]), np.array([4.0, 5.0]))
    assert z == pytest.approx(-2.0)
    assert math.isnan(numbers.pooled_z(np.array([1.0]), np.array([1.0]), np.array([0.0])))
