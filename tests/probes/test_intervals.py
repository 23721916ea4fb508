"""Coverage and power as promised, measured on draws; quantiles against scipy."""

import math

import numpy as np
import pytest
import scipy.stats

from offprincipal.probes.intervals import contrast, ratio_of_sums, student


@pytest.mark.parametrize("probability", [0.8, 0.9, 0.975])
def test_student_against_scipy(probability):
    for degrees in (1, 2, 3, 4, 7, 15, 100):
        assert student(probability, degrees) == pytest.approx(scipy.stats.t.ppf(probability, degrees), rel=0.01)


def test_ratio_of_sums_weights_by_what_is_below():
    held = ratio_of_sums([1.0, 9.0], [1.0, 3.0], seed=0, name="x")
    assert held.value == 2.5
    assert (held.low, held.high) == (1.0, 3.0)
    assert math.isnan(ratio_of_sums([1.0], [1.0], seed=0, name="x").low)
    assert math.isnan(ratio_of_sums([0.0], [0.0], seed=0, name="x").value)
    assert held == ratio_of_sums([1.0, 9.0], [1.0, 3.0], seed=0, name="x")


def test_ratio_of_sums_covers():
    source, hits = np.random.default_rng(0), 0
    for i in range(200):
        lengths = source.integers(3, 20, 64)
        sums = lengths * source.gamma(2.0, 0.5, 64)  # mean 1 per token, whatever the length
        held = ratio_of_sums(list(sums), list(lengths), seed=i, name="x")
        hits += held.low <= 1 <= held.high
    assert hits >= 180


def world(source, ratio, batches=12, draws=5, random=False):
    """Curvatures with an effect of the batch, and of the random direction, in both."""
    batch, draw = source.gamma(8, 1 / 8, (batches, 1)), source.gamma(20, 1 / 20, (1, draws))
    noise = [source.gamma(10, 1 / 10, (batches, draws)) for _ in range(2)]
    against = batch * draw * noise[0]
    return (ratio * batch * (draw if random else 1) * noise[1][:, : draws if random else 1], against)


@pytest.mark.parametrize("random", [False, True])
def test_a_flat_truth_is_rarely_called_sharp_and_a_detectable_one_often(random):
    source, wrong, right, reach = np.random.default_rng(1), 0, 0, []
    for i in range(200):
        found = contrast(*world(source, 1.0, random=random), seed=i, name="x")
        wrong += found.verdict != "cannot tell"
        reach.append(found.detectable)
    for i in range(200):
        right += (
            contrast(*world(source, float(np.median(reach)), random=random), seed=i, name="x").verdict == "sharper"
        )
    assert wrong <= 16  # 5 % of 200, and what chance allows beyond it
    assert right >= 140  # stated: 80 %


def test_verdicts_and_what_cannot_be_told():
    ones = np.ones((4, 3))
    assert contrast(2 * ones[:, :1], ones, seed=0, name="x").verdict == "sharper"
    assert contrast(ones / 2, ones, seed=0, name="x").verdict == "flatter"
    assert contrast(-ones, ones, seed=0, name="x").verdict == "flatter"  # a saddle, by the plain scale
    for alone in ((ones[:1], ones[:1]), (ones[:, :1], ones[:, :1]), (ones, -ones)):
        found = contrast(*alone, seed=0, name="x")
        assert found.verdict == "cannot tell"
        assert math.isnan(found.detectable)


def test_power_grows_with_the_number_of_batches():
    source = np.random.default_rng(2)
    few, many = (
        np.median([contrast(*world(source, 1.0, n, 12), seed=i, name="x").detectable for i in range(20)])
        for n in (4, 64)
    )
    assert few > many > 1
