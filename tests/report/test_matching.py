"""The matched runs on the published page: two tables, one figure."""

import json
import math

import pytest

from offprincipal.lab.claims.matching import MATCHES, MEASURES
from offprincipal.report import page
from offprincipal.report.matching import chart, section
from offprincipal.report.study import publish
from tests.report.test_claims import ANSWER


def number(mean, low=None, high=None, shown="1"):
    return {"mean": mean, "low": low, "high": high, "labs": 5, "shown": shown}


def pair(algorithm, rate, match, labs=5, **effects):
    every = {key: number(0.1, 0.05, 0.15, f"{key} of {match}") for key in MEASURES} | effects
    if not labs:
        every = dict.fromkeys(MEASURES)
    return {"algorithm": algorithm, "learning_rate": rate, "rlvr_learning_rate": rate, "match": match, "labs": labs,
            "at": None, "effects": every, "by_lab": {}}  # fmt: skip


FOUND = {
    "schema_version": 1,
    "labs": ["seed-0", "seed-1"],
    "ends": [
        {
            "algorithm": name,
            "learning_rate": 1e-4,
            "labs": 2,
            "gain": number(0.1),
            **dict.fromkeys(MEASURES, number(0.5)),
        }
        for name in ("rlvr", "sft")
    ],
    "pairs": [
        *(pair("sft", rate, match) for rate in (1e-4, 3e-4, 1e-3) for match in MATCHES[1:]),
        pair("sft", 3e-4, "learning rate", nss=number(math.log(2), math.log(1.5), math.log(3)), energy=None),
        pair("rlvr-sgd", 0.1, "accuracy", labs=0),
        pair("rlvr-sgd", 0.1, "norm", changed=number(-0.25)),
    ],
    "points": [{"lab": "seed-0"}] * 3,
}


def test_the_section_has_every_course_and_says_what_meets_nowhere():
    text = "\n".join(section(FOUND))
    assert "2 laboratories, one run of each course in each: 2 courses, 3 kept\npoints" in text
    assert "| sft | 0.0003 | learning rate | 5 | accuracy of learning rate |" in text
    assert "| rlvr-sgd | 0.1 | accuracy |" not in text
    assert "Nowhere equal: rlvr-sgd at 0.1 in accuracy." in text
    table = [line for line in section(FOUND) if line.startswith("|")]
    assert {line.count("|") for line in table} == {11, 13}  # two tables, each of one width


def test_the_figure_shows_the_middle_rate_on_plain_scales():
    rows = chart(FOUND)["datasets"]["rows"]
    assert {(row["algorithm"], row["equal"]) for row in rows} == {
        *(("sft", match) for match in MATCHES), ("rlvr-sgd", "norm"),
    }  # fmt: skip
    nss = next(row for row in rows if row["equal"] == "learning rate" and row["measure"].startswith("NSS"))
    assert (nss["mean"], nss["low"], nss["high"], nss["none"]) == pytest.approx((2, 1.5, 3, 1))
    changed = next(row for row in rows if row["algorithm"] == "rlvr-sgd" and row["measure"].startswith("changed"))
    assert (changed["mean"], changed["low"], changed["high"], changed["none"]) == (-25, -25, -25, 0)
    assert not any(row["measure"].startswith("energy") and row["equal"] == "learning rate" for row in rows)


def test_the_folder_holds_data_section_and_figure(tmp_path):
    page.need_extra()
    answer = ANSWER | {"command": "offprincipal lab claims lab", "versions": {"torch": "2"}}
    answer["records"] = [{**record, "group": "Mask alignment", "judged": []} for record in answer["records"]]
    files = publish(answer, "", None, tmp_path, hide={}, matched=FOUND)
    assert {file.name for file in files} == {"README.md", "claims.md", "claims.json", "matched.json", "matched.svg"}
    assert json.loads((tmp_path / "matched.json").read_text()) == FOUND
    assert "![matched](matched.svg)" in (tmp_path / "README.md").read_text()
