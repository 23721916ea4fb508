"""The judge on planted worlds: it finds what was planted and nothing else. The full table: benchmarks/planted.py."""

from collections import Counter

import pytest
from benchmarks.planted import CLAIMS, rates, verdicts

from offprincipal import fanout
from offprincipal.lab.claims import records
from offprincipal.lab.claims.catalogue import BY_ID
from offprincipal.lab.claims.matrix import small_first
from offprincipal.lab.claims.samples import REAL
from offprincipal.lab.claims.verdict import CANNOT_TELL, EXPLAINED, NOT_SUPPORTED, SUPPORTED
from offprincipal.lab.claims.weights import weigh
from offprincipal.lab.claims.worlds import TRUTHS, World, planted_evidence

QUICK = ("nothing", "off the principal weights", "two runs share lines", "SFT turns subspaces")


KINDS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TRUTHS]


@pytest.mark.parametrize("name", KINDS)
def test_each_world_is_judged_as_it_was_made(name):
    truth = TRUTHS[name]
    _, found = verdicts((name, 7), seeds=3)
    for id_ in truth.planted:
        assert found[id_] in (SUPPORTED, CANNOT_TELL), id_
    said = {id_ for id_, verdict in found.items() if verdict == SUPPORTED}
    assert said <= truth.planted | truth.touched


@pytest.mark.slow
def test_false_positives_are_rare_and_plants_are_found():
    counted = rates(17, 4, fanout.engine("processes", 2))  # 204 worlds
    for id_, found in counted.items():
        assert found["false"] <= 0.05 * found["empty"], (id_, found)
        assert found["missed"] <= 0.05 * found["planted"] + 1, (id_, found)
    assert sum((found for found in counted.values()), Counter())["found"] > 0


@pytest.mark.slow
def test_a_whole_world_with_its_controls_makes_every_record():
    evidence = planted_evidence(World(weights=0.6), 3, seeds=4, controls=True)
    found = {record.id: record for record in records(evidence)}
    assert set(found) == set(BY_ID)
    for id_ in CLAIMS:
        assert found[id_].positive.passed is True, (id_, found[id_].positive)
        assert found[id_].negative.passed is True, (id_, found[id_].negative)
    assert {found[id_].verdict for id_ in ("A1", "A3", "A5")} == {SUPPORTED}
    assert found["T1"].verdict == NOT_SUPPORTED


def test_a_control_that_fails_leaves_the_claim_undecided():
    from dataclasses import replace

    claim = CLAIMS["A3"]
    evidence = planted_evidence(World(), 7)
    assert weigh(claim, evidence).verdict == EXPLAINED
    same = (REAL, "nothing, though the control says so")
    blind = weigh(replace(claim, positive=same), evidence)
    assert (blind.verdict, blind.positive.passed) == (CANNOT_TELL, False)
    assert "the planted effect was not found here either" in blind.why
    strong = planted_evidence(World(weights=0.4), 3, seeds=3)
    seen = weigh(replace(claim, negative=same), strong)
    assert (seen.verdict, seen.negative.passed) == (CANNOT_TELL, False)
    assert "the control without the effect shows it too" in seen.why


def test_auc_against_its_definition():
    import torch

    weight = torch.tensor([[1.0, 2.0, 2.0, 4.0]]).bfloat16()
    moved = torch.tensor([[False, True, False, True]])
    pairs = [(a, b) for a in (2, 4) for b in (1, 2)]
    expected = sum((a < b) + (a == b) / 2 for a, b in pairs) / len(pairs)
    assert small_first(weight, moved) == expected
    assert small_first(weight, torch.ones_like(moved)) is None
