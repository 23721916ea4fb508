"""From folders to a scoreboard: what is there is judged, what is missing is named, torn input refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.tiny import CONFIG, save_checkpoint, tiny_weights

from offprincipal.errors import InputError
from offprincipal.lab import claims
from offprincipal.lab.claims import judge_claims
from offprincipal.lab.claims.catalogue import BY_ID, CLAIMS
from offprincipal.lab.claims.record import NOT_RUN, Record
from offprincipal.lab.claims.scoreboard import ORDER, markdown, shown
from offprincipal.lab.claims.verdict import CANNOT_TELL

RUNS = {"sft": 3e-4, "rlvr-1": 6e-5, "rlvr-2": 6e-5}
FAMILIES = ("math", "code")
KEPT = ("embed", "norm", "lm_head", "layers.0.self_attn.q", "layers.0.self_attn.o")


def make_lab(
    folder: Path, seed: int = 0, runs: dict[str, float] = RUNS, preset: str = "micro", words: tuple = KEPT
) -> Path:
    """A laboratory as ``lab run`` leaves one, without the training."""
    folder.mkdir(parents=True)
    (folder / "lab.json").write_text(json.dumps({"schema_version": 1, "seed": seed, "preset": {"name": preset}}))
    config = CONFIG | {"hidden_size": 32}
    save_checkpoint(folder / "base", _wide(0.0, 0, words=words), config)
    for number, (run, delta) in enumerate(runs.items()):
        steps = _wide(delta, 100 * seed + number + 1, torch.float32, words)
        save_checkpoint(folder / run, {name: weight.bfloat16() for name, weight in steps.items()}, config)
        save_checkpoint(folder / run / "master", steps, config)
        (folder / run / "run.json").write_text(json.dumps(_record(number)))
    return folder


def _wide(
    delta: float, seed: int, dtype: torch.dtype = torch.bfloat16, words: tuple = KEPT
) -> dict[str, torch.Tensor]:
    """Two matrices and the rest of the tiny model: quick."""
    weights = tiny_weights(delta=delta, seed=seed, dtype=dtype)
    return {name: weight for name, weight in weights.items() if any(word in name for word in words)}


def _record(number: int) -> dict:
    kl = {family: {"nats": 10.0 + number, "tokens": 1000} for family in FAMILIES}
    right = {family: {"samples": 100, "right": 60 + number} for family in FAMILIES}
    settings = {"rlvr": {"steps": 60, "learning_rate": 2.5e-5, "updates": 1}}
    return {"settings": settings, "kl_arm_to_base": kl, "accuracy_after": right}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    place = tmp_path_factory.mktemp("claims")
    for seed in range(3):
        make_lab(place / "labs" / f"seed-{seed}", seed)
    return place, judge_claims([place / "labs"], place / "out", command="offprincipal lab claims labs")


@pytest.fixture(autouse=True, scope="module")
def quick_numerics():
    """Numeric claims have tests of their own: here they are judged once."""
    kept: dict[str, Record] = {}
    own = claims._one

    def once(id_, judge, evidence):
        if id_[0] not in "PGT" or id_ in {"P6", "P7", "P8", "P9", "G6", "G7", "G8"}:
            return own(id_, judge, evidence)
        if id_ not in kept:
            kept[id_] = own(id_, judge, evidence)
        return kept[id_]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "_one", once)
        yield


def _by_id(answer: dict) -> dict[str, dict]:
    return {record["id"]: record for record in answer["records"]}


def test_every_claim_of_the_catalogue_has_a_record(judged):
    place, answer = judged
    assert answer == json.loads((place / "out" / "claims.json").read_text())
    assert {record["id"] for record in answer["records"]} == set(BY_ID)
    assert sum(answer["counts"].values()) == len(CLAIMS) == 61
    assert [lab["name"] for lab in answer["laboratories"]] == ["seed-0", "seed-1", "seed-2"]
    for record in answer["records"]:
        assert record["command"].startswith("offprincipal ")
        assert record["why"]
        assert record["group"]


def test_random_steps_are_explained_or_not_supported(judged):
    records = _by_id(judged[1])
    for id_ in ("A1", "A3", "A5", "L2", "D6"):
        assert records[id_]["verdict"] not in ("supported", NOT_RUN), id_
    assert records["P6"]["verdict"] == "supported"
    for id_ in ("A1", "L1", "D1", "S1"):
        assert records[id_]["judged"][0]["over"]
        assert records[id_]["negative"]["passed"] is not None
        assert records[id_]["seeds"] == 3


def test_what_is_missing_is_not_run_and_says_what_would(judged):
    records = _by_id(judged[1])
    for id_, words in {
        "F1": "offprincipal lab arms --arms safe,dense",
        "F8": "offprincipal lab arms",
        "I2": "offprincipal lab run --intervene",
        "D7": "offprincipal probe curvature",
        "L4": "--trajectory",
        "L7": "offprincipal lab matched",
        "X1": "offprincipal reproduce",
        "L6": "offprincipal reproduce",
    }.items():
        assert (records[id_]["verdict"], words in records[id_]["command"]) == (NOT_RUN, True), records[id_]


def test_the_scoreboard_begins_with_what_surprises(judged):
    place, answer = judged
    text = (place / "out" / "claims.md").read_text()
    assert text == markdown(answer)
    lines = re.findall(r"^\| \[.*$", text, re.M)
    assert len(lines) == len(CLAIMS)
    verdicts = [record["verdict"] for record in answer["records"]]
    assert verdicts == sorted(verdicts, key=ORDER.index)
    for record in answer["records"]:
        assert f"\n## {record['id']}\n" in text
        assert f"`{record['command']}`" in text


def test_judging_again_resumes_and_gives_the_same_bytes(judged, monkeypatch):
    place, _ = judged
    before = (place / "out" / "claims.json").read_bytes()
    monkeypatch.setattr("offprincipal.lab.claims.evidence.measure", None)  # nothing may be measured again
    judge_claims([place / "labs"], place / "out", command="offprincipal lab claims labs")
    assert (place / "out" / "claims.json").read_bytes() == before


def test_the_effect_that_is_shown_is_the_one_that_decided():
    def effect(verdict, mean):
        found = {"mean": mean, "low": mean - 1, "high": mean + 1, "over": "seeds"}
        return {"verdict": verdict, "estimate": found, "decisive": [], "over": {}}

    control = {"passed": None}
    record = {
        "verdict": "not supported", "leans": None, "seeds": 3, "seeds_needed": None, "positive": control,
        "negative": control, "judged": [effect("cannot tell", 5.0), effect("not supported", -7.0)],
    }  # fmt: skip
    assert shown(record)["effect"] == "-7 [-8, -6]"


def test_one_seed_is_too_few(tmp_path):
    answer = judge_claims([make_lab(tmp_path / "lab")], tmp_path / "out")
    record = _by_id(answer)["A1"]
    assert record["verdict"] == CANNOT_TELL
    assert record["why"].startswith("too few seeds (1 of at least 3)")
    assert record["seeds_needed"] == 3
    assert record["shown"]["verdict"].startswith("cannot tell: too few seeds (leans to ")


def test_an_unfinished_laboratory_is_judged_as_far_as_it_goes(tmp_path):
    lab = make_lab(tmp_path / "lab", runs={"rlvr-1": 6e-5})
    records = _by_id(judge_claims([lab], tmp_path / "out"))
    assert records["A1"]["verdict"] == CANNOT_TELL
    for id_ in ("L1", "D1", "S1", "A4", "G8"):
        assert records[id_]["verdict"] == NOT_RUN, id_
    empty = tmp_path / "empty"
    empty.mkdir()
    records = _by_id(judge_claims([empty], tmp_path / "nothing"))
    assert records["A1"]["verdict"] == NOT_RUN
    assert "offprincipal lab run" in records["A1"]["command"]
    assert records["P1"]["verdict"] == "supported"


def test_laboratories_that_do_not_belong_together_are_refused(tmp_path):
    first = make_lab(tmp_path / "a", runs={})
    with pytest.raises(InputError, match="there is no such folder"):
        judge_claims([tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(InputError, match="have the same seed 0"):
        judge_claims([first, make_lab(tmp_path / "b", runs={})], tmp_path / "out")
    with pytest.raises(InputError, match="give laboratories of one preset"):
        judge_claims([first, make_lab(tmp_path / "c", seed=1, preset="tiny", runs={})], tmp_path / "out")
    (first / "lab.json").write_text("{")
    with pytest.raises(InputError, match="delete its folder and run the same command"):
        judge_claims([first], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_laboratory_in_the_same_folder_is_refused(tmp_path):
    judge_claims([make_lab(tmp_path / "a", runs={"rlvr-1": 6e-5})], tmp_path / "out")
    with pytest.raises(InputError, match="it holds another comparison"):
        judge_claims([make_lab(tmp_path / "b", runs={"rlvr-1": 7e-5})], tmp_path / "out")


@pytest.mark.slow
def test_the_command_line(tmp_path):
    lab = make_lab(tmp_path / "lab")
    command = [sys.executable, "-m", "offprincipal", "lab", "claims", str(lab)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "RL avoids" in done.stdout
    assert "not run, as something is missing" in done.stdout
    assert f"claims: {lab / 'claims' / 'claims.md'}" in done.stderr
    page = ["--publish", str(tmp_path / "page")]
    again = subprocess.run([*command, "--json", "-j", "1", *page], capture_output=True, text=True, timeout=300)
    assert "](effects-A.svg)" in (tmp_path / "page" / "README.md").read_text()
    assert (tmp_path / "page" / "effects-A.svg").is_file()
    assert json.loads(again.stdout) == json.loads((lab / "claims" / "claims.json").read_text())
    missing = subprocess.run([*command[:-1], "nowhere"], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert (missing.returncode, "there is no such folder" in missing.stderr) == (3, True)
