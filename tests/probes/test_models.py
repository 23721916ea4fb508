"""Loading: what a model is, body and head, adapters, and every way in which a folder is not one."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError, UsageError
from offprincipal.probes import models
from offprincipal.probes.models import check_device, load_model, load_tokenizer, need_extra, open_all
from tests.probes.conftest import loaded

IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 0, 0]])
SEEN = IDS > 0

FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 4},
    "gemma2": {"final_logit_softcapping": 2.0, "sliding_window": 4},
    "cohere": {"logit_scale": 0.5},
    "gpt_neox": {"num_key_value_heads": 4},
    "phi3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_body_and_head_are_the_model_padding_or_not(model, family):
    found = loaded(model("base", family=family, **FAMILIES[family]))
    hidden = found.hidden(IDS, SEEN)
    whole = found.module(input_ids=IDS, attention_mask=SEEN.long()).logits
    assert torch.allclose(found.logits(hidden[SEEN]), whole[SEEN], atol=1e-5)
    alone = found.module(input_ids=IDS[1:, :3]).logits[0]
    assert torch.allclose(found.logits(hidden[1, :3]), alone, atol=1e-5)
    assert not any(weight.requires_grad for weight in found.parameters())
    assert found.linear_head == (family != "gemma2")


def test_other_weights_can_stand_in_and_leave_no_trace(folders):
    base, tuned = loaded(folders["base"]), loaded(folders["rl"])
    before = base.logits(base.hidden(IDS, SEEN)[0])
    swapped = base.logits(base.hidden(IDS, SEEN, tuned.weights())[0], tuned.weights())
    assert torch.equal(swapped, tuned.logits(tuned.hidden(IDS, SEEN)[0]))
    assert torch.equal(base.logits(base.hidden(IDS, SEEN)[0]), before)


def test_a_head_that_is_more_than_a_function_of_the_hidden_states_is_refused(folders, monkeypatch):
    monkeypatch.setattr(models.Model, "_predict", lambda self, hidden: torch.zeros(len(hidden), self.vocabulary))
    with pytest.raises(InputError, match="the head of Qwen3ForCausalLM is not a function of the last hidden states"):
        loaded(folders["base"])


def test_an_adapter_is_merged_into_the_base_that_is_given(model, tmp_path):
    base = model("base")
    name, adapter = "model.layers.1.mlp.up_proj", tmp_path / "adapter"
    adapter.mkdir()
    a, b = torch.randn(2, 16), torch.randn(24, 2)
    prefix = f"base_model.model.{name}"
    save_file({f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    _, runs = open_all(base, {"lora": adapter})
    merged = load_model(runs["lora"]).weights()
    stored = load_file(base / "model.safetensors")
    assert torch.allclose(merged[f"{name}.weight"], stored[f"{name}.weight"] + 2 * b @ a, atol=1e-5)
    assert torch.equal(merged["model.norm.weight"], stored["model.norm.weight"])
    assert load_tokenizer(runs["lora"]) is not None  # its base's
    alone = load_model(open_checkpoint(adapter)).weights()
    assert torch.equal(alone[f"{name}.weight"], merged[f"{name}.weight"])


def test_an_adapter_on_a_weight_that_transformers_keeps_otherwise_is_refused(folders):
    base = open_checkpoint(folders["base"])
    name = "model.norm.weight"
    moved = replace(base, ref="adapter", sources={f"experts.0.{name}": base.sources[name]})
    words = r"keeps 'experts\.0\.model\.norm\.weight' in another layout.*merge the adapter with PEFT"
    with pytest.raises(InputError, match=words):
        models._adapt(loaded(folders["base"]), base, moved)


def test_what_is_no_model(folders, tmp_path):
    base = folders["base"]
    with pytest.raises(InputError, match="a single file is not a model; give the folder"):
        load_model(open_checkpoint(base / "model.safetensors"))
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(base / "model.safetensors", bare)
    with pytest.raises(InputError, match=r"there is no config\.json"):
        load_model(open_checkpoint(bare))
    (bare / "config.json").write_text(json.dumps({"model_type": "of the future"}))
    with pytest.raises(InputError, match="transformers says"):
        load_model(open_checkpoint(bare))
    shutil.copy(base / "config.json", bare)
    weights = load_file(base / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, bare / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights are missing or of another shape, model\.layers\.1\.mlp\.up_proj"):
        load_model(open_checkpoint(bare))
    (bare / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"load the tokenizer of .* transformers says"):
        load_tokenizer(open_checkpoint(bare))


def test_a_repository_that_is_not_cached_whole(folders, monkeypatch):
    absent = replace(open_checkpoint(folders["base"]), kind="hub", ref="org/name", commit="0" * 40)
    with pytest.raises(InputError, match=r"it is not in the Hub's cache; run `hf download org/name` first"):
        load_model(absent)


def test_without_the_extra(monkeypatch, folders):
    def refuse(name, *rest):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(models.importlib, "import_module", refuse)
    with pytest.raises(UsageError, match=r"'transformers' is not installed; run `pip install offprincipal\[hf\]`"):
        open_all(folders["base"], [folders["rl"]])
    monkeypatch.undo()
    need_extra()


@pytest.mark.parametrize("device", ["warp", "cuda:7"])
def test_no_such_device(device):
    with pytest.raises(UsageError, match=f"cannot compute on '{device}'"):
        check_device(device)


def test_a_model_that_does_not_fit_is_said(folders, monkeypatch):
    def full(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(models.Model, "to", full)
    with pytest.raises(InputError, match="it does not fit on cpu; use --device cpu"):
        loaded(folders["base"])
