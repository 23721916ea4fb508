"""Checkpoints to measure speed on: blocks of Qwen2.5-1.5B shapes and an embedding, one shard a block."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from offprincipal.measures.seeds import torch_generator

WIDTH, KV, HIDDEN, ROWS = 1536, 256, 8960, 20_000
MATRICES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KV, WIDTH),
    "self_attn.v_proj": (KV, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (HIDDEN, WIDTH),
    "mlp.up_proj": (HIDDEN, WIDTH),
    "mlp.down_proj": (WIDTH, HIDDEN),
}
VECTORS = {
    "self_attn.q_proj.bias": WIDTH,
    "self_attn.k_proj.bias": KV,
    "self_attn.v_proj.bias": KV,
    "input_layernorm.weight": WIDTH,
    "post_attention_layernorm.weight": WIDTH,
}


def weight(name: str, shape: tuple[int, ...], step: float, seed: int) -> torch.Tensor:
    """Noise and a part of low rank, as trained matrices have; with `step`, a dense Gaussian update on top."""
    generator = torch_generator(0, "weight", name)
    values = torch.randn(shape, generator=generator) * 0.02
    if len(shape) == 2:
        values += (
            torch.randn(shape[0], 16, generator=generator) @ torch.randn(16, shape[1], generator=generator) * 0.01
        )
    values = values.bfloat16()
    if not step:
        return values
    return (values.float() + torch.randn(shape, generator=torch_generator(seed, "step", name)) * step).bfloat16()


def make(folder: Path, blocks: int, step: float = 0.0, seed: int = 0) -> Path:
    """A checkpoint of that many blocks; kept if it is there already."""
    if (folder / "model.safetensors.index.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    groups = [{"model.embed_tokens.weight": (ROWS, WIDTH), "model.norm.weight": (WIDTH,)}]
    for block in range(blocks):
        start = f"model.layers.{block}."
        groups.append({f"{start}{name}.weight": shape for name, shape in MATRICES.items()})
        groups[-1] |= {f"{start}{name}": (size,) for name, size in VECTORS.items()}
    places = {}
    for i, group in enumerate(groups):
        file = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        save_file({n: weight(n, s, step, seed) for n, s in group.items()}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(group, file)
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": WIDTH, "vocab_size": ROWS,
        "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": HIDDEN,
        "num_hidden_layers": blocks, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
