"""Verify: what is whole passes with numbers, what is wrong is found; the guard of frozen weights."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import CONFIG, save_checkpoint, tiny_weights
from torch import nn

from offprincipal.errors import CheckFailed, InputError, UsageError
from offprincipal.train.adapters import METHODS, MergeDrift, hold, init_adapter, verify_adapter

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

TOKENS = torch.arange(20).reshape(2, 10)


def load(base: Path, dtype: torch.dtype = torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)


def train(base: Path, folder: Path, out: Path, held: bool = True, count: int = 2) -> Path:
    model = peft.PeftModel.from_pretrained(load(base), str(folder), is_trainable=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if held:
        hold(model, folder).attach(optimizer)
    for _ in range(count):
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_adapter_and_a_held_one_pass(checkpoint, tmp_path, method) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "init", method=method, rank=3, k=4)
    fresh = verify_adapter(tmp_path / "init")
    assert fresh.failures == ()
    assert fresh.summary["at_start"]
    assert fresh.summary["no_op"] == {"dtype": "float32", "tokens": 64, "identical": True, "difference_max": 0.0}
    later = verify_adapter(train(base, tmp_path / "init", tmp_path / "later"), base, init=tmp_path / "init")
    later.raise_if_failed()
    assert not later.summary["at_start"]
    assert "no_op" not in later.summary
    energy = later.summary["energy"]
    assert energy["modules_moved"] == 14
    sides = [(32, 32), (16, 32), (16, 32), (32, 32), (48, 32), (48, 32), (32, 48)]
    ks = [4 if method == "off-principal" else min(side) // 2 for side in sides]
    assert energy["left_chance"] == pytest.approx(sum(k / out for k, (out, _) in zip(ks, sides, strict=True)) / 7)
    assert (energy["worst_root"] < 1e-5) == (method == "off-principal")
    assert later.summary["reload"]["difference_max"] < 1e-6 * later.summary["reload"]["delta_max"]
    json.dumps(later.summary)


def test_energy_is_that_of_the_dense_update(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "init", method="lora", rank=3, target="q")
    train(base, tmp_path / "init", tmp_path / "later")
    energy = verify_adapter(tmp_path / "later", logits=False).summary["energy"]
    left = []
    model = peft.PeftModel.from_pretrained(load(base), str(tmp_path / "later"))
    for module in model.modules():
        if hasattr(module, "get_delta_weight"):
            delta = module.get_delta_weight("default").double()
            u = torch.linalg.svd(module.get_base_layer().weight.double()).U[:, : energy["k_max"]]
            left.append(float((u.T @ delta).square().sum() / delta.square().sum()))
    assert energy["k_max"] == 16
    assert energy["left_mean_unweighted"] == pytest.approx(sum(left) / len(left), rel=1e-4)


@pytest.mark.parametrize("method", ["off-principal", "geora"])
def test_a_promise_that_was_not_kept_is_found(checkpoint, tmp_path, method) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "init", method=method, rank=3, k=4)
    train(base, tmp_path / "init", tmp_path / "later", held=False)
    found = verify_adapter(tmp_path / "later", init=tmp_path / "init")
    words = {"off-principal": "of its norm in the subspaces it promised", "geora": "away from the form of geora"}
    assert words[method] in found.failures[0]
    with pytest.raises(CheckFailed, match=words[method]):
        found.raise_if_failed()
    assert verify_adapter(tmp_path / "later").failures == ()  # without --init nobody knows of a promise


def test_another_base_is_found_by_content(checkpoint, tmp_path) -> None:
    init_adapter(checkpoint("base"), tmp_path / "init", method="rlpo", rank=3)
    found = verify_adapter(tmp_path / "init", checkpoint("rl", delta=1e-3), logits=False)
    assert found.failures == ("the base's weight of 'model.layers.0.mlp.down_proj' is not the one it was made for",)


def test_modules_that_peft_would_lose_or_invent_are_found(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "init", method="rlpo", rank=3)
    config = tmp_path / "init" / "adapter_config.json"
    words = json.loads(config.read_text())
    file = tmp_path / "init" / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({name: tensor for name, tensor in whole.items() if "q_proj" not in name}, file)
    with pytest.raises(InputError, match=r"the file has no factors for 'model.layers.0.self_attn.q_proj' \(2 modules"):
        verify_adapter(tmp_path / "init")
    save_file(whole, file)
    config.write_text(json.dumps(words | {"target_modules": ["q_proj"]}))
    with pytest.raises(
        InputError, match=r"the model has no adapted module 'model.layers.0.mlp.down_proj' \(12 modules"
    ):
        verify_adapter(tmp_path / "init")
    config.write_text(json.dumps(words | {"target_modules": ["nothing"]}))
    with pytest.raises(InputError, match="PEFT refuses it"):
        verify_adapter(tmp_path / "init")
    config.write_text(json.dumps(words | {"init_lora_weights": "pissa"}))
    with pytest.raises(InputError, match=r"began as 'pissa', which changes the base; export it first"):
        verify_adapter(tmp_path / "init")
    with pytest.raises(UsageError, match="-1 cycles were asked for"):
        verify_adapter(tmp_path / "init", merge_drift=-1)


def test_factors_that_do_not_fit_the_base_are_refused(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "init", method="rlpo", rank=3, target="q")
    smaller = save_checkpoint(
        tmp_path / "other", {name: w for name, w in tiny_weights().items() if "layers.1" not in name}
    )
    with pytest.raises(InputError, match=r"the base has no tensor for .*layers.1.self_attn.q_proj"):
        verify_adapter(tmp_path / "init", smaller)
    strange = save_checkpoint(tmp_path / "strange", tiny_weights(), {**CONFIG, "model_type": "nobody"})
    with pytest.raises(InputError, match=r"build the model of .*transformers says.*give a base that transformers can"):
        verify_adapter(tmp_path / "init", strange)


def test_a_wrong_d_and_a_start_that_moves_are_failures(checkpoint, tmp_path, monkeypatch) -> None:
    from offprincipal.train.adapters import _peft

    base = checkpoint("base")
    init_adapter(base, tmp_path / "init", method="rlpo", rank=3)
    train(base, tmp_path / "init", tmp_path / "later")
    real = peft.tuners.lora.layer.Linear.get_delta_weight
    monkeypatch.setattr(peft.tuners.lora.layer.Linear, "get_delta_weight", lambda layer, name: 2 * real(layer, name))
    assert "PEFT's D differs from the file's by" in verify_adapter(tmp_path / "later").failures[0]
    seen = iter((torch.zeros(1), torch.ones(1)))
    monkeypatch.setattr(_peft, "logits", lambda model: next(seen))
    found = verify_adapter(tmp_path / "init")
    assert found.failures == ("at the start the logits differ from the base's by 1 in float32",)


@pytest.mark.parametrize("missing", ["peft", "transformers"])
def test_a_missing_extra_is_named(checkpoint, tmp_path, monkeypatch, missing) -> None:
    init_adapter(checkpoint("base"), tmp_path / "init", method="rlpo", rank=3)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=rf"{missing} is not installed; run: pip install 'offprincipal\[train\]'"):
        verify_adapter(tmp_path / "init")


def test_merging_in_bf16_moves_frozen_weights_and_float32_hardly(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "init", method="lora", rank=3)
    assert verify_adapter(tmp_path / "init", merge_drift=2).summary["merge_drift"]["moved"] == 0
    drift = verify_adapter(train(base, tmp_path / "init", tmp_path / "later"), merge_drift=1).summary["merge_drift"]
    assert drift["dtypes"] == ["bfloat16"]
    assert drift["weights"] == 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
    assert drift["share"] == drift["moved"] / drift["weights"] > 0
    assert 0 < drift["largest"] < 1e-2


def test_the_guard_counts_checks_and_restores(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "init", method="lora", rank=3)
    train(base, tmp_path / "init", tmp_path / "later")
    model = peft.PeftModel.from_pretrained(load(base, torch.bfloat16), str(tmp_path / "later"))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    guard = MergeDrift(model)
    assert guard.check().moved == 0
    model.merge_adapter()
    for call in (guard.report, guard.restore, lambda: MergeDrift(model)):
        with pytest.raises(UsageError, match=r"is merged at the moment; call unmerge_adapter\(\) first"):
            call()
    model.unmerge_adapter()
    report = guard.report()
    counted = sum(int((weight != before[name]).sum()) for name, weight in model.named_parameters())
    assert report.moved == counted == sum(report.modules.values()) > 0
    with pytest.raises(CheckFailed, match=rf"{counted:,} of {report.weights:,} frozen bfloat16 weights moved"):
        guard.check()
    assert guard.restore() == counted
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    with pytest.raises(UsageError, match="no module carries a LoRA adapter"):
        MergeDrift(nn.Linear(2, 2))
