"""The rule against scipy, against a literal bootstrap, and at its edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from offprincipal.lab.claims.verdict import (
    CANNOT_TELL,
    EXPLAINED,
    MIN_SEEDS,
    MOST_SEEDS,
    NOT_SUPPORTED,
    SUPPORTED,
    Measured,
    enough,
    estimate,
    judge,
    seeds_needed,
    student,
    together,
)


@given(st.integers(1, 300), st.floats(0.5, 0.999))
def test_students_quantile_is_scipys(freedom, probability):
    assert student(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9, abs=1e-9)


def test_the_bootstrap_variance_is_that_of_resampling():
    generator = np.random.default_rng(0)
    sample = [generator.normal(seed, 1, size=size) for seed, size in enumerate((3, 5, 8, 4))]
    drawn = []
    for _ in range(5000):
        seeds = generator.integers(len(sample), size=len(sample))
        drawn.append(np.mean([generator.choice(sample[s], len(sample[s])).mean() for s in seeds]))
    found = estimate(sample)
    assert found.sd is not None
    widened = math.sqrt(len(sample) / (len(sample) - 1)) * np.std(drawn)
    assert found.sd / math.sqrt(len(sample)) == pytest.approx(widened, rel=0.06)


def test_one_value_per_seed_is_students_interval():
    values = np.array([0.3, 0.9, 0.4, 0.6])
    found = estimate([np.array([x]) for x in values])
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def _seeds(mean: float, sd: float = 0.01, seeds: int = 5) -> list[np.ndarray]:
    return [np.array([mean + sd * x, mean - sd * x]) for x in np.linspace(-1, 1, seeds)]


@pytest.mark.parametrize(
    ("effect", "over", "verdict"),
    [
        (0.5, 0.3, SUPPORTED),
        (0.5, 0.0, EXPLAINED),
        (0.5, -0.3, EXPLAINED),
        (0.0, 0.0, NOT_SUPPORTED),
        (-0.5, 0.3, NOT_SUPPORTED),
    ],
)
def test_the_rule(effect, over, verdict):
    measured = Measured("x", _seeds(effect), {"null": _seeds(over)}, ("null",), 0.05)
    assert judge(measured).verdict == verdict


def test_a_wide_interval_cannot_tell_and_says_how_many_seeds_would():
    judged = judge(Measured("x", [np.array([x]) for x in (-1.0, 0.0, 1.0, 0.4)], least=0.5))
    assert (judged.verdict, judged.open_over) == (CANNOT_TELL, None)
    needed = seeds_needed([judged])
    assert needed is not None
    sd = judged.estimate.sd
    assert needed == enough(sd, 0.5)
    power = stats.nct.sf(stats.t.ppf(0.975, needed - 1), needed - 1, 0.5 / sd * math.sqrt(needed))
    assert power > 0.77
    assert enough(1.0, 1e-6) == MOST_SEEDS


def test_an_effect_that_asks_for_a_sign_alone_names_no_number_of_seeds():
    values = [np.array([x]) for x in (-1.0, 0.0, 1.0, 0.4)]
    assert seeds_needed([judge(Measured("x", values))]) is None
    assert seeds_needed([judge(Measured("x", values[:2]))]) == MIN_SEEDS


def test_few_seeds_decide_nothing_unless_the_truth_is_known():
    sample = _seeds(0.5, seeds=2)[:2]
    assert judge(Measured("x", sample, least=0.1)).verdict == CANNOT_TELL
    assert judge(Measured("x", sample[:1], least=0.1), few=True).verdict == SUPPORTED
    assert seeds_needed([judge(Measured("x", sample[:1], least=0.1))]) == MIN_SEEDS
    assert judge(Measured("x", [], least=0.1)).verdict == CANNOT_TELL


def test_equality_needs_both_sides():
    assert judge(Measured("x", _seeds(0.0), least=0.05, equal=True)).verdict == SUPPORTED
    assert judge(Measured("x", _seeds(0.5), least=0.05, equal=True)).verdict == NOT_SUPPORTED
    assert judge(Measured("x", _seeds(0.04, 0.1), least=0.05, equal=True)).verdict == CANNOT_TELL


def test_a_claim_is_as_good_as_its_worst_effect():
    assert together([SUPPORTED, EXPLAINED, NOT_SUPPORTED]) == NOT_SUPPORTED
    assert together([SUPPORTED, SUPPORTED]) == SUPPORTED


def test_false_positives_of_the_rule_itself_are_rare_with_few_seeds():
    generator = np.random.default_rng(1)
    said = 0
    for _ in range(1000):
        sample = [generator.normal(generator.normal(), 1, size=6) for _ in range(3)]
        said += judge(Measured("x", sample, least=0.0)).verdict == SUPPORTED
    assert said / 1000 < 0.04
