"""The whole laboratory on the micro preset: folders, records, resuming, refusals, and the same weights again."""

import dataclasses
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from offprincipal.errors import InputError, UsageError
from offprincipal.lab import run as laboratory
from offprincipal.lab.run import STAGES, run_lab
from offprincipal.lab.settings import PRESETS

MICRO = PRESETS["micro"]
ARMS = STAGES[1:]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> laboratory.LabRun:
    return run_lab(tmp_path_factory.mktemp("lab") / "whole", preset="micro", seed=3)


def _weights(out: Path) -> dict[str, bytes]:
    return {stage: (out / stage / "model.safetensors").read_bytes() for stage in STAGES}


@pytest.mark.slow
def test_every_stage_is_a_folder_that_transformers_loads(finished: laboratory.LabRun) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert sorted(path.name for path in finished.out.iterdir()) == sorted(["held-out.jsonl", "lab.json", *STAGES])
    for stage in STAGES:
        model = AutoModelForCausalLM.from_pretrained(finished.folders[stage])
        assert model.dtype == torch.bfloat16
        assert AutoTokenizer.from_pretrained(finished.folders[stage]).eos_token == "<end>"
        stored = load_file(finished.folders[stage] / "model.safetensors")
        master = load_file(finished.folders[stage] / "master" / "model.safetensors")
        assert all(torch.equal(stored[name], weight.to(torch.bfloat16)) for name, weight in master.items())


@pytest.mark.slow
def test_the_record_says_what_was_done_and_measured(finished: laboratory.LabRun) -> None:
    for stage, record in finished.records.items():
        assert record == json.loads((finished.out / stage / "run.json").read_text())
        assert record["settings"] == dataclasses.asdict(MICRO)
        assert (record["seed"], record["stage"]) == (3, stage)
        assert record["versions"]["trl"] == importlib.metadata.version("trl")
        for family in ("math", "code"):
            assert record["accuracy_before"][family]["samples"] == MICRO.judged_prompts * MICRO.judged_samples
            assert record["accuracy_before"][family] == finished.records["base"]["accuracy_after"][family]
            assert record["kl_base_to_arm"][family]["nats"] >= 0
            assert record["kl_arm_to_base"][family]["tokens"] > 0
    assert finished.records["sft"]["kl_base_to_arm"]["math"]["nats"] > 0
    assert finished.records["base"]["kl_base_to_arm"]["math"]["nats"] == 0
    assert len({record["stage_seed"] for record in finished.records.values()}) == len(STAGES)


@pytest.mark.slow
def test_an_arm_without_a_step_is_the_base_bit_for_bit(tmp_path: Path, finished: laboratory.LabRun) -> None:
    """Training starts at the stored base: micro's answers earn no reward, and its reinforced arms do not move."""
    base = load_file(finished.folders["base"] / "model.safetensors")
    unmoved = load_file(finished.folders["rlvr-1"] / "master" / "model.safetensors")
    assert all(torch.equal(unmoved[name], weight.float()) for name, weight in base.items())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_a_stop_changes_nothing(
    tmp_path: Path, finished: laboratory.LabRun
) -> None:
    def stop_in_the_middle(stage: str, done: int, total: int) -> None:
        if stage == "sft-off" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_lab(tmp_path / "again", preset="micro", seed=3, progress=stop_in_the_middle)
    kept = (tmp_path / "again/base/model.safetensors").stat().st_mtime_ns
    assert not (tmp_path / "again/sft-off").exists()
    told = []
    run_lab(tmp_path / "again", preset="micro", seed=3, progress=lambda *step: told.append(step))
    assert {stage for stage, _, _ in told} == {"sft-off", "rlvr-1", "rlvr-2"}
    assert told[0] == ("sft-off", 0, 2)
    assert (tmp_path / "again/base/model.safetensors").stat().st_mtime_ns == kept
    assert _weights(tmp_path / "again") == _weights(finished.out)
    run_lab(tmp_path / "again", preset="micro", seed=3, progress=lambda *step: pytest.fail("nothing was left to do"))


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path, finished: laboratory.LabRun) -> None:
    out = tmp_path / "killed"
    code = f"from offprincipal.lab.run import run_lab; run_lab({str(out)!r}, preset='micro', seed=3)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not (out / ".sft.partial").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    printed, _ = process.communicate()
    assert printed == b""
    assert (out / "base" / "run.json").exists()
    run_lab(out, preset="micro", seed=3)
    assert _weights(out) == _weights(finished.out)
    assert sorted(path.name for path in out.iterdir()) == sorted(["held-out.jsonl", "lab.json", *STAGES])


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"seed": 4}, {"preset": dataclasses.replace(MICRO, corruption=0.3)}])
def test_a_folder_of_another_run_is_refused(change: dict, finished: laboratory.LabRun) -> None:
    message = "cannot run the laboratory in .*: it was made with other settings .preset 'micro', seed 3.; give another"
    with pytest.raises(InputError, match=message):
        run_lab(finished.out, **{"preset": "micro", "seed": 3, **change})


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(InputError, match="the folder holds something else; give an empty or a new folder"):
        run_lab(tmp_path, preset="micro")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["{", "[]", '{"preset": 3}'])
def test_a_broken_mark_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "lab.json").write_text(text)
    with pytest.raises(InputError, match="cannot run the laboratory in"):
        run_lab(tmp_path, preset="micro")


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="give a folder that can be written"):
        run_lab(tmp_path / "file" / "lab", preset="micro")


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no preset 'huge'"):
        run_lab(tmp_path / "lab", preset="huge")
    assert not (tmp_path / "lab").exists()


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    message = (
        r"cannot run the laboratory: transformers is not installed; install the extra: pip install offprincipal\[lab\]"
    )
    with pytest.raises(UsageError, match=message):
        run_lab(tmp_path / "lab", preset="micro")
    assert not (tmp_path / "lab").exists()
