import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offprincipal.report import scales

positive = st.floats(1e-9, 1e6)


@given(st.lists(positive, min_size=1, max_size=30), st.sampled_from(["sparsity", "nss", "angle", "z"]))
def test_thresholds_are_few_and_rising(values, metric):
    found = scales.breaks(values, metric)
    assert 1 <= len(found) <= 9
    assert found == sorted(set(found))
    assert all(math.isfinite(threshold) for threshold in found)


def test_one_value_still_has_a_threshold():
    assert scales.breaks([0.5], "sparsity")
    assert scales.breaks([0.0], "nss")


def test_crowded_labels_are_thinned():
    crowded = scales.stepped(["a"] * 9, ["10 %%%%"] * 8).to_dict()["legend"]["labelExpr"]
    assert crowded.startswith('["10 %%%%", "", "10 %%%%"')


@pytest.mark.parametrize("wanted", [1, 2, 7, 10])
def test_a_ramp_keeps_its_ends(wanted):
    found = scales.spread(list("abcdefghij"), wanted)
    assert len(found) == wanted
    assert found[0] == "a"
    assert wanted == 1 or found[-1] == "j"
