"""Every family of the tables, as transformers itself builds and saves it: all paired, right kinds, right pieces."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from offprincipal.checkpoint import describe, open_checkpoint
from offprincipal.pairs import Pair, Plan, pair

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "mistral": SMALL,
    "qwen2": {**SMALL, "tie_word_embeddings": True},
    "qwen3": {**SMALL, "head_dim": 8},
    "qwen3_moe": {**SMALL, **MOE, "head_dim": 8},
    "qwen2_moe": {**SMALL, **MOE, "shared_expert_intermediate_size": 16},
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **SMALL, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    },
    "gemma2": {**SMALL, "head_dim": 8},
    "gemma3_text": {**SMALL, "head_dim": 8},
    "phi3": SMALL,
    "gpt_neox": {key: value for key, value in SMALL.items() if key != "num_key_value_heads"},
    "gpt2": {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16,
             "bos_token_id": 1, "eos_token_id": 2},
    "olmo2": SMALL,
}  # fmt: skip
LINEAR = {
    **dict.fromkeys(CONFIGS, "q k v o gate up down"),
    "qwen3_moe": "q k v o router gate up down",
    "qwen2_moe": "q k v o router gate up down",
    "mixtral": "q k v o router gate up down",
    "deepseek_v3": "q_a q_b kv_a kv_b o router gate up down",
    "gpt_neox": "q k v o up down",
    "gpt2": "q k v o up down",
}


def build(model_type: str, seed: int = 0) -> Any:
    config = transformers.AutoConfig.for_model(model_type, **CONFIGS[model_type])
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    with torch.no_grad():  # biases and norms begin as zeros and ones; a test of pieces needs every value to differ
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape).to(torch.bfloat16), alpha=0.02)
    return model


def tune(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)


def saved(model_type: str, folder: Path) -> tuple[Plan, dict[str, Pair], Any]:
    """Base and tune as ``save_pretrained`` writes them, the second in shards; the model is left as the base."""
    model = build(model_type)
    model.save_pretrained(folder / "base")
    tune(model)
    model.save_pretrained(folder / "tuned", max_shard_size="20KB")
    plan = pair(open_checkpoint(folder / "base"), open_checkpoint(folder / "tuned"))
    return plan, {made.name: made for made in plan.pairs}, build(model_type)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_tensor_is_paired_with_its_kind(tmp_path: Path, model_type: str) -> None:
    plan, _, model = saved(model_type, tmp_path)
    assert plan.unpaired == ()
    assert {made.place.kind for made in plan.pairs if made.place.linear} == set(LINEAR[model_type].split())
    assert not [made.name for made in plan.pairs if made.place.kind == "other"]
    counted = sum(made.count for made in plan.pairs)
    held = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}  # a tied head once
    assert counted == sum(held.values()) == describe(plan.base).parameters
    assert {made.place.layer for made in plan.pairs} == {None, 0, 1}
    for made in plan.pairs:
        before, after = made.load()
        assert before.shape == after.shape == made.shape
        assert before.is_contiguous()
        assert torch.equal((before.float() * 1.5).bfloat16(), after)
        assert made.place.linear == (len(made.shape) == 2 and made.place.layer is not None)
        if made.heads:
            assert made.head_axis is not None
            assert made.shape[made.head_axis] % made.heads == 0
    with_heads = {made.place.kind for made in plan.pairs if made.heads}
    assert with_heads == ({"q_b", "kv_b", "o"} if model_type == "deepseek_v3" else {"q", "k", "v", "o"})


def piece(pairs: dict[str, Pair], name: str) -> torch.Tensor:
    return pairs[name].load()[0]


def test_phi3_pieces_are_the_slices_that_the_model_takes(tmp_path: Path) -> None:
    _, pairs, model = saved("phi3", tmp_path)
    layer, stem = model.model.layers[1], "model.layers.1."
    attention, mlp = layer.self_attn, layer.mlp
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    query, key, value = attention.qkv_proj(states).split([32, 16, 16], dim=-1)  # as Phi3Attention.forward slices it
    for name, expected in (("q", query), ("k", key), ("v", value)):
        weight = piece(pairs, f"{stem}self_attn.{name}_proj.weight")
        torch.testing.assert_close(states @ weight.T, expected)
    gate, up = mlp.gate_up_proj(states).chunk(2, dim=-1)  # as Phi3MLP.forward
    torch.testing.assert_close(states @ piece(pairs, stem + "mlp.gate_proj.weight").T, gate)
    torch.testing.assert_close(states @ piece(pairs, stem + "mlp.up_proj.weight").T, up)


def test_neox_pieces_are_those_of_each_head(tmp_path: Path) -> None:
    _, pairs, model = saved("gpt_neox", tmp_path)
    fused = model.gpt_neox.layers[0].attention.query_key_value
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        split = fused(states).view(5, 4, 24).chunk(3, dim=-1)  # as GPTNeoXAttention.forward: [tokens, heads, 3 * size]
    stem = "gpt_neox.layers.0.attention."
    for name, expected in zip(("query", "key", "value"), split, strict=True):
        weight, bias = piece(pairs, f"{stem}{name}.weight"), piece(pairs, f"{stem}{name}.bias")
        assert pairs[f"{stem}{name}.bias"].place.kind == "bias"
        torch.testing.assert_close(torch.nn.functional.linear(states, weight, bias), expected.reshape(5, 32))


def test_gpt2_pieces_are_transposed(tmp_path: Path) -> None:
    _, pairs, model = saved("gpt2", tmp_path)
    block, stem = model.transformer.h[1], "transformer.h.1."
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        split = block.attn.c_attn(states).split(32, dim=-1)  # as GPT2Attention.forward
        up = block.mlp.c_fc(states)
    for name, expected in zip(("query", "key", "value"), split, strict=True):
        weight, bias = piece(pairs, f"{stem}attn.{name}.weight"), piece(pairs, f"{stem}attn.{name}.bias")
        torch.testing.assert_close(torch.nn.functional.linear(states, weight, bias), expected)
    weight, bias = piece(pairs, stem + "mlp.c_fc.weight"), piece(pairs, stem + "mlp.c_fc.bias")
    assert weight.shape == (128, 32)
    torch.testing.assert_close(torch.nn.functional.linear(states, weight, bias), up)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen2_moe", "mixtral", "deepseek_v3"])
def test_fused_experts_pair_with_separate_ones(tmp_path: Path, model_type: str) -> None:
    model = build(model_type)
    model.save_pretrained(tmp_path / "base")  # one 2-D tensor per expert, the names of transformers 4
    stored = open_checkpoint(tmp_path / "base")
    assert any(".experts.3." in name for name in stored.tensors)
    tune(model)
    fused = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}  # as FSDP would save it
    assert any(name.endswith("experts.gate_up_proj") for name in fused)
    save_file(fused, tmp_path / "tuned.safetensors")
    (tmp_path / "config.json").write_bytes((tmp_path / "base" / "config.json").read_bytes())
    plan = pair(stored, open_checkpoint(tmp_path / "tuned.safetensors"))
    assert plan.unpaired == ()
    experts = [made for made in plan.pairs if made.place.expert is not None]
    assert len(experts) == 4 * 3 * (1 if model_type == "deepseek_v3" else 2)  # one layer of DeepSeek is dense
    for made in plan.pairs:
        before, after = made.load()
        assert torch.equal((before.float() * 1.5).bfloat16(), after), made.name


def test_a_bare_decoder_pairs_with_its_language_model(tmp_path: Path) -> None:
    """``AutoModel`` saves without the root ``model.`` and without a head."""
    model = build("qwen2")
    model.save_pretrained(tmp_path / "base")
    tune(model)
    model.model.save_pretrained(tmp_path / "tuned")
    plan = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "tuned"))
    assert plan.unpaired == ()
    assert len(plan.pairs) == len(plan.base.tensors)


def test_a_tune_saved_in_fp32(tmp_path: Path) -> None:
    model = build("qwen3")
    model.save_pretrained(tmp_path / "base")
    model.float().save_pretrained(tmp_path / "tuned")
    plan = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "tuned"))
    assert plan.unpaired == ()
    assert {(made.base_dtype, made.tuned_dtype) for made in plan.pairs} == {("bfloat16", "float32")}
    assert all(torch.equal(before.float(), after) for before, after in (made.load() for made in plan.pairs))
