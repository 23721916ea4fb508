"""Adapters: equal to what PEFT merges, or refused with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from offprincipal.checkpoint import describe, open_checkpoint
from offprincipal.checkpoint._adapter import adapt, check_adapter
from offprincipal.checkpoint._header import TensorInfo
from offprincipal.checkpoint._source import Stored
from offprincipal.errors import InputError, OffprincipalError
from offprincipal.pairs import pair

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [  # PEFT's own, about transformers and about how it saves
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = transformers.LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2)
GPT2 = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=16)


def adapter(folder: Path, config: Any, **options: Any) -> dict[str, torch.Tensor]:
    """A base and a trained-looking adapter on disk; the merged weights as PEFT makes them in fp32."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "base")
    options = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"], **options}
    tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    tuned.peft_config["default"].base_model_name_or_path = str(folder / "base")
    tuned.save_pretrained(folder / "adapter")
    return tuned.merge_and_unload().state_dict()


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (LLAMA, {}),
    "rslora": (LLAMA, {"use_rslora": True}),
    "patterns": (LLAMA, {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 3}}),
    "dora": (LLAMA, {"use_dora": True}),
    "saved modules": (LLAMA, {"modules_to_save": ["lm_head"]}),
    "embedding": (LLAMA, {"target_modules": ["embed_tokens", "v_proj"]}),
    "fan_in_fan_out": (GPT2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_peft_merges(tmp_path: Path, case: str) -> None:
    config, options = CASES[case]
    merged = adapter(tmp_path, config, **options)
    found = open_checkpoint(tmp_path / "adapter")
    assert (found.kind, found.base_ref) == ("adapter", str(tmp_path / "base"))
    base = open_checkpoint(tmp_path / "base")
    assert found.tensors.keys() == base.tensors.keys()
    moved = 0
    for name, info in found.tensors.items():
        read = found.read(name)
        assert info.dtype == "F32"
        torch.testing.assert_close(read, merged[name], rtol=1e-6, atol=1e-6)
        moved += not torch.equal(read, base.read(name))
    assert moved == {"saved modules": 5, "embedding": 3}.get(case, 4)
    plan = pair(base, found)
    assert plan.unpaired == ()
    for made in plan.pairs:  # pieces of fused weights too
        assert made.load()[0].shape == made.load()[1].shape == made.shape
    assert describe(found).base_ref == str(tmp_path / "base")


def test_a_bf16_base_gives_fp32_only_where_it_is_adapted(tmp_path: Path) -> None:
    adapter(tmp_path, LLAMA)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, tmp_path / "base" / "model.safetensors")
    found = open_checkpoint(tmp_path / "adapter")
    assert {name for name, info in found.tensors.items() if info.dtype == "F32"} == {
        f"model.layers.{i}.{module}.weight" for i in (0, 1) for module in ("self_attn.q_proj", "mlp.down_proj")
    }
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = weights[name].bfloat16().float() + 3.0 * factors[stem + "B.weight"] @ factors[stem + "A.weight"]
    torch.testing.assert_close(found.read(name), expected)


def test_the_base_beside_it_and_the_base_it_names(tmp_path: Path) -> None:
    adapter(tmp_path, LLAMA)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(
        InputError, match=r"its base '.*base' cannot be opened: there is no such .*give the base beside it"
    ):
        open_checkpoint(tmp_path / "adapter")
    given = open_checkpoint(tmp_path / "adapter", base=tmp_path / "elsewhere")
    opened = open_checkpoint(tmp_path / "adapter", base=open_checkpoint(tmp_path / "elsewhere"))
    assert given.identity() == opened.identity()
    edit(tmp_path, base_model_name_or_path="../elsewhere")  # relative to the adapter's folder
    assert open_checkpoint(tmp_path / "adapter").identity() == given.identity()
    edit(tmp_path, base_model_name_or_path=None)
    with pytest.raises(InputError, match="the adapter does not name its base; give the base beside it"):
        open_checkpoint(tmp_path / "adapter")
    with pytest.raises(InputError, match="is an adapter itself; merge that one first"):
        open_checkpoint(tmp_path / "adapter", base=tmp_path / "adapter")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', and only LORA is read; merge it with PEFT"),
        ({"peft_type": None}, "peft_type is 'None'"),
        ({"lora_bias": True}, "the adapter uses lora_bias, which is not read"),
        ({"target_parameters": ["x"]}, "the adapter uses target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "began as 'pissa_niter_4', which changes the base weights"),
        ({"init_lora_weights": ["x"]}, "began as"),
        ({"r": 5}, "has rank 4 and adapter_config.json says 5"),
        ({"rank_pattern": {"q_proj": True}}, "has rank 4 and adapter_config.json says True"),
        ({"rank_pattern": {"(": 4}}, r"the invalid pattern '\('"),
        ({"lora_alpha": None}, "gives no lora_alpha"),
        ({"lora_alpha": float("nan")}, "gives no lora_alpha"),
        ({"lora_alpha": 10**400}, "gives no lora_alpha"),
        ({"base_model_name_or_path": "x" * 5000}, "its base is no path"),
        ({"base_model_name_or_path": "a\0b"}, "its base .* cannot be opened"),
        ({"base_model_name_or_path": ["x"]}, "does not name its base"),
        ({"fan_in_fan_out": True}, r"the factors \[32, 4\] x \[4, 48\] of .* do not fit its weight \[32, 48\]"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    adapter(tmp_path, LLAMA)
    edit(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda factors: factors.pop(next(name for name in factors if "lora_A" in name)), "has only one factor of"),
        (lambda factors: factors.update({"base_model.model.no.lora_A.weight": torch.ones(4, 2),
                                         "base_model.model.no.lora_B.weight": torch.ones(2, 4)}), "has no tensor for"),
        (lambda factors: factors.update({"base_model.model.no.lora_C": torch.ones(4, 2)}), "no.lora_C' is not read"),
    ],
)  # fmt: skip
def test_damaged_factors(tmp_path: Path, change: Any, message: str) -> None:
    adapter(tmp_path, LLAMA)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    factors = load_file(path)
    change(factors)
    save_file(factors, path)
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path / "adapter")


def test_dora_on_a_transposed_weight_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path, GPT2, target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True)
    with pytest.raises(InputError, match=r"DoRA on the transposed weight of .* is not read; merge it with PEFT"):
        open_checkpoint(tmp_path / "adapter")


def test_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SIZES, intermediate_size=48, tie_word_embeddings=True)
    adapter(tmp_path, config, modules_to_save=["embed_tokens"])
    with pytest.raises(
        InputError, match=r"the adapter changes 'model\.embed_tokens\.weight', and .* head is tied to it"
    ):
        open_checkpoint(tmp_path / "adapter")


def test_an_adapter_without_readable_weights(tmp_path: Path) -> None:
    adapter(tmp_path, LLAMA)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"the adapter has no adapter_model\.safetensors"):
        open_checkpoint(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="the adapter's weights are pickled; save it with PEFT's save_pretrained"):
        open_checkpoint(tmp_path / "adapter")


def test_a_folder_that_is_both(tmp_path: Path) -> None:
    adapter(tmp_path, LLAMA)
    save_file({"a": torch.ones(1)}, tmp_path / "adapter" / "model.safetensors")
    with pytest.raises(
        InputError, match=r"holds a whole model and an adapter; name the one file, or remove adapter_con"
    ):
        open_checkpoint(tmp_path / "adapter")


VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
)
CONFIGS = st.dictionaries(st.sampled_from(["r", "lora_alpha", "use_rslora", "fan_in_fan_out", "rank_pattern"]), VALUES)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
STEM = "base_model.model.model.layers.0.mlp.up_proj."
NAMES = st.sampled_from([STEM + end for end in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "weight")])


@given(st.dictionaries(NAMES | st.text(max_size=5), SHAPES, max_size=4), SHAPES, CONFIGS)
def test_any_adapter_is_read_or_refused(
    factors: dict[str, tuple[int, ...]], shape: tuple[int, ...], config: dict
) -> None:
    def info(name: str, shape: tuple[int, ...]) -> TensorInfo:
        return TensorInfo(name, shape, "F32", "/nowhere", 0, 0)

    name = "model.layers.0.mlp.up_proj.weight"
    base = {name: Stored(info(name, shape))}
    try:
        check_adapter({"peft_type": "LORA", **config}, "open")
        found = adapt(base, {}, {name: info(name, shape) for name, shape in factors.items()}, config, "open")
    except OffprincipalError:
        return
    assert found.keys() == base.keys()
