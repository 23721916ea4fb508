"""The claims without a checkpoint: verdicts, the errata of the paper, and checks that can fail."""

import pytest
import torch

from offprincipal.lab.claims import bounds, leash, numerics
from offprincipal.lab.claims.samples import Evidence, Seed
from offprincipal.lab.claims.verdict import NOT_SUPPORTED, SUPPORTED

EVIDENCE = Evidence(())
JUDGES = dict([*numerics.CLAIMS, *bounds.CLAIMS, *leash.numeric()])
ERRATA = {"P2", "T1", "G5"}


@pytest.fixture(scope="module")
def found():
    return {id_: judge(EVIDENCE) for id_, judge in JUDGES.items()}


@pytest.mark.parametrize("id_", JUDGES)
def test_what_holds_holds_and_the_errata_do_not(found, id_):
    assert found[id_].verdict == (NOT_SUPPORTED if id_ in ERRATA else SUPPORTED)
    assert found[id_].negative.passed is True  # a false statement beside it is caught


def test_the_known_counts_of_bfloat16(found):
    assert (found["P2"].numbers["equal"], found["P2"].numbers["pairs"], found["P2"].numbers["below"]) == (
        253,
        32511,
        0,
    )
    assert found["P3"].numbers == {"values": 32511, "outside": 0}
    assert found["P1"].numbers["mismatches"] == 0


@pytest.mark.parametrize(("size", "sine"), [(0.1, 0.1005), (0.3, 0.316), (0.4, 0.447), (0.45, 0.531), (0.49, 0.633)])
def test_the_counterexamples_to_constant_one(size, sine):
    base, delta = bounds._turn(size)
    assert float(torch.linalg.matrix_norm(delta, 2)) == pytest.approx(size)
    left, right = (torch.linalg.svd(m)[0][:, :1] for m in (base, base + delta))
    assert bounds._sine(left, right) == pytest.approx(sine, abs=5e-4)


def test_the_corrected_bounds_hold(found):
    numbers = found["T1"].numbers
    assert numbers["broken"] == 48
    assert numbers["broken with gap - ||D||"] == numbers["broken with 2"] == 0


def test_one_update_per_rollout_is_said(found):
    record = {"settings": {"rlvr": {"updates": 1}}}
    told = leash.g5(Evidence((Seed("a", (), {"rlvr-1": record}),)))
    assert "its clipping never acts" in told.why
    assert "its clipping never acts" not in found["G5"].why


def test_a_full_table_projects_onto_the_tilt():
    new, tilt = leash._projected(0, 10.0, 8)
    assert new == pytest.approx(tilt, rel=1e-9)
