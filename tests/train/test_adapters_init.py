"""Adapter folders: PEFT reads them, they add exactly nothing, and the same request writes the same bytes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import CONFIG, save_checkpoint, tiny_weights

from offprincipal import fanout
from offprincipal.errors import InputError, UsageError
from offprincipal.train.adapters import DOUBLED, METHODS, init_adapter

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

RANK, STEM = 3, "base_model.model.model.layers.1.mlp.up_proj.lora_"


def make(base: Path, out: Path, method: str, **options):
    return init_adapter(base, out, method=method, **{"rank": RANK, "alpha": 6.0, "k": 4, **options})


def load(base: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_peft_reads_it_and_the_logits_do_not_move_a_bit(checkpoint, tmp_path, method) -> None:
    base = checkpoint("base")
    made = make(base, tmp_path / "a", method)
    tokens = torch.arange(20).reshape(2, 10)
    model = load(base)
    with torch.no_grad():
        before = model(tokens).logits
        loaded = peft.PeftModel.from_pretrained(model, str(tmp_path / "a"))
        assert torch.equal(loaded(tokens).logits, before)
    rank = 2 * RANK if method in DOUBLED else RANK
    layer = loaded.base_model.model.model.layers[1].mlp.up_proj
    assert (layer.r["default"], layer.scaling["default"]) == (rank, 2.0)
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert torch.equal(layer.lora_A["default"].weight, stored[STEM + "A.weight"])
    assert len(stored) == 2 * 14 == 2 * len(made.note["modules"])
    assert made.note == json.loads((tmp_path / "a" / "offprincipal.json").read_text())
    assert method in (tmp_path / "a" / "README.md").read_text()


def test_the_configuration_is_the_one_peft_writes(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    make(base, tmp_path / "a", "rlpo", target="q,v")
    expected = peft.LoraConfig(
        r=RANK, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", inference_mode=True,
        base_model_name_or_path=str(base), rank_pattern={}, alpha_pattern={},
    )  # fmt: skip
    assert peft.LoraConfig.from_pretrained(str(tmp_path / "a")).to_dict() == expected.to_dict()


def test_the_start_is_what_the_method_says(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    weight = load_file(base / "model-00001-of-00002.safetensors") | load_file(
        base / "model-00002-of-00002.safetensors"
    )
    u, s, vh = torch.linalg.svd(weight["model.layers.1.mlp.up_proj.weight"].double(), full_matrices=False)
    found = {}
    for method in METHODS:
        make(base, tmp_path / method, method)
        stored = load_file(tmp_path / method / "adapter_model.safetensors")
        found[method] = stored[STEM + "A.weight"].double(), stored[STEM + "B.weight"].double()
    a, b = found["pissa"]
    expected = u[:, :RANK] * s[:RANK] @ vh[:RANK]
    torch.testing.assert_close(2.0 * b[:, RANK:] @ a[:RANK], expected, rtol=0, atol=1e-6)
    a, b = found["milora"]
    expected = u[:, -RANK:] * s[-RANK:] @ vh[-RANK:]
    torch.testing.assert_close(2.0 * b[:, RANK:] @ a[:RANK], expected, rtol=0, atol=1e-6)
    for method in DOUBLED:
        assert not found[method][0][RANK:].any()
        assert not found[method][1][:, :RANK].any()
    assert float((found["off-principal"][0] @ vh[:4].T).abs().max()) < 1e-7
    assert float((found["rlpo"][0] @ vh[RANK:].T).abs().max()) < 1e-6
    assert float((found["rlmo"][0] @ vh[:-RANK].T).abs().max()) < 1e-6
    for method in ("lora", "rlpo", "rlmo", "off-principal"):
        assert not found[method][1].any()


def content(base: Path, out: Path, method: str, **options) -> list[bytes]:
    make(base, out, method, **options)
    return [file.read_bytes() for file in sorted(out.glob("*.safetensors"))]


@pytest.mark.parametrize("method", ["lora", "off-principal", "geora"])
def test_kept_and_fresh_factors_write_the_same_bytes(checkpoint, tmp_path, method) -> None:
    base = checkpoint("base")
    first = content(base, tmp_path / "1", method, cache=False)
    assert content(base, tmp_path / "2", method) == first
    assert content(base, tmp_path / "3", method) == first
    assert content(base, tmp_path / "4", method, seed=1, cache=False) != first


@pytest.mark.slow
@pytest.mark.parametrize("method", ["off-principal", "rlmo"])
def test_processes_write_the_same_bytes(checkpoint, tmp_path, method) -> None:
    base = checkpoint("base")
    first = content(base, tmp_path / "1", method, engine=fanout.here)
    assert content(base, tmp_path / "2", method, engine=fanout.engine("processes", 2)) == first


def test_a_transposed_base_gets_factors_for_its_transpose(tmp_path) -> None:
    config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=4, n_positions=16)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    make(tmp_path / "base", tmp_path / "a", "off-principal")
    loaded = peft.PeftModel.from_pretrained(load(tmp_path / "base"), str(tmp_path / "a"))
    layer = loaded.base_model.model.transformer.h[0].mlp.c_fc
    assert layer.fan_in_fan_out
    vh = torch.linalg.svd(layer.get_base_layer().weight.T.double(), full_matrices=False)[2]
    assert float((layer.lora_A["default"].weight.double() @ vh[:4].T).abs().max()) < 1e-6


BAD = [
    ({"method": "dora"}, UsageError, "there is no method 'dora'; choose one of lora, rlpo"),
    ({"rank": 0}, UsageError, "rank is 0"),
    ({"alpha": -1.0}, UsageError, "alpha is -1.0"),
    ({"alpha": float("nan")}, UsageError, "alpha is nan"),
    ({"k": 0}, UsageError, "k is 0"),
    ({"rho": 1.5}, UsageError, "rho is 1.5"),
    ({"rank": 17}, InputError, "its short side is 16, too small for rank 17; ask for at most --rank 16"),
    (
        {"rank": 9, "k": 64, "method": "off-principal"},
        InputError,
        "too small for rank 9 beside the 8 leading directions; ask for at most --rank 8, or for fewer --directions",
    ),
    ({"target": "attention"}, UsageError, "no module is called that"),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    checkpoint, tmp_path, options, error, words
) -> None:
    with pytest.raises(error, match=words):
        make(checkpoint("base"), tmp_path / "a", **{"method": "rlpo", **options})
    assert not (tmp_path / "a").exists()


def test_bases_that_cannot_be_adapted_are_refused(checkpoint, tmp_path) -> None:
    weights = tiny_weights()
    weights["model.layers.0.mlp.up_proj.weight"][3, 3] = float("nan")
    broken = save_checkpoint(tmp_path / "broken", weights)
    with pytest.raises(InputError, match=r"adapt 'model.layers.0.mlp.up_proj': its weight holds NaN or infinite"):
        make(broken, tmp_path / "a", "rlpo", engine=fanout.here)
    quantised = save_checkpoint(
        tmp_path / "q", tiny_weights(), {**CONFIG, "quantization_config": {"quant_method": "gptq"}}
    )
    with pytest.raises(InputError, match="the weights are quantised"):
        make(quantised, tmp_path / "a", "rlpo")
    make(checkpoint("base"), tmp_path / "adapter", "lora")
    with pytest.raises(InputError, match="it is an adapter itself"):
        make(tmp_path / "adapter", tmp_path / "a", "lora")
    with pytest.raises(InputError, match="it holds an adapter; choose another folder with -o"):
        make(checkpoint("base2"), tmp_path / "adapter", "lora")
    assert not (tmp_path / "a").exists()


def test_a_folder_of_another_job_is_not_mixed_with(checkpoint, tmp_path) -> None:
    save_file({"a": torch.ones(1)}, (tmp_path / "a").mkdir() or tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"adapter_model.safetensors, which another program wrote"):
        make(checkpoint("base"), tmp_path / "a", "lora")


def test_progress_is_told_module_by_module(checkpoint, tmp_path) -> None:
    told = []
    make(checkpoint("base"), tmp_path / "a", "lora", engine=fanout.here, progress=lambda *now: told.append(now))
    assert told[0] == (0, 14, "")
    assert told[-1][:2] == (14, 14)
