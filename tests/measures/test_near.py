"""Top fractions chosen from rounded scores against the choice from the true ones, ties and crowds included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.measures._near import select_near
from offprincipal.measures.masks import select


def rounded(true: np.ndarray, error: float, seed: int) -> np.ndarray:
    """float32 scores within `error` of the true ones, most of them as far as they may be."""
    noise = np.random.default_rng(seed).choice([-1.0, 1.0, 0.3], len(true))
    return (true + 0.9 * error * noise).astype(np.float32)


@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 5, 300, 6000]),
    st.sampled_from([1e-7, 1e-4, 1e-2, 1.0]),
    st.sampled_from([0.0, 1e-9, 1e-3]),
    st.sampled_from(["normal", "whole", "equal", "zeros"]),
)
@settings(max_examples=120, deadline=None)
def test_the_masks_are_those_of_the_true_scores(seed, entries, error, slack, kind):
    generator = np.random.default_rng(seed)
    true = {
        "normal": generator.standard_normal(entries),
        "whole": generator.integers(-3, 4, entries).astype(np.float64),
        "equal": np.full(entries, 0.5),
        "zeros": np.where(generator.random(entries) < 0.7, 0.0, generator.standard_normal(entries)),
    }[kind]
    sizes = [round(fraction * entries) for fraction in (0.0, 0.05, 0.3, 0.5, 1.0)]
    twin, found = np.zeros(entries, np.uint8), np.full(entries, 64, np.uint8)
    threshold = select(true, sizes, 3, twin)[-1]
    scores = rounded(true, error, seed)
    chosen = select_near(scores, error + 1e-6, slack, sizes, 3, found, lambda where: true[where])
    if chosen is None:
        assert (found == 64).all()
        return
    assert np.array_equal(found, twin | 64)
    assert chosen.threshold == threshold
    assert chosen.ties == int((np.abs(np.abs(true) - threshold) <= slack).sum())


def test_only_entries_near_a_threshold_are_computed_again():
    true = np.random.default_rng(0).standard_normal(200_000)
    asked = []

    def exact(where: np.ndarray) -> np.ndarray:
        asked.append(len(where))
        return true[where]

    levels = np.zeros(len(true), np.uint8)
    assert select_near(rounded(true, 1e-5, 0), 1.1e-5, 0.0, [20_000, 100_000], 0, levels, exact) is not None
    assert sum(asked) < 100


@pytest.mark.parametrize("slack", [0.0, np.inf])
def test_a_crowd_is_left_to_the_exact_choice(slack):
    scores, levels = np.full(100_000, 0.5, np.float32), np.zeros(100_000, np.uint8)
    assert select_near(scores, 1e-6, slack, [50_000], 0, levels, None) is None  # type: ignore[arg-type]
    assert not levels.any()
