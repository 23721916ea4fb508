"""Overlap and Jaccard of mask files: the numbers of a comparison to the last bit, and of literal torch."""

import json

import pytest
import torch

from offprincipal import compare
from offprincipal.errors import InputError
from offprincipal.masksets import build_masks, consensus, overlap, save_masks
from offprincipal.measures import masks, nulls
from offprincipal.measures.seeds import torch_generator
from tests.literal import joint
from tests.tiny import save_checkpoint, tiny_weights

SUFFIXES = ("", "_sd", "_chance", "_matched", "_rounding", "_excess", "_excess_low", "_excess_high", "_excess_z",
            "_rounding_z")  # fmt: skip


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlap")
    base = save_checkpoint(folder / "base", tiny_weights())
    runs = {name: save_checkpoint(folder / name, tiny_weights(delta=5e-5, seed=i)) for i, name in enumerate("ab")}
    summary = compare(base, runs, folder / "compare").summary
    sets = {name: build_masks(base, folder / f"mask-{name}", "update", tuned=run) for name, run in runs.items()}
    sets |= {kind: build_masks(base, folder / f"mask-{kind}", kind) for kind in ("low", "principal", "safe")}
    return base, summary, sets


@pytest.mark.parametrize("run", [0, 1])
@pytest.mark.parametrize("kind", ["low", "principal", "safe"])
def test_numbers_are_those_of_the_comparison(compared, run, kind):
    base, summary, sets = compared
    expected = summary["runs"][run]
    found = overlap(sets[kind], sets[expected["label"]], base=base).summary
    for suffix in SUFFIXES:
        assert found[f"overlap{suffix}"] == expected[f"overlap_{kind}{suffix}"], suffix
    assert found["matrices"] == expected[f"overlap_{kind}_matrices"]


def test_jaccard_is_that_of_the_comparison(compared):
    base, summary, sets = compared
    expected = summary["consensus"]["pairs"][0]
    found = overlap(sets["a"], sets["b"], base=base).summary
    for key in ("jaccard", "jaccard_bernoulli", "jaccard_matched", "jaccard_pooled"):
        assert found[key] == expected[key], key
    assert found["jaccard_excess_z"] == expected["excess_z"]


def test_consensus_is_that_of_the_comparison(compared, checkpoint, tmp_path):
    base, summary, sets = compared
    both = [sets["a"], sets["b"]]
    _, found = consensus(both, 2, tmp_path / "out", base=base)
    assert found["times"] == summary["consensus"]["histogram"]
    assert found["times_matched"] == pytest.approx(summary["consensus"]["histogram_matched"], rel=1e-12)
    _, same = consensus(both, 2, tmp_path / "out", base=base)  # there already: counted, not written
    assert same == found
    with pytest.raises(InputError, match="the values of"):
        consensus(both, 2, tmp_path / "other", base=checkpoint("tuned", delta=1e-2))


def test_rows_equal_literal_counts(compared):
    base, _, sets = compared
    weights, found = tiny_weights(), overlap(sets["principal"], sets["a"], base=base)
    for row in found.rows:
        name = row["tensor"]
        a, b = sets["principal"][name], sets["a"][name]
        total, _, _, _ = joint(weights[name], weights[name], a)
        codes = torch.stack([joint(weights[name], weights[name], mask)[2] for mask in (a, b)])
        expected, variance = nulls.magnitude(total, codes[1]).overlap(codes[0])
        both = int((a & b).sum())
        assert (row["a"], row["b"], row["both"]) == (int(a.sum()), int(b.sum()), both)
        assert row["matched"] == pytest.approx(expected)
        assert row["matched_var"] == pytest.approx(variance)
        assert row["excess_z"] == pytest.approx((both - expected) / variance**0.5)
        assert row["overlap"] == masks.overlap(a, b)
        assert row["overlap_chance"] == 0.5
        assert row["jaccard"] == masks.jaccard(a, b)
        assert row["lift"] == pytest.approx(masks.overlap(a, b) / 0.5)
        assert row["feasible_low"] <= row["overlap"] <= row["feasible_high"]


def test_without_the_base_there_is_only_chance(compared):
    base, _, sets = compared
    with_base, without = overlap(sets["safe"], sets["a"], base=base), overlap(sets["safe"], sets["a"])
    assert not any("matched" in key or "rounding" in key for key in without.summary)
    assert without.summary.items() <= with_base.summary.items()
    assert all(left.items() <= right.items() for left, right in zip(without.rows, with_base.rows, strict=True))
    json.dumps(with_base.summary, allow_nan=False)


def test_independent_masks_overlap_at_chance(tmp_path):
    shapes = {f"w{i}": (200, 300) for i in range(6)}
    a, b = (
        save_masks(tmp_path / side, {n: torch.rand(s, generator=torch_generator(0, side, n)) < p
                                     for n, s in shapes.items()})
        for side, p in (("a", 0.5), ("b", 0.2))
    )  # fmt: skip
    found = overlap(a, b).summary
    assert found["overlap"] == pytest.approx(0.5, abs=0.01)
    assert found["lift"] == pytest.approx(1.0, abs=0.02)
    assert found["jaccard"] == pytest.approx(found["jaccard_bernoulli"], abs=0.01)


def test_a_matrix_without_a_change_is_left_out_of_the_mean(tmp_path):
    full, none = torch.ones(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    a, b = save_masks(tmp_path / "a", {"w": full, "v": full}), save_masks(tmp_path / "b", {"w": full, "v": none})
    found = overlap(a, b)
    assert (found.summary["matrices"], found.summary["overlap"]) == (1, 1.0)
    assert [row["overlap"] for row in found.rows] == [1.0, None]
    with pytest.raises(InputError, match="the second mask is empty, and it is the denominator"):
        overlap(b, save_masks(tmp_path / "none", {"w": none, "v": none}))


def test_another_base_is_refused(compared, checkpoint, tmp_path):
    _, _, sets = compared
    with pytest.raises(InputError, match=r"the values of .* are others than those of"):
        overlap(sets["safe"], sets["a"], base=checkpoint("other", delta=1e-2))
    weights = {name: weight for name, weight in tiny_weights().items() if "up_proj" not in name}
    with pytest.raises(InputError, match="has no tensor"):
        overlap(sets["safe"], sets["a"], base=save_checkpoint(tmp_path / "less", weights))
