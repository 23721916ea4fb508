"""Tiny random models of every family, saved by transformers itself; norms and biases are unlike their defaults."""

from pathlib import Path
from typing import Any

import torch

from offprincipal.measures.seeds import torch_generator

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0},
    "gemma3_text": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, **EXPERTS},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 24},
    "mixtral": {"num_local_experts": 4},
    "phi3": {},
    "olmo2": {},
    "deepseek_v3": LATENT,
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64},
    "gpt_neox": {"num_key_value_heads": 4},
}


def make(model_type: str, folder: Path, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """Save a random model of this family; its weights are a function of the family's name."""
    import transformers

    own = {} if model_type == "gpt2" else COMMON
    config = transformers.AutoConfig.for_model(model_type, **{**own, **FAMILIES[model_type], **changes})
    if model_type == "gpt2":
        config.vocab_size = COMMON["vocab_size"]
        config.bos_token_id = config.eos_token_id = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=torch_generator(0, name))
            if weight.dim() == 1:  # norms around their start and biases around zero
                weight.add_(noise * 0.3)
            else:
                weight.copy_(noise * weight.shape[-1] ** -0.5)
    model.to(dtype).save_pretrained(folder)
    return folder
