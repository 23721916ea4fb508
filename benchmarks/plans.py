"""Print what a comparison of three public models would cost, from their shapes alone: the table of docs/cluster.md.

Run: python benchmarks/plans.py. Bytes, flops, memory and GPU hours depend on shapes and stated assumptions only; the
hours of this machine on rates that are measured at first use.
"""

from collections.abc import Iterator

from offprincipal.checkpoint import Checkpoint, TensorInfo
from offprincipal.checkpoint._source import Stored
from offprincipal.cost import Cost, Rates, plan_cost
from offprincipal.pairs import pair

MODELS = {
    "Llama-3.1-8B": {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    },
    "Llama-3.1-70B": {
        "model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    },
    "Qwen3-235B-A22B": {
        "model_type": "qwen3_moe", "num_hidden_layers": 94, "hidden_size": 4096, "moe_intermediate_size": 1536,
        "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
    },
}  # fmt: skip
"""The fields of each config.json that give the shapes; none of the three ties its head."""


def shapes(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every stored tensor."""
    hidden, depth = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * depth, config["num_key_value_heads"] * depth
    experts, qwen = config.get("num_experts", 0), config["model_type"].startswith("qwen3")
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "lm_head.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{block}.{norm}.weight", (hidden,)
        for name, shape in (
            ("q", (queries, hidden)),
            ("k", (keys, hidden)),
            ("v", (keys, hidden)),
            ("o", (hidden, queries)),
        ):
            yield f"{block}.self_attn.{name}_proj.weight", shape
        for norm in ("q_norm", "k_norm") if qwen else ():
            yield f"{block}.self_attn.{norm}.weight", (depth,)
        if experts:
            yield f"{block}.mlp.gate.weight", (experts, hidden)
        wide = config["moe_intermediate_size"] if experts else config["intermediate_size"]
        for mlp in [f"{block}.mlp.experts.{number}" for number in range(experts)] or [f"{block}.mlp"]:
            yield f"{mlp}.gate_proj.weight", (wide, hidden)
            yield f"{mlp}.up_proj.weight", (wide, hidden)
            yield f"{mlp}.down_proj.weight", (hidden, wide)


def headers(model: str) -> Checkpoint:
    """The model as its headers would show it, in bfloat16; there are no weights behind it."""
    sources, at = {}, 0
    for name, shape in shapes(MODELS[model]):
        size = 2
        for axis in shape:
            size *= axis
        sources[name] = Stored(TensorInfo(name, shape, "BF16", f"/{model}.safetensors", at, at + size))
        at += size
    return Checkpoint(model, "folder", None, sources, {**MODELS[model], "tie_word_embeddings": False})


def line(cost: Cost, model: str, runs: int) -> str:
    """One row of the table."""
    hours = [cost.hours_here, *cost.hours_gpus.values()]
    return (
        f"| {model} | {runs} | {cost.weights / 1e9:,.1f} | {cost.tensors:,} | {cost.nbytes / 1e9:,.0f} "
        f"| {cost.flops:.1e} | {cost.peak_nbytes / 2**30:.1f} | " + " | ".join(f"{h:.3g}" for h in hours) + " |"
    )


def table(here: Rates | None = None, gpu: Rates | None = None) -> str:
    """The table in Markdown."""
    rows = [
        "| model | runs | weights, 10^9 | tensors | read, GB | float64 flops | GiB per worker, at most "
        "| hours here | hours, 1 GPU | 8 GPUs | 64 GPUs |",
        "|---" * 11 + "|",
    ]
    for model in MODELS:
        checkpoint = headers(model)
        plan = pair(checkpoint, checkpoint)
        for runs in (1, 3):
            rows.append(line(plan_cost(plan, runs=runs, here=here, gpu=gpu), model, runs))
    return "\n".join(rows)


if __name__ == "__main__":
    from offprincipal.cost import rates

    print(table())
    print(f"\nhere: {rates('cpu')}")
