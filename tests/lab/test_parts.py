"""A laboratory that is stopped again and again ends in the bits of one that was not."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from offprincipal.errors import UsageError
from offprincipal.lab import arms, parts
from offprincipal.lab.cell import Cell
from offprincipal.lab.matched import run_matched
from offprincipal.lab.parts import Stopped, check, kept_in, limit, over, until_over
from offprincipal.lab.progress import silent
from offprincipal.lab.run import STAGES, open_lab, run_lab
from offprincipal.lab.settings import PRESETS, Steps

# the base is right now and then, so that the reinforced arms move; otherwise as short as can be
SHORT = dataclasses.replace(PRESETS["mini"], pretrain=Steps(steps=70, batch=64, learning_rate=1e-2))


def _all_weights(out: Path) -> dict[str, bytes]:
    return {stage: (out / stage / "master" / "model.safetensors").read_bytes() for stage in STAGES}


STOPS = {("base", 30), ("sft", 1), ("sft-off", 1), ("rlvr-1", 1), ("rlvr-1", 2), ("rlvr-2", 2)}
"""Stages and steps behind which the time is over, each in a part of its own."""


def test_stopped_in_every_stage_the_bits_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_lab(tmp_path / "whole", SHORT, 1)
    base = load_file(whole.folders["base"] / "model.safetensors")
    moved = load_file(whole.folders["rlvr-1"] / "master" / "model.safetensors")
    assert any(not weight.float().equal(moved[name]) for name, weight in base.items())
    left, now = set(STOPS), []
    monkeypatch.setattr(parts, "over", lambda: bool(now))

    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) in left:
            now.append(left.remove((stage, done)))

    for number in range(len(STOPS)):
        now.clear()
        with pytest.raises(
            Stopped, match=r"^cannot finish [a-z0-9-]+: the 5 minutes are over after step \d+ of \d+; "
        ):
            run_lab(tmp_path / "parts", SHORT, 1, progress=stop, minutes=5.0)
        assert len(left) == len(STOPS) - number - 1
    now.clear()
    run_lab(tmp_path / "parts", SHORT, 1, progress=stop, minutes=5.0)
    assert _all_weights(tmp_path / "parts") == _all_weights(tmp_path / "whole")
    assert sorted(each.name for each in (tmp_path / "parts").iterdir()) == sorted(
        ["held-out.jsonl", "lab.json", *STAGES]
    )


def test_a_torn_state_is_not_taken(tmp_path: Path) -> None:
    for name, state in (("checkpoint-9", True), ("checkpoint-10", True), ("checkpoint-30", False)):
        (tmp_path / name).mkdir()
        if state:
            (tmp_path / name / "trainer_state.json").write_text("{}")
    assert parts._last(tmp_path) == tmp_path / "checkpoint-10"
    assert parts._last(tmp_path / "none") is None


def test_the_clock() -> None:
    with limit(None):
        assert not over()
    with limit(1e-6):
        time.sleep(0.01)
        assert over()
        assert list(until_over([1, 2])) == []
        with limit(None):  # sets no limit, so the outer one holds
            assert over()
        with pytest.raises(Stopped, match=r"^cannot finish x: the 1e-06 minutes are over at y; run the same command"):
            check("x", "at y")
    assert list(until_over([1, 2])) == [1, 2]
    with pytest.raises(UsageError, match=r"^cannot train in parts: 0 minutes were given; give more than 0$"), limit(0):
        pass


def test_a_place_is_kept_when_a_stage_is_stopped_and_gone_when_it_is_done(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(KeyError), kept_in(place):
        raise KeyError
    assert place.exists()
    with kept_in(place):
        pass
    assert not place.exists()


def test_arms_and_courses_begin_no_run_after_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_lab(tmp_path, "micro", 0, silent)
    calls: list[Cell] = []
    monkeypatch.setattr(arms, "train_cell", lambda cell, **given: calls.append(cell))
    monkeypatch.setattr(parts, "over", lambda: bool(calls))  # one run, then the end
    with pytest.raises(Stopped, match=r"^cannot finish the arms: the 5 minutes are over after 1 of 2 runs; "):
        arms.run_arms(tmp_path, "micro", arms=("dense", "lora"), minutes=5.0)
    assert [cell.arm for cell in calls] == ["dense"]
    assert (tmp_path / "arms" / "ranking.json").exists()
    words = r"^cannot finish the matched arms: the 5 minutes are over after 0 of 3 courses; "
    with pytest.raises(Stopped, match=words):
        run_matched([tmp_path], algorithms=("sft",), minutes=5.0)
    assert not (tmp_path / "matched").exists()


def test_on_the_command_line_it_is_a_stop_like_any_other(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "offprincipal", "lab", "run", "--preset", "micro", "-o", str(tmp_path / "lab")]
    done = subprocess.run([*command, "--minutes", "1e-9"], capture_output=True, text=True)
    assert done.returncode == 130
    assert "offprincipal: cannot finish base: the 1e-09 minutes are over before it began; run the same" in done.stderr
    assert "Traceback" not in done.stderr
