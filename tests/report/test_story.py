import dataclasses
import math

import pytest

from offprincipal.report import numbers, story
from offprincipal.report.reading import read
from tests.report.synthetic import write_comparison


def text(run):
    return " ".join(words for _, words in run.paragraphs).replace("\xa0", " ")


def test_each_run_is_told_with_effect_and_null(comparison):
    rl, _, sft = story.stories(comparison)
    assert "in the principal mask (rank 64, the largest 50 % of entries), where chance puts 50.0 %" in text(rl)
    assert "The magnitude of the base weights alone, with no geometry at all, would give" in text(rl)
    assert "95 % interval over 21 matrices" in text(rl)
    assert "z = −" in text(rl)
    assert "Singular values moved by NSS" in text(rl)
    assert "So dense an update can only show an overlap between" in text(sft)


def test_resemblance_of_rl_and_sft(comparison):
    assert [run.verdict for run in story.stories(comparison)] == ["RL-like", "RL-like", "SFT-like"]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.9, 1e-5, 1.0, 1.1), "RL-like"),
        ((0.05, 1e-2, 30.0, 200.0), "SFT-like"),
        ((0.9, 1e-2, 30.0, 200.0), "mixed"),
        ((0.3, 5e-4, 7.0, 10.0), "undecided"),
        ((0.9, math.nan, math.nan, math.nan), "undecided"),
        ((0.9, 5e-4, 7.0, 10.0), "undecided"),
    ],
)
def test_verdicts(values, verdict):
    found, words = story.resemblance(dict(zip(story.SIGNS, values, strict=True)))
    assert found == verdict
    assert "signs" in words


def test_votes_at_the_thresholds():
    sign = story.SIGNS["kappa"]
    assert [sign.vote(v) for v in (3.0, 3.1, 29.9, 30.0, math.nan)] == [
        "RL-like", "between", "between", "SFT-like", "not measured"
    ]  # fmt: skip


BASE = numbers.Overlap("principal", 0.44, 0.5, 0.45, 0.46, -0.01, -50.0, -60.0, -0.012, -0.008, 9, (0.0, 1.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "fewer principal weights than magnitude predicts: a rest that magnitude does not explain"),
        ({"excess": 0.002, "low": 0.001, "high": 0.003}, "more principal weights .* small in size"),
        ({"low": -0.02, "high": 0.001}, "not distinguishable from zero over matrices"),
    ],
)
def test_an_excess_is_judged_by_interval_then_size(changes, words):
    import re

    assert re.search(words, story.judged(dataclasses.replace(BASE, **changes)))


@pytest.mark.parametrize(
    ("observed", "magnitude", "words"),
    [
        (0.44, 0.45, "explains 83\xa0% of the bias"),
        (0.44, 0.43, "more off-principal than observed"),
        (0.44, 0.51, "a bias the other way"),
        (0.5001, 0.5, "there is no bias to explain"),
    ],
)
def test_what_magnitude_explains(observed, magnitude, words):
    changed = dataclasses.replace(BASE, observed=observed, magnitude=magnitude)
    assert words in story._explained(changed, "off-principal")


def test_what_was_not_measured_is_said(tmp_path):
    plain = read(write_comparison(tmp_path, layers=1, hidden=64, geometry=False))
    told = text(story.stories(plain)[0])
    assert "Principal masks were not measured" in told
    assert "Spectra and subspaces were not measured" in told
    names = [name for name, _, _ in story.glance(story.stories(plain))]
    assert "NSS, mean" not in names
    assert "Sparsity, all" in names


def test_an_unchanged_run_says_so(comparison):
    values = dict(story.stories(comparison)[0].values) | {"changed": 0.0, "sparsity": 1.0}
    assert "base and tuned are the same model" in story._amount(values)[0]


def test_numbers_of_the_rows_equal_those_of_the_summary(comparison):
    """Without the summary's numbers the rows give the same ones."""
    for run in comparison.runs:
        rows = comparison.rows_of(run["label"])
        told, own = story.run_values(run, rows), story.run_values({}, rows)
        for key in ("changed", "counted", "sparsity", "relative", "nss", "nss_max", "residual", "kappa"):
            assert own[key] == pytest.approx(told[key]), key
