"""D4 and S2 on planted courses."""

import math

import numpy as np
import pytest

from offprincipal.lab.claims import equal
from offprincipal.lab.claims.record import NotRun
from offprincipal.lab.claims.samples import Evidence
from offprincipal.lab.claims.verdict import judge


def _found(at_accuracy: float, at_norm: float, labs: int = 5) -> dict:
    """Courses of SFT with these logarithms over RLVR, with a little noise, at two learning rates."""
    draw = np.random.default_rng(0)
    names = [f"seed-{n}" for n in range(labs)]
    rows = []
    for match, log in (("accuracy", at_accuracy), ("norm", at_norm)):
        for rate in (1e-5, 3e-5):
            by_lab = {name: {key: log + 0.02 * draw.standard_normal() for key in ("angle", "nss")} for name in names}
            rows.append({"algorithm": "sft", "learning_rate": rate, "match": match, "labs": labs, "by_lab": by_lab})
    return {"labs": names, "pairs": rows}


@pytest.mark.parametrize(
    ("at_accuracy", "at_norm", "verdict"),
    [
        (math.log(5), math.log(4), "supported"),
        (math.log(5), 0.0, "explained by the null"),
        (0.0, 0.0, "not supported"),
    ],
)
def test_d4_finds_what_was_planted(at_accuracy, at_norm, verdict):
    found = _found(at_accuracy, at_norm)
    assert {judge(each).verdict for each in equal.d4(found)} == {verdict}
    assert {judge(each).verdict for each in equal.d4(found, factor=10)} == {"supported"}
    few = equal.d4(_found(at_accuracy, at_norm, labs=2))
    assert {judge(each).verdict for each in few} == {"cannot tell"}


def test_d4_as_a_record():
    found = _found(math.log(5), math.log(4))
    record = dict(equal.CLAIMS)["D4"](Evidence((), matched=found))
    assert (record.verdict, record.seeds, record.positive.passed) == ("supported", 5, True)
    assert record.settings["learning rates"] == [1e-5, 3e-5]


def _points(beyond: float, labs: int = 5) -> dict:
    """RLVR at two rates whose changed share follows the norm, and in the slow run `beyond` besides."""
    draw, rows = np.random.default_rng(0), []
    for lab in range(labs):
        for rate, more in ((1e-5, beyond), (2.6e-5, 0.0)):
            for step in (5, 20, 60):
                norm = rate * step * 1e3
                changed = 0.1 * norm + more + 1e-4 * draw.standard_normal()
                rows.append({"lab": f"seed-{lab}", "algorithm": "rlvr", "learning_rate": rate, "step": step,
                             "norm": norm, "changed": changed})  # fmt: skip
    return {"labs": [f"seed-{lab}" for lab in range(labs)], "points": rows, "pairs": []}


@pytest.mark.parametrize(("beyond", "verdict"), [(0.05, "supported"), (0.0, "explained by the null")])
def test_s2_tells_length_from_distance(beyond, verdict):
    assert {judge(each).verdict for each in equal.s2(_points(beyond))} == {verdict}
    assert {judge(each).verdict for each in equal.s2(_points(beyond), planted=0.05)} == {"supported"}


def test_s2_needs_growth_at_all():
    found = _points(0.0)
    still = {**found, "points": [{**point, "changed": 0.5} for point in found["points"]]}
    record = dict(equal.CLAIMS)["S2"](Evidence((), matched=still))
    assert (record.verdict, record.positive.passed, record.seeds) == ("not supported", True, 5)


@pytest.mark.parametrize("id_", ["D4", "S2"])
def test_without_courses_they_say_what_to_run(id_):
    with pytest.raises(NotRun) as none:
        dict(equal.CLAIMS)[id_](Evidence((), asked="labs"))
    assert none.value.command == "offprincipal lab matched labs"
    only_sft = {"labs": ["seed-0"], "points": [], "pairs": []}
    with pytest.raises(NotRun):
        dict(equal.CLAIMS)[id_](Evidence((), asked="labs", matched=only_sft))
