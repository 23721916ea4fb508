"""Where two courses are equal."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from offprincipal.lab.claims import matching
from offprincipal.lab.claims.matching import DIFFERENCES, MATCHES, MEASURES, RATIOS, at_value, effect, meet
from offprincipal.lab.courses import Course

RISING = st.lists(st.floats(0.01, 10), min_size=2, max_size=6, unique=True).map(sorted)


def _course(values: list[float], **others: list[float]) -> list[dict]:
    return [
        {**dict.fromkeys(MEASURES, x), "gain": x, **{name: each[i] for name, each in others.items()}}
        for i, x in enumerate(values)
    ]


@given(RISING, st.floats(0, 1), st.sampled_from(MEASURES))
def test_a_course_at_a_value_has_that_value_and_lies_between_its_neighbours(values, share, key):
    value = values[0] + share * (values[-1] - values[0])
    found = at_value(_course(values), key, value)
    assert found is not None
    assert found[key] == pytest.approx(value, rel=1e-9)
    above = next(x for x in values if x >= value)
    below = max([x for x in values if x <= value], default=values[0])
    for name in MEASURES:  # every measure is the same rising list here: it lies between the same two
        assert below * (1 - 1e-9) <= found[name] <= above * (1 + 1e-9)


@given(RISING, RISING, st.sampled_from(MATCHES[1:]))
def test_two_courses_meet_where_both_are_equal_or_nowhere(own, other, match):
    assume(min(own[-1], other[-1]) >= matching.LEAST_GAIN)
    met = meet(_course(own), _course(other), match)
    reach = min(own[-1], other[-1])
    if reach < max(own[0], other[0]):  # one is past it before its first point
        assert met is None
    else:
        assert met is not None
        assert met[0][match] == pytest.approx(reach)
        assert met[1][match] == pytest.approx(reach)


def test_the_first_crossing_counts_and_a_logarithm_needs_a_positive_start():
    back = _course([1.0, 3.0, 1.0, 5.0], nss=[1.0, 2.0, 9.0, 9.0])
    assert at_value(back, "accuracy", 3.0)["nss"] == 2.0
    assert at_value(_course([0.0, 1.0]), "norm", 0.5) is None
    assert at_value(_course([0.0, 1.0]), "accuracy", 0.5)["accuracy"] == 0.5
    assert at_value(_course([0.0, 1.0]), "accuracy", 0.5)["nss"] is None  # nor is its logarithm known there
    assert at_value(_course([1.0, 2.0]), "norm", 3.0) is None


def test_without_a_gain_of_two_points_there_is_no_equal_accuracy():
    still, gains = _course([0.6, 0.61], gain=[0.0, 0.01]), _course([0.6, 0.8], gain=[0.0, 0.2])
    assert meet(still, gains, "accuracy") is None
    assert meet(still, gains, "norm") is not None
    assert meet(gains, gains, "learning rate") == (gains[-1], gains[-1])


def test_effects_of_what_is_not_there():
    assert effect("nss", None, 1.0) is None
    assert effect("energy", 1.0, 0.0) is None
    assert effect("changed", 0.0, 0.5) == -0.5
    assert set(DIFFERENCES).isdisjoint(RATIOS)


def test_one_laboratory_alone_gives_means_without_ends():
    points = _course([1.0, 2.0])
    found = {"seed-0": {Course("rlvr", 0.1): points, Course("sft", 0.1): points}}
    rows = matching._pairs(Course("sft", 0.1), list(found["seed-0"]), found)
    assert [row["match"] for row in rows] == list(MATCHES)
    assert all(row["effects"]["nss"]["shown"] == "x1.00" and row["effects"]["nss"]["low"] is None for row in rows)
    assert matching._pairs(Course("sft", 0.1), [Course("sft", 0.1)], found) == []
