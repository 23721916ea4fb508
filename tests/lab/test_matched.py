"""Courses of other algorithms in the mini world: what each trains, what is kept, resuming, refusals, the table."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from offprincipal.errors import CheckFailed, InputError, UsageError
from offprincipal.lab import courses as module
from offprincipal.lab.claims.matching import MEASURES, shown, study
from offprincipal.lab.courses import (
    ALGORITHMS,
    LADDER,
    SGD_RATE,
    VARIANTS,
    Course,
    courses,
    kept_steps,
    own_answers,
    train_course,
)
from offprincipal.lab.matched import print_matched, run_matched, said, write
from offprincipal.lab.run import open_lab
from offprincipal.lab.settings import PRESETS
from offprincipal.lab.tasks import make_items, verify
from offprincipal.survey import compare

MINI = PRESETS["mini"]


def _silent(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A laboratory with every algorithm; but for SGD at ten times the rate, so that few steps move something."""
    folder = tmp_path_factory.mktemp("matched") / "lab"
    open_lab(folder, MINI, 0, _silent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LADDER", (10.0,))
        run_matched([folder])
    return folder


@pytest.fixture(autouse=True)
def _one_rate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "lab" in request.fixturenames:
        monkeypatch.setattr(module, "LADDER", (10.0,))


def _record(lab: Path, course: Course) -> dict:
    return json.loads((lab / "matched" / course.place / "run.json").read_text())


def _step(lab: Path, course: Course, step: int) -> dict[str, torch.Tensor]:
    return load_file(lab / "matched" / course.place / f"step-{step}" / "master" / "model.safetensors")


def _base(lab: Path) -> dict[str, torch.Tensor]:
    return {name: weight.float() for name, weight in load_file(lab / "base" / "model.safetensors").items()}


def test_every_course_is_there_whole_with_its_points_and_nothing_else(lab: Path) -> None:
    for course in courses(MINI):
        record = _record(lab, course)
        assert (record["algorithm"], record["learning_rate"]) == (course.algorithm, course.learning_rate)
        assert [point["step"] for point in record["points"]] == kept_steps(MINI.rlvr.steps) == [1, 2, 3]
        assert (record["own_answers"] is None) == (course.algorithm != "rejection")
        for point in record["points"]:
            assert point["accuracy_before"] == record["points"][0]["accuracy_before"]
            assert set(point["weights"]) == set(module.WEIGHED)
        place = lab / "matched" / course.place
        assert sorted(each.name for each in place.iterdir()) == ["run.json", "step-1", "step-2", "step-3"]
    assert len({_record(lab, course)["stage_seed"] for course in courses(MINI)}) == 1
    assert {course.algorithm for course in courses(MINI)} == set(ALGORITHMS)


def test_rates_are_a_ladder_over_that_of_rlvr() -> None:
    by = {name: [c.learning_rate for c in courses(MINI) if c.algorithm == name] for name in ALGORITHMS}
    assert by.pop("rlvr-sgd") == pytest.approx([MINI.rlvr.learning_rate * SGD_RATE])
    for name in VARIANTS:
        assert by.pop(name) == pytest.approx([MINI.rlvr.learning_rate * LADDER[0]])
    for rates in by.values():
        assert rates == pytest.approx([MINI.rlvr.learning_rate * step for step in LADDER])


def test_a_course_stored_in_bfloat16_holds_nothing_finer(lab: Path) -> None:
    course = courses(MINI, ("rlvr-bf16",))[0]
    fine = Course("rlvr", course.learning_rate)
    moved = False
    for name, weight in _step(lab, course, 3).items():
        assert torch.equal(weight, weight.bfloat16().float())
        moved |= not torch.equal(weight, _base(lab)[name])
    assert moved
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in _step(lab, fine, 3).values())


def test_sgd_goes_no_further_than_its_clipped_gradients(lab: Path) -> None:
    course = courses(MINI, ("rlvr-sgd",))[0]
    base, after = _base(lab), _step(lab, course, 3)
    norm = sum(float((after[name] - base[name]).square().sum()) for name in base) ** 0.5
    assert 0 < norm <= 3 * course.learning_rate * (1 + 1e-5)


def test_own_answers_are_the_bases_right_ones_each_once(lab: Path) -> None:
    found = own_answers(lab / "base", MINI, 0)
    prompts = {item.prompt for item in make_items(3 * 16, seed=0, split="rlvr-1")}
    assert len(set(found.rows)) == len(found.rows) == found.counts["distinct"] <= found.counts["right"]
    assert all(prompt in prompts and verify(prompt, answer) for prompt, answer in found.rows)
    assert found.counts["sampled"] == 3 * 16 * 4
    assert found.counts["solved"] == len({prompt for prompt, _ in found.rows}) <= found.counts["problems"]
    assert _record(lab, courses(MINI, ("rejection",))[0])["own_answers"] == found.counts


def test_a_base_that_is_never_right_has_nothing_to_teach(tmp_path: Path) -> None:
    micro = open_lab(tmp_path / "lab", "micro", 0, _silent)
    message = r"^cannot train 'rejection' from '.*base': none of 32 answers of the base is right; use a preset whose "
    with pytest.raises(CheckFailed, match=message):
        train_course(Course("rejection", 1e-4), lab=tmp_path / "lab", preset=micro, seed=0)
    assert not (tmp_path / "lab" / "matched" / "rejection" / "lr-0.0001").exists()


def test_trained_again_in_another_process_or_after_a_stop_the_bytes_are_the_same(lab: Path, tmp_path: Path) -> None:
    again = tmp_path / "lab"
    again.mkdir()
    shutil.copytree(lab / "base", again / "base")
    shutil.copy(lab / "lab.json", again)
    for course in (Course("rlvr", 1e-3), Course("sft", 1e-3)):
        torn = again / "matched" / course.algorithm / ".lr-0.001.partial"
        torn.mkdir(parents=True)
        (torn / "run.json").write_text("{")
        train_course(course, lab=again, preset=MINI, seed=0)
        assert not torn.exists()
        for file in sorted((lab / "matched" / course.place).rglob("*.safetensors")):
            assert (again / file.relative_to(lab)).read_bytes() == file.read_bytes()


def test_finished_courses_are_left_alone(lab: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in (lab / "matched").rglob("*")}
    told: list[int] = []
    assert run_matched([lab], progress=lambda stage, done, total: told.append(done)) == [lab.resolve()]
    assert told == []
    assert {file: file.stat().st_mtime_ns for file in (lab / "matched").rglob("*")} == before


def test_refusals(lab: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cannot train matched arms: there is no algorithm 'ppo'; choose from "):
        run_matched([lab], algorithms=("ppo",))
    with pytest.raises(UsageError, match=r"^cannot train matched arms: no algorithm was given; choose from rlvr, "):
        run_matched([lab], algorithms=())
    with pytest.raises(InputError, match=r"there is no laboratory; run offprincipal lab run first$"):
        run_matched([tmp_path])
    (tmp_path / "bare").mkdir()
    shutil.copy(lab / "lab.json", tmp_path / "bare")
    message = r"its base is missing; run offprincipal lab run --preset mini --seed 0 -o .*bare$"
    with pytest.raises(InputError, match=message):
        run_matched([tmp_path / "bare"])
    assert study([tmp_path / "bare"]) is None


def test_the_study_and_its_table(lab: Path, tmp_path: Path) -> None:
    found = study([lab])
    assert found is not None
    assert json.loads(write(found, tmp_path).read_text()) == found
    assert (found["labs"], len(found["ends"]), len(found["points"])) == (["seed-0"], 9, 27)
    for row in found["pairs"]:
        assert row["labs"] == len(row["by_lab"])
        if row["labs"] and row["match"] in MEASURES:
            equal = row["by_lab"]["seed-0"][row["match"]]
            assert equal is None or equal == pytest.approx(0, abs=1e-9)  # it is what was made equal
    ends = {(row["algorithm"], row["learning_rate"]): row for row in found["ends"]}
    assert ends["rlvr-bf16", 1e-3]["changed"]["mean"] < ends["rlvr", 1e-3]["changed"]["mean"]
    text = StringIO()
    print_matched(found, Console(file=text, width=200))
    assert "Beside RLVR at equal" in text.getvalue()
    assert "rlvr-sgd" in text.getvalue()


def test_the_weights_of_a_point_are_what_compare_says_of_them(lab: Path) -> None:
    course = courses(MINI, ("sft",))[0]
    place, point = lab / "matched" / course.place, _record(lab, course)["points"][1]
    (run,) = compare(lab / "base", [place / "step-2" / "master"]).summary["runs"]
    assert point["weights"] == json.loads(json.dumps({name: run[name] for name in module.WEIGHED}))
    assert point["weights"]["relative_delta_norm"] > 0


def test_a_record_of_an_older_version_is_refused(lab: Path, tmp_path: Path) -> None:
    course = courses(MINI, ("sft",))[0]
    old = tmp_path / "old" / "matched" / course.place
    old.mkdir(parents=True)
    shutil.copy(lab / "lab.json", tmp_path / "old")
    (old / "run.json").write_text(json.dumps({**_record(lab, course), "schema_version": 1}))
    message = r"it is of version 1, and this offprincipal writes 2; delete its folder and run offprincipal lab matched"
    with pytest.raises(InputError, match=message):
        study([tmp_path])


def test_a_missing_number_is_a_dash() -> None:
    assert said(None) == "-"
    assert shown({"mean": 0.25, "low": 0.1, "high": 0.4}, "kl", effect=False) == "0.25 [0.1, 0.4]"
    assert shown({"mean": 0.001, "low": -0.001, "high": 0.003}, "overlap") == "+0.10 [-0.10, +0.30]"
