"""A study as a folder: page, data and figures, without the folders of this machine."""

import json
import xml.etree.ElementTree as ET

import pytest

from offprincipal.errors import UsageError
from offprincipal.report import page
from offprincipal.report.arm_charts import LEAST, charts
from offprincipal.report.arms import coverage
from offprincipal.report.effects import coordinates, effects
from offprincipal.report.study import publish
from tests.report.test_claims import ANSWER


def told(mean, low=None, high=None):
    return {"mean": mean, "low": low, "high": high, "seeds": 3}


def row(arm, rate, test, **others):
    kinds = ("all", "problems", "right answers", "wrong answers")
    found = {
        "arm": arm, "learning_rate": rate, "seeds": [0, 1, 2], "test": test, "test_range": [test - 0.01, test + 0.01],
        "test_before": 0.65, "kl_arm_to_base": 100 * rate, "collapsed": 0, "parameters_trained": 1234,
        "optimizer_bytes": 5678, "seconds_training": 20.0, "chosen": True, "adapter": False, "draw": False,
        "edge": None, "against": {}, "travel": {"nss_mean": 1e-3}, "kl_path": None,
        "forgotten": {kind: told(0.01, 0.005, 0.015) for kind in kinds},
    }  # fmt: skip
    return found | others


ARMS = {
    "seed": 0,
    "settings": {"preset": "tiny", "rank": 8},
    "points": [{"arm": arm, "learning_rate": 1e-3, "run_seed": 0} for arm in ("dense", "lora")],
    "arms": [
        row("dense", 1e-4, 0.95),
        row("dense", 1e-2, 0.05, chosen=False, collapsed=3),
        row("random-2", 1e-4, 0.93, draw=True, edge="only"),
        row("lora", 1e-3, 0.94, adapter=True, edge="largest", kl_path=told(0.5, 0.4, 0.6) | {"ahead": -0.3},
            against={"dense": {"shown": "-1.0 [-2.0, +1.0] no difference"}}),
        row("pissa", 1e-3, 1.0, adapter=True, against={"lora": {"shown": "+6.0 [+5.0, +7.0] better"}}),
    ],
    "forgetting": {"texts": 512, "corruption": 0.4, "stages": {"sft": {"all": 0.0142}, "sft-off": {"all": 5.366}}},
    "kl_path_null": {"mean": 0.2, "least": 0.1, "largest": 0.3, "pairs": 3},
    "draws": [
        {"learning_rate": 1e-4, "draws": ["random", "random-2"], "seeds": [0, 1], "sampling": 0.005,
         "over_draws": {"range": 0.012, "sd": 0.0061}, "over_seeds": {"range": 0.01, "sd": 0.0052}},
    ],
}  # fmt: skip


def judged(effect, mean, verdict, *, equal=False, least=0.01, over=None):
    estimate = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "seeds": 5, "over": "seeds"}
    return {
        "effect": effect, "estimate": estimate, "least": least, "equal": equal, "verdict": verdict,
        "decisive": ["magnitude"] if over is not None else [],
        "expected": {"magnitude": 0.2} if over is not None else {},
        "over": {"magnitude": {**estimate, "mean": over}} if over is not None else {},
    }  # fmt: skip


CLAIM = {**ANSWER["records"][0], "group": "Mask alignment", "verdict": "cannot tell"}
CLAIM["judged"] = [judged("overlap |D| minus chance", 0.25, "cannot tell", over=0.05)]
SECOND = {**CLAIM, "id": "A10", "verdict": "supported"}
SECOND["judged"] = [
    judged("ln(one / other)", 1.5, "supported", equal=True),
    judged("the same, elsewhere", 1.0, "supported"),
]
NUMERIC = {**CLAIM, "id": "P1", "group": "Numerics, Gate III", "judged": [], "verdict": "supported"}
NUMERIC["shown"] = {**CLAIM["shown"], "effect": ""}
LISTED = [SECOND, CLAIM, NUMERIC]
FULL = ANSWER | {
    "command": "offprincipal lab claims /home/me/lab", "versions": {"torch": "2"}, "records": LISTED,
}  # fmt: skip
SHARED = {"observed": 0.8, "independent masks": 0.5, "magnitude null": 0.6}
MOVED = {
    "laboratories": 2,
    "rows": [
        {"intervention": name, "block": 1, "kinds": ["q", "k"], "touched": touched, "compared": compared,
         **{series: told(value, low, 0.9) for series, value in SHARED.items()}}
        for name, low in (("permute", 0.7), ("rotate", None)) for touched in (True, False)
        for compared in ("as_is", "mapped_back", "other_seed", "other_problems")
    ],
}  # fmt: skip


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
    assert "all 2 runs of the grid (2 arms, 1 rate, 1 run seed)" in " ".join(text.splitlines())
    assert "![rates-masks](rates-masks.svg)" in text
    assert json.loads((tmp_path / "out" / "arms.json").read_text()) == ARMS
    drawn = ET.fromstring((tmp_path / "out" / "rates-masks.svg").read_text())
    assert {"dense", "random, other draws", "the base"} <= set(drawn.itertext())
    assert "over one laboratory" in text
    assert "beliefs.md" not in text


def test_what_a_person_wrote_beside_it_is_linked_and_kept(tmp_path):
    (tmp_path / "beliefs.md").write_text("ours")
    publish(FULL, "", ARMS, tmp_path, hide={})
    assert "[beliefs.md](beliefs.md)" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "beliefs.md").read_text() == "ours"


def test_without_arms_there_are_claims_alone(tmp_path):
    files = publish(ANSWER | FULL | {"records": [NUMERIC]}, "", None, tmp_path, hide={})
    assert {file.name for file in files} == {"README.md", "claims.md", "claims.json"}
    assert "## The effects" not in (tmp_path / "README.md").read_text()


def test_the_tables_tell_gains_ways_and_what_was_forgotten(tmp_path):
    publish(FULL, "", ARMS, tmp_path, hide={})
    lines = (tmp_path / "README.md").read_text().splitlines()
    gains = {line.split(" | ")[0]: line for line in lines if line.startswith(("| lora", "| pissa", "| random-2"))}
    assert "| lora | 0.001 ↑ | 3 | 94.0 [93.0, 95.0] | -1.0 [-2.0, +1.0] no difference | - | 0 of 3 |" in lines
    assert any(line.startswith("| pissa | 0.001 | 3 ") and "+6.0 [+5.0, +7.0] better" in line for line in lines)
    assert any(line.startswith("| random-2 | 0.0001 (only) |") for line in lines)
    assert "0.50 [0.40, 0.60], -0.30" in gains["| lora"]
    assert "+0.01 [+0.005, +0.015] | +0.01 | +0.01 | +0.01" in gains["| lora"]
    text = " ".join(lines)
    assert "a better rate may lie beyond: random-2 (only, 0.0001), lora (largest, 0.001)." in text
    assert "its null: dense runs of different seeds, 0.20 [0.10, 0.30] over 3 pairs." in text
    assert "For scale, all text: sft +0.0142, sft-off +5.37." in text
    assert "2 at rate 0.0001, run seeds 0, 1. At an equal run seed their test accuracies range over 1.2 points" in text
    assert (
        "run seeds of one draw over 1.0 points (sd 0.52). Sampling the answers alone gives an sd of at most 0.50."
        in text
    )


def test_what_is_not_there_is_not_told(tmp_path):
    bare = ARMS | {"draws": [], "kl_path_null": None, "arms": [row("dense", 1e-4, 0.95)]}
    bare |= {"forgetting": ARMS["forgetting"] | {"stages": {}}}
    publish(FULL, "", bare, tmp_path, hide={})
    text = " ".join((tmp_path / "README.md").read_text().splitlines())
    assert "No arm is best at an edge of its own grid." in text
    assert "its null: no two dense runs." in text
    assert "Draws of the random mask" not in text
    assert "For scale" not in text
    alone = ARMS["draws"][0] | {"over_seeds": None}
    publish(FULL, "", bare | {"draws": [alone]}, tmp_path, hide={})
    text = " ".join((tmp_path / "README.md").read_text().splitlines())
    assert "run seeds of one draw over nothing that can be told" in text


def point(arm, rate, seed):
    return {"arm": arm, "learning_rate": rate, "run_seed": seed}


def test_the_grid_is_what_most_arms_share_and_the_rest_lies_beside_it():
    grid = [point(arm, rate, seed) for arm in ("a", "b", "c") for rate in (1e-3, 1e-2) for seed in (0, 1)]
    assert coverage(grid) == "all 12 runs of the grid (3 arms, 2 rates, 2 run seeds)"
    more = [*grid, point("a", 2e-2, 0), point("a", 2e-2, 1), point("random-2", 1e-3, 0)]
    assert coverage(more, {"random-2"}) == (
        "all 12 runs of the grid (3 arms, 2 rates, 2 run seeds); beside it a at 0.02 (2), random-2 at 0.001 (1)"
    )
    assert coverage(more[1:], {"random-2"}).startswith("11 of the 12 runs of the grid (3 arms, 2 rates; seed 0: 5, ")
    assert coverage([point("dense", 1e-4, 0), point("lora", 1e-3, 0)]) == "2 runs, each arm at one rate"
    assert coverage([point("dense", 1e-4, 0)]) == "all 1 runs of the grid (1 arm, 1 rate, 1 run seed)"


def test_every_effect_is_a_point_with_its_interval_null_and_verdict_in_the_picture_of_its_group(tmp_path):
    publish(FULL, "", None, tmp_path, hide={}, moved=MOVED)
    text = (tmp_path / "README.md").read_text()
    assert (
        "| [A1](claims.md#a1) | RL avoids <principal> weights | cannot tell | [0.1 [0, 0.2]](effects-A.svg) |" in text
    )
    assert "| [P1](claims.md#p1) | RL avoids <principal> weights | cannot tell |  |" in text
    assert "![effects-A](effects-A.svg)" in text
    assert "effects-P" not in text
    rows = effects(LISTED)["effects-A"]["datasets"]["rows"]
    marks = [(each["row"].split("|", 1)[1], each["mark"], each["value"]) for each in rows]
    assert marks == [
        ("A1  overlap |D| minus chance", "effect", 0.25),
        ("A1  overlap |D| minus chance", "what a null alone gives", 0.2),
        ("A1  overlap |D| minus chance", "least that counts", 0.01),
        ("beyond magnitude", "beyond the null that decides", 0.05),
        ("A10  ln(one / other)", "effect", 1.5),
        ("A10  ln(one / other)", "least that counts", 0.01),
        ("A10  ln(one / other)", "least that counts", -0.01),
        ("A10  the same, elsewhere", "effect", 1.0),
        ("A10  the same, elsewhere", "least that counts", 0.01),
    ]
    assert [each["unit"] for each in rows] == ["difference"] * 4 + ["logarithm"] * 5
    drawn = ET.fromstring((tmp_path / "effects-A.svg").read_text())
    words = set(drawn.itertext())
    assert {"Mask alignment", "A1  overlap |D| minus chance", "beyond magnitude", "0.25 [0.15, 0.35]"} <= words
    assert drawn.find(".//{*}rect").get("fill") == "white"  # legible on a dark page too


def test_a_failed_control_gives_its_colour_and_nothing_that_was_not_measured_is_drawn():
    failed = {**SECOND, "verdict": "cannot tell"}
    assert {each["verdict"] for each in effects([failed])["effects-A"]["datasets"]["rows"]} == {"cannot tell"}
    empty = judged("ln(a / b)", 1.0, "cannot tell", least=0.0)
    empty["estimate"] = {"mean": None, "low": None, "high": None}
    alone = judged("ln(c / d)", 1.0, "cannot tell", least=0.0)
    alone["estimate"] |= {"low": None, "high": None, "over": "matrices"}
    rows = effects([{**CLAIM, "judged": [empty, alone]}])["effects-A"]["datasets"]["rows"]
    assert [(each["mark"], each["told"]) for each in rows] == [("effect", "1, one seed")]
    assert effects([NUMERIC]) == {}


def test_interventions_are_drawn_with_both_nulls_and_their_numbers_lie_beside(tmp_path):
    files = {file.name for file in publish(FULL, "", None, tmp_path, hide={}, moved=MOVED)}
    assert {"interventions.json", "interventions.svg"} <= files
    assert json.loads((tmp_path / "interventions.json").read_text()) == MOVED
    text = " ".join((tmp_path / "README.md").read_text().splitlines())
    assert "## The same run in other coordinates" in text
    assert "2 laboratories" in text
    assert "![interventions](interventions.svg)" in text
    words = set(ET.fromstring((tmp_path / "interventions.svg").read_text()).itertext())
    assert {
        "permute: q, k of block 1",
        "changed matrices, mapped back",
        "magnitude null",
        "independent masks",
    } <= words
    rows = coordinates(MOVED)["datasets"]["rows"]
    assert len(rows) == 2 * 5 * 3
    assert {row["low"] for row in rows if row["series"] != "observed"} == {None}


def test_nothing_is_cut_off_and_full_marks_have_a_place():
    rows = charts(ARMS)["rates-adapters"]["datasets"]["rows"]
    assert {each["arm"]: (each["wrong"], each["least"]) for each in rows}["pissa"] == (LEAST, LEAST)
    assert charts({"arms": []}) == {}


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "EXTRAS", ("no_such_package",))
    with pytest.raises(UsageError, match=r"offprincipal\[report\]"):
        publish(FULL, "", ARMS, tmp_path, hide={})
