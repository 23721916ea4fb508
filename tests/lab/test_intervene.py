"""Interventions in the laboratory: stages, resuming, refusals, and what the optimizer commutes with."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from offprincipal import rewrite
from offprincipal.errors import CheckFailed, InputError
from offprincipal.lab import intervene
from offprincipal.lab.claims import judge_claims
from offprincipal.lab.intervene import KINDS, run_interventions
from offprincipal.lab.overlaps import cosine
from offprincipal.lab.settings import PRESETS
from offprincipal.lab.world import make_decoder, make_tokenizer, save_arm


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained micro base."""
    folder, tokenizer = tmp_path_factory.mktemp("untrained") / "base", make_tokenizer()
    save_arm(make_decoder(PRESETS["micro"].decoder, tokenizer, seed=0), tokenizer, folder)
    return folder


def _trained(folder: Path, optimizer: Callable[..., torch.optim.Optimizer]) -> tuple[dict, dict]:
    """Weights before and after five steps on one batch, all in float64; no sampling, so that runs never part by it."""
    from transformers import Qwen3ForCausalLM

    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    ids = torch.randint(model.config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(0))
    steps = optimizer(model.parameters())
    for _ in range(5):
        steps.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        steps.step()
    return before, {name: weight.detach() for name, weight in model.named_parameters()}


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, eps=1e-8, weight_decay=0.0)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2)


def _agreement(base: Path, changed: Path, optimizer: Callable[..., torch.optim.Optimizer]) -> dict[str, float]:
    """Cosine, per touched matrix, of the untouched run's update and the changed run's, mapped back in float64."""
    transform = rewrite.Transform.load(changed)
    (old, new), (start, end) = _trained(base, optimizer), _trained(changed, optimizer)
    back = {name: transform.undo(name, end[name] - start[name], torch.float64) for name in transform.actions}
    found = {name: cosine(new[name] - old[name], step) for name, step in back.items()}
    assert all(value is not None for value in found.values())
    return {name: value for name, value in found.items() if value is not None}


def test_adamw_commutes_with_permutations(base: Path, tmp_path: Path) -> None:
    rewrite.permute(base, tmp_path / "permuted", layers=[0])
    found = _agreement(base, tmp_path / "permuted", _adamw)
    assert len(found) == 7
    assert min(found.values()) > 1 - 1e-6  # sums are taken in another order, so not to the last bit


def test_adamw_does_not_commute_with_rotations_and_sgd_does(base: Path, tmp_path: Path) -> None:
    rewrite.rotate(base, tmp_path / "rotated", layers=[0], dtype=torch.float64)  # not rounded: the optimizer alone
    assert min(_agreement(base, tmp_path / "rotated", _sgd).values()) > 1 - 1e-9
    adamw = _agreement(base, tmp_path / "rotated", _adamw)
    assert len(adamw) == 2
    assert max(adamw.values()) < 0.98
    assert min(adamw.values()) > 0.3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> intervene.Interventions:
    return run_interventions(tmp_path_factory.mktemp("interventions") / "lab", "mini", neurons=True)


@pytest.mark.slow
def test_every_stage_is_there_with_its_record(finished: intervene.Interventions) -> None:
    assert json.loads((finished.out / "interventions.json").read_text()) == finished.answer
    assert sorted(path.name for path in finished.out.iterdir()) == sorted([*KINDS, "interventions.json", "other-seed"])
    runs = finished.answer["settings"]["runs"]
    untouched = runs["rlvr-1"]["stage_seed"]
    assert [runs[f"{name}/rlvr-1"]["stage_seed"] for name in KINDS] == [untouched] * 3
    assert runs["other-seed"]["stage_seed"] != untouched
    for name in KINDS:
        folder = finished.out / name
        assert sorted(path.name for path in folder.iterdir()) == ["base", "mapped", "rlvr-1"]
        base, master = (load_file(folder / part / "model.safetensors") for part in ("base", "rlvr-1/master"))
        mapped = load_file(folder / "mapped" / "rlvr-1" / "model.safetensors")
        assert {weight.dtype for weight in base.values()} == {torch.bfloat16}
        assert {weight.dtype for weight in (*master.values(), *mapped.values())} == {torch.float32}
        assert not all(torch.equal(master[key], base[key].float()) for key in base)  # it moved


@pytest.mark.slow
def test_function_and_spectrum_are_kept_and_a_permuted_run_comes_back(finished: intervene.Interventions) -> None:
    for name, kept in finished.answer["preserved"].items():
        assert kept["verify"]["float64"]["max_relative"] <= 1e-10
        assert kept["nss_exact"] < 1e-14
        assert kept["nss_stored"] <= (2**-9 if name == "rotate" else 1e-14)
    touched = [row for row in finished.answer["rows"] if row["touched"]]
    assert len(touched) == 2 + 4 + 3
    for row in touched:
        as_is, back = row["compared"]["as_is"], row["compared"]["mapped_back"]
        assert as_is["jaccard"] == pytest.approx(as_is["jaccard_bernoulli"], abs=0.1)
        if row["intervention"] != "rotate":
            assert back["jaccard"] > 0.95
            assert back["cosine"] > 0.99


@pytest.mark.slow
def test_a_stop_in_the_middle_changes_nothing(finished: intervene.Interventions, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    shutil.copytree(finished.lab.out, lab, ignore=shutil.ignore_patterns("interventions"))

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "permute/rlvr-1" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_interventions(lab, "mini", progress=stop)
    assert not (lab / "interventions" / "permute" / "rlvr-1").exists()
    told = []
    again = run_interventions(lab, "mini", progress=lambda stage, done, total: told.append(stage))
    assert set(told) == {"permute/rlvr-1", "permute: map back", "compare"}
    names = ("rotate", "permute")
    assert again.answer["rows"] == [row for row in finished.answer["rows"] if row["intervention"] in names]
    with pytest.raises(InputError, match="it was made with other settings"):
        run_interventions(lab, "mini", seed=1)
    (lab / "interventions" / "other-seed" / "run.json").write_text("{")
    with pytest.raises(InputError, match="other-seed' and run the same command"):
        run_interventions(lab, "mini")


@pytest.mark.slow
def test_a_base_that_is_not_the_same_function_fails_and_is_not_kept(
    finished: intervene.Interventions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = tmp_path / "lab"
    shutil.copytree(finished.lab.out, lab)
    shutil.rmtree(lab / "interventions" / "rotate")
    monkeypatch.setattr("offprincipal.rewrite._verify.BOUND", -1.0)
    with pytest.raises(CheckFailed, match="its function was not preserved"):
        run_interventions(lab, "mini")
    assert not (lab / "interventions" / "rotate" / "base").exists()


@pytest.mark.slow
def test_the_claims_find_the_interventions(finished: intervene.Interventions, tmp_path: Path) -> None:
    answer = judge_claims([finished.lab.out], tmp_path / "claims")
    records = {record["id"]: record for record in answer["records"]}
    assert {records[id_]["verdict"] for id_ in ("I1", "I4")} == {"supported"}
    for id_ in ("I2", "I3"):
        assert records[id_]["why"].startswith("too few seeds (1 of at least 3)")


@pytest.mark.slow
def test_the_command_line(finished: intervene.Interventions) -> None:
    command = [sys.executable, "-m", "offprincipal", "lab", "run", "--preset", "mini", "-o", str(finished.lab.out)]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)

    table = run("--intervene", "--neurons")
    assert table.returncode == 0, table.stderr
    assert "mapped back" in table.stdout
    assert f"interventions: {finished.out / 'interventions.json'}" in table.stderr
    answer = json.loads(run("--intervene", "--neurons", "--json").stdout)
    assert answer["interventions"]["rows"] == finished.answer["rows"]
    assert answer["rlvr-1"] == finished.lab.records["rlvr-1"]
    alone = run("--neurons")
    assert (alone.returncode, "give --intervene as well" in alone.stderr) == (2, True)
