"""A study as a folder: page, data and figures, without the folders of this machine."""

import json
import xml.etree.ElementTree as ET

import pytest

from offprincipal.errors import UsageError
from offprincipal.report import page
from offprincipal.report.study import charts, publish
from tests.report.test_claims import ANSWER


def row(arm, rate, test, **others):
    found = {
        "arm": arm, "learning_rate": rate, "seeds": [0, 1, 2], "test": test, "test_range": [test - 0.01, test + 0.01],
        "kl_arm_to_base": 100 * rate, "collapsed": 0, "parameters_trained": 1234, "optimizer_bytes": 5678,
        "seconds_training": 20.0, "chosen": True, "adapter": False, "against": {}, "travel": {"nss_mean": 1e-3},
    }  # fmt: skip
    return found | others


ARMS = {
    "seed": 0,
    "settings": {"preset": "tiny", "rank": 8},
    "points": [{"arm": arm, "learning_rate": 1e-3, "run_seed": 0} for arm in ("dense", "lora")],
    "arms": [
        row("dense", 1e-4, 0.95),
        row("dense", 1e-2, 0.05, chosen=False, collapsed=3),
        row("random-2", 1e-4, 0.93),
        row("lora", 1e-3, 0.94, adapter=True, against={"dense": {"shown": "-1.0 [-2.0, +1.0] no difference"}}),
    ],
}
FULL = ANSWER | {"command": "offprincipal lab claims /home/me/lab", "versions": {"torch": "2"}}


def test_the_folder_holds_page_data_and_figures_and_no_folder_of_this_machine(tmp_path):
    details = "see /home/me/lab"
    files = publish(FULL, details, ARMS, tmp_path / "out", hide={"/home/me/lab": "lab"})
    names = {file.name for file in files}
    assert names >= {"README.md", "claims.md", "claims.json", "arms.json", "rates-masks.svg", "distance-adapters.svg"}
    assert not [file for file in files if "/home/me" in file.read_text()]
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| [A1](claims.md#a1) | RL avoids <principal> weights | cannot tell |" in text
    assert "-1.0 [-2.0, +1.0] no difference" in text
    assert "3 of 6, from 0.01" in text
    assert "all 2 runs of the grid" in text
    assert "![rates-masks](rates-masks.svg)" in text
    assert json.loads((tmp_path / "out" / "arms.json").read_text()) == ARMS
    drawn = ET.fromstring((tmp_path / "out" / "rates-masks.svg").read_text())
    assert {"dense", "random-2"} <= set(drawn.itertext())
    assert "over one laboratory" in text
    assert "beliefs.md" not in text


def test_what_a_person_wrote_beside_it_is_linked_and_kept(tmp_path):
    (tmp_path / "beliefs.md").write_text("ours")
    publish(FULL, "", ARMS, tmp_path, hide={})
    assert "[beliefs.md](beliefs.md)" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "beliefs.md").read_text() == "ours"


def test_without_arms_there_are_claims_alone(tmp_path):
    files = publish(FULL, "", None, tmp_path, hide={})
    assert {file.name for file in files} == {"README.md", "claims.md", "claims.json"}
    assert charts({"arms": []}) == {}


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "EXTRAS", ("no_such_package",))
    with pytest.raises(UsageError, match=r"offprincipal\[report\]"):
        publish(FULL, "", ARMS, tmp_path, hide={})
