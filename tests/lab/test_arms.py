"""Arms of the laboratory in its mini world: folders, records, resuming, refusals, and what was trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from offprincipal.errors import CheckFailed, InputError, UsageError
from offprincipal.lab import arms, kinds
from offprincipal.lab.arms import Cell, run_arms
from offprincipal.lab.kinds import ADAPTERS, ARMS, MASKS
from offprincipal.lab.travel import KEYS, study
from offprincipal.masksets import MaskSet


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arms") / "lab"


@pytest.fixture(scope="module")
def finished(lab: Path) -> arms.ArmsRun:
    return run_arms(lab, "mini", rank=2)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "master" / "model.safetensors")


def _of(finished: arms.ArmsRun, arm: str) -> dict[str, Any]:
    return next(record for record in finished.records if record["arm"] == arm)


@pytest.mark.slow
def test_every_arm_is_a_folder_with_its_record_and_stands_in_the_table(finished: arms.ArmsRun, lab: Path) -> None:
    assert sorted(row["arm"] for row in finished.ranking) == sorted(ARMS)
    assert json.loads((lab / "arms" / "ranking.json").read_text())["arms"] == finished.ranking
    for record in finished.records:
        folder = lab / "arms" / Cell(record["arm"], record["learning_rate"], record["run_seed"]).place
        assert json.loads((folder / "run.json").read_text()) == record
        stored = load_file(folder / "model.safetensors")
        assert all(torch.equal(stored[name], weight.bfloat16()) for name, weight in _weights(folder).items())
        assert record["seen"]["changed"] > 0
        assert record["steps"] == 3
        for part in ("validation", "test"):
            assert set(record[part]) == {"accuracy_before", "accuracy_after", "kl_base_to_arm", "kl_arm_to_base"}
            assert record[part]["accuracy_before"] == finished.records[0][part]["accuracy_before"]
    assert len({record["stage_seed"] for record in finished.records}) == 1  # arms differ in nothing but their rule


@pytest.mark.slow
def test_the_study_weighs_each_arm_at_its_best_rate(finished: arms.ArmsRun, lab: Path, tmp_path: Path) -> None:
    found = study([lab], tmp_path)
    assert found is not None
    assert (found["seed"], found["settings"]) == (0, {"preset": "mini", "rank": 2})
    assert len(found["points"]) == len(found["arms"]) == len(ARMS)
    for row in found["arms"]:
        assert row["travel"]["relative_delta_norm"] > 0
        assert row["adapter"] == (row["arm"] in ADAPTERS)
        assert set(row["travel"]) <= set(KEYS)
        assert row["forgotten"]["all"]["seeds"] == 1
        assert (row["kl_path"] is None) == (row["arm"] == "dense")
    assert len(found["forgetting"]["runs"]) == len(ARMS)
    assert found["forgetting"]["stages"] == {}
    off = next(row for row in found["arms"] if row["arm"] == "off-principal")
    assert off["travel"]["energy_principal_lift"] < 1e-6
    shutil.copytree(lab / "base", tmp_path / "bare" / "base")
    shutil.copy(lab / "lab.json", tmp_path / "bare")
    assert study([tmp_path / "bare"], tmp_path) is None


@pytest.mark.slow
def test_masked_arms_move_their_mask_and_hold_state_for_it_alone(finished: arms.ArmsRun, lab: Path) -> None:
    base = {name: weight.float() for name, weight in load_file(lab / "base" / "model.safetensors").items()}
    dense = _of(finished, "dense")
    for arm in MASKS:
        record, masks = _of(finished, arm), MaskSet.open(lab / "masks" / arm)
        folder = lab / "arms" / Cell(arm, record["learning_rate"], 0).place
        for name, weight in _weights(folder).items():
            moved = weight != base[name]
            assert not bool((moved & ~masks[name] if name in masks else moved).any()), (arm, name)
        ones = sum(masks.ones(name) for name in masks.names)
        assert record["parameters_trained"] == ones
        share = ones / dense["parameters"]
        assert record["optimizer_bytes"] <= share * dense["optimizer_bytes"] + dense["parameters"] / 4  # 2 bits each
    assert _of(finished, "linear")["density"] == 1
    assert _of(finished, "random")["parameters_trained"] == _of(finished, "safe")["parameters_trained"]


@pytest.mark.slow
def test_adapter_arms_begin_at_the_base_where_they_should(finished: arms.ArmsRun, lab: Path) -> None:
    from peft import PeftConfig

    base = {name: weight.float() for name, weight in load_file(lab / "base" / "model.safetensors").items()}
    for arm in ADAPTERS:
        record = _of(finished, arm)
        folder = lab / "arms" / Cell(arm, record["learning_rate"], 0).place
        assert record["start_change"] <= (1e-6 if arm == "dora" else 0)
        assert record["learning_rate"] == pytest.approx(1e-3)  # ten times the preset's
        assert PeftConfig.from_pretrained(str(folder / "adapter")).use_dora == (arm == "dora")
        assert (folder / "plain").exists() == (arm != "dora")
        moved = [name for name, weight in _weights(folder).items() if not torch.equal(weight, base[name])]
        assert moved
        assert all("_proj" in name for name in moved)
    assert _of(finished, "rlpo")["start_in_principal"] == pytest.approx(1, abs=1e-6)
    assert _of(finished, "off-principal")["start_in_principal"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_finished_arms_are_kept_and_the_same_seed_gives_the_same_bytes(finished: arms.ArmsRun, lab: Path) -> None:
    told: list[str] = []
    run_arms(lab, "mini", rank=2, progress=lambda stage, done, total: told.append(stage))
    assert not told
    (lab / "arms" / "safe/lr-0.0001/seed-0").rename(lab / "moved")
    again = run_arms(lab, "mini", rank=2, progress=lambda stage, done, total: told.append(stage))
    assert set(told) == {"safe/lr-0.0001/seed-0", "arms"}
    place = lab / "arms" / "safe/lr-0.0001/seed-0" / "model.safetensors"
    assert place.read_bytes() == (lab / "moved" / "model.safetensors").read_bytes()
    assert len(again.records) == len(ARMS)
    with pytest.raises(InputError, match=r"it was made with other settings \(alpha 4.0, rank 2\); give"):
        run_arms(lab, "mini", rank=3)


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes(finished: arms.ArmsRun, lab: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    shutil.copytree(lab, tmp_path / "lab", ignore=shutil.ignore_patterns("lr-*", "masks"))
    arms_ = ["dense", "random-2", "dora"]
    many = run_arms(tmp_path / "lab", "mini", arms=arms_, rank=2, jobs=2, progress=lambda *each: told.append(each))
    assert told == [("arms", 1, 3), ("arms", 2, 3), ("arms", 3, 3)]
    assert len(many.records) == 3
    one = run_arms(lab, "mini", arms=["random-2"], rank=2)
    for arm in arms_:
        place = next((lab / "arms" / arm).glob("*/seed-0")).relative_to(lab)
        ours, theirs = (folder / place / "master" / "model.safetensors" for folder in (lab, tmp_path / "lab"))
        assert ours.read_bytes() == theirs.read_bytes()
    random, second = (MaskSet.open(lab / "masks" / arm) for arm in ("random", "random-2"))
    assert all(random.ones(name) == second.ones(name) for name in random.names)
    assert any(not torch.equal(random[name], second[name]) for name in random.names)
    assert "random-2" in {row["arm"] for row in one.ranking}


@pytest.mark.slow
def test_what_happens_on_the_way_is_recorded(finished: arms.ArmsRun) -> None:
    for record in finished.records:
        path = record["path"]
        assert [look["step"] for look in path["kl_base_to_arm"]] == [1, 2, 3]
        assert path["kl_base_to_arm"][-1]["nats"] > 0
        assert len(path["reward"]) == len(path["grad_norm"]) == 3
        assert all(0 <= reward <= 1 for reward in path["reward"])


@pytest.mark.slow
def test_an_arm_that_is_not_of_its_kind_fails_and_leaves_nothing(
    finished: arms.ArmsRun, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake of a published comparison: every method trained as plain LoRA."""
    from offprincipal.train import adapters

    real = adapters.init_adapter
    monkeypatch.setattr(adapters, "init_adapter", lambda *a, method, **k: real(*a, method="lora", **k))
    with pytest.raises(CheckFailed, match=r"cannot train 'rlpo': 0\.\d+ of A lies in the principal subspace"):
        run_arms(lab, "mini", arms=["rlpo"], seeds=[1], rank=2)
    with pytest.raises(CheckFailed, match=r"cannot train 'pissa': its ranks are \[2\] instead of 4"):
        run_arms(lab, "mini", arms=["pissa"], seeds=[1], rank=2)
    assert not (lab / "arms" / "rlpo/lr-0.001/seed-1").exists()


@pytest.mark.slow
def test_an_adapter_that_moves_the_base_at_once_and_a_wrong_merge_are_caught(
    finished: arms.ArmsRun, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(kinds, "NO_OP", -1.0)
        with pytest.raises(CheckFailed, match="cannot train 'lora': it changes the base by 0 before the first step"):
            run_arms(lab, "mini", arms=["lora"], seeds=[2], rank=2)
    weights = {weight.name: weight.read() + 1 for weight in kinds.effective_weights(torch.nn.Linear(2, 1))}
    with pytest.raises(CheckFailed, match="cannot merge 'lora': 'weight' differs by"):
        kinds._check_merge("lora", weights, torch.nn.Linear(2, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": ["lora", "magic"]}, r"there is no arm \['magic'\]; choose from dense, linear, safe"),
        ({"arms": []}, "no arm or no seed was given"),
        ({"seeds": []}, "no arm or no seed was given"),
        ({"learning_rates": [2.0]}, "between 0 and 1"),
        ({"rank": 0}, "the rank is 0; give 1 or more"),
        ({"jobs": 0}, "0 jobs were asked for; give 1 or more"),
        ({"preset": "huge"}, "there is no preset 'huge'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_arms(tmp_path / "lab", **{"preset": "mini", **options})
    assert not (tmp_path / "lab").exists()


def test_the_grid_goes_seed_by_seed_with_ten_times_the_rate_for_adapters() -> None:
    from offprincipal.lab.settings import PRESETS

    cells = arms._grid(["safe", "lora"], None, [0, 1], PRESETS["tiny"])
    assert [cell.place for cell in cells] == [
        "safe/lr-2.5e-05/seed-0", "lora/lr-0.00025/seed-0", "safe/lr-2.5e-05/seed-1", "lora/lr-0.00025/seed-1",
    ]  # fmt: skip
    assert len(arms._grid(["safe"], [1e-5, 1e-4, 1e-5], [0], PRESETS["tiny"])) == 2
