"""Tiny checkpoints built in the test: a base of a Llama-like model and tunes of it, sharded like the real ones."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from offprincipal.measures.seeds import torch_generator

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "tie_word_embeddings": False,
}
SHAPES = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (48, 32),
    "mlp.up_proj": (48, 32),
    "mlp.down_proj": (32, 48),
    "input_layernorm": (32,),
    "post_attention_layernorm": (32,),
}


def tiny_weights(delta: float = 0.0, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """The base's weights, or with `delta` those of a tune: Gaussian steps of that scale, rounded to `dtype`."""
    shapes = {"model.embed_tokens.weight": (50, 32), "model.norm.weight": (32,), "lm_head.weight": (50, 32)}
    shapes |= {f"model.layers.{layer}.{name}.weight": shape for layer in (0, 1) for name, shape in SHAPES.items()}
    weights = {}
    for name, shape in shapes.items():
        base = (torch.randn(shape, generator=torch_generator(0, "base", name)) * 0.02).bfloat16()
        step = torch.randn(shape, generator=torch_generator(seed, "step", name)) * delta
        weights[name] = (base.float() + step).to(dtype) if delta else base.to(dtype)
    return weights


def save_checkpoint(
    folder: Path, weights: dict[str, torch.Tensor], config: dict | None = None, shards: int = 2
) -> Path:
    """Write a Hugging Face folder with an index over so many shards."""
    folder.mkdir(parents=True)
    names, places = list(weights), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in names[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in weights.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return folder
