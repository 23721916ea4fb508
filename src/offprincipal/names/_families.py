"""The families, as tables. A layout is declared here by the model_type of config.json, never inferred from shapes.

Sources: the modelling files and ``conversion_mapping.py`` of transformers 5.23. A module's name stands without its
block's number and with ``*`` for an expert's; :class:`Role` says what its weight is and, where one stored tensor holds
several canonical ones, how it is laid out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Role:
    """What a module's weight is.

    Attributes:
        kind: the kind of a whole tensor; empty where ``parts`` tells.
        layout: how the stored tensor holds the canonical ones, see ``_layouts.py``.
        parts: (canonical module, kind) of each piece, in stored order.
        module: the canonical module if it differs from the stored one.
    """

    kind: str = ""
    layout: str = "plain"
    parts: tuple[tuple[str, str], ...] = ()
    module: str = ""


@dataclass(frozen=True)
class Family:
    """One way to name the tensors of a decoder.

    Attributes:
        root: the prefix before ``block`` and the modules of ``outside``; added where a checkpoint lacks it.
        block: the list of numbered blocks.
        outside: module to kind, outside the blocks.
        inside: module to role, inside a block.
        embed: the token embedding, a module of ``outside``.
        head: the output head, at the top level.
        tied: whether the head is the embedding when config.json does not say.
        known: false only for the table of common names.
    """

    inside: Mapping[str, Role]
    root: str = "model."
    block: str = "layers"
    outside: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({"embed_tokens": "embed", "norm": "norm"})
    )
    embed: str = "embed_tokens"
    head: str = "lm_head"
    tied: bool = False
    known: bool = True


def _whole(**kinds: str) -> dict[str, Role]:
    """Roles of modules named by keyword, with two underscores for each dot."""
    return {module.replace("__", "."): Role(kind) for module, kind in kinds.items()}


ATTENTION = _whole(
    self_attn__q_proj="q",
    self_attn__k_proj="k",
    self_attn__v_proj="v",
    self_attn__o_proj="o",
    self_attn__q_norm="norm",
    self_attn__k_norm="norm",
)
LATENT_ATTENTION = _whole(  # DeepSeek's multi-head latent attention
    self_attn__q_proj="q",
    self_attn__q_a_proj="q_a",
    self_attn__q_a_layernorm="norm",
    self_attn__q_b_proj="q_b",
    self_attn__kv_a_proj_with_mqa="kv_a",
    self_attn__kv_a_layernorm="norm",
    self_attn__kv_b_proj="kv_b",
    self_attn__o_proj="o",
)
MLP = _whole(mlp__gate_proj="gate", mlp__up_proj="up", mlp__down_proj="down")
NORMS = _whole(
    input_layernorm="norm",
    post_attention_layernorm="norm",
    pre_feedforward_layernorm="norm",
    post_feedforward_layernorm="norm",
)
_FUSED_EXPERTS = {  # transformers 5: [expert, 2 * intermediate, hidden], gate above up; [expert, hidden, intermediate]
    "mlp.experts.gate_up_proj": Role(
        layout="expert_halves", parts=(("mlp.experts.*.gate_proj", "gate"), ("mlp.experts.*.up_proj", "up"))
    ),
    "mlp.experts.down_proj": Role(layout="experts", parts=(("mlp.experts.*.down_proj", "down"),)),
}
EXPERTS = {
    **_whole(
        mlp__gate="router",
        mlp__shared_experts__gate_proj="gate",
        mlp__shared_experts__up_proj="up",
        mlp__shared_experts__down_proj="down",
        mlp__shared_expert__gate_proj="gate",
        mlp__shared_expert__up_proj="up",
        mlp__shared_expert__down_proj="down",
        mlp__shared_expert_gate="router",
    ),
    "mlp.experts.*.gate_proj": Role("gate"),
    "mlp.experts.*.up_proj": Role("up"),
    "mlp.experts.*.down_proj": Role("down"),
}
MIXTRAL_EXPERTS = {
    "block_sparse_moe.gate": Role("router", module="mlp.gate"),
    "block_sparse_moe.experts.*.w1": Role("gate", module="mlp.experts.*.gate_proj"),
    "block_sparse_moe.experts.*.w3": Role("up", module="mlp.experts.*.up_proj"),
    "block_sparse_moe.experts.*.w2": Role("down", module="mlp.experts.*.down_proj"),
}

DECODER = Family({**ATTENTION, **MLP, **NORMS})
GEMMA = Family({**ATTENTION, **MLP, **NORMS}, tied=True)
QWEN_MOE = Family({**ATTENTION, **MLP, **NORMS, **EXPERTS, **_FUSED_EXPERTS})
MIXTRAL = Family({**ATTENTION, **NORMS, **EXPERTS, **MIXTRAL_EXPERTS, **_FUSED_EXPERTS})
DEEPSEEK = Family({**LATENT_ATTENTION, **MLP, **NORMS, **EXPERTS, **_FUSED_EXPERTS})
PHI3 = Family(
    {
        **NORMS,
        "self_attn.o_proj": Role("o"),
        "self_attn.qkv_proj": Role(
            layout="qkv_rows",
            parts=(("self_attn.q_proj", "q"), ("self_attn.k_proj", "k"), ("self_attn.v_proj", "v")),
        ),
        "mlp.gate_up_proj": Role(layout="halves", parts=(("mlp.gate_proj", "gate"), ("mlp.up_proj", "up"))),
        "mlp.down_proj": Role("down"),
    }
)
GPT_NEOX = Family(
    {
        **_whole(
            input_layernorm="norm",
            post_attention_layernorm="norm",
            attention__dense="o",
            mlp__dense_h_to_4h="up",
            mlp__dense_4h_to_h="down",
        ),
        "attention.query_key_value": Role(
            layout="qkv_by_head",
            parts=(("attention.query", "q"), ("attention.key", "k"), ("attention.value", "v")),
        ),
    },
    root="gpt_neox.",
    outside={"embed_in": "embed", "final_layer_norm": "norm"},
    embed="embed_in",
    head="embed_out",
)
GPT2 = Family(
    {
        **_whole(ln_1="norm", ln_2="norm"),
        "attn.c_attn": Role(layout="conv_thirds", parts=(("attn.query", "q"), ("attn.key", "k"), ("attn.value", "v"))),
        "attn.c_proj": Role("o", layout="conv"),
        "mlp.c_fc": Role("up", layout="conv"),
        "mlp.c_proj": Role("down", layout="conv"),
    },
    root="transformer.",
    block="h",
    outside={"wte": "embed", "wpe": "position", "ln_f": "norm"},
    embed="wte",
    tied=True,
)

FAMILIES: Mapping[str, Family] = {
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "olmo2": DECODER,
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "gemma3_text": GEMMA,
    "qwen2_moe": QWEN_MOE,
    "qwen3_moe": QWEN_MOE,
    "mixtral": MIXTRAL,
    "deepseek_v3": DEEPSEEK,
    "phi3": PHI3,
    "gpt_neox": GPT_NEOX,
    "gpt2": GPT2,
}
UNKNOWN = Family({**ATTENTION, **LATENT_ATTENTION, **MLP, **NORMS, **EXPERTS, **MIXTRAL_EXPERTS}, known=False)
"""For a model_type that is not listed, or none: the names that mean one thing wherever they stand, nothing fused."""

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Left by torch.compile, FSDP and activation checkpointing, anywhere in a name."""

OUTER = ("module.", "base_model.model.")
"""Left by DataParallel, DeepSpeed and PEFT before a name, any number of times."""

MOVED = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("visual.", "model.visual."),
)
"""Places of a language model inside a multimodal one: transformers 5, transformers 4, one of them is made the rule."""

BUFFERS = (
    r"(^|\.)rotary_emb\.\w*inv_freq$",
    r"(^|\.)position_ids$",
    r"(^|\.)masked_bias$",
    r"(^|\.)h\.\d+\.attn\.bias$",
    r"^gpt_neox\.layers\.\d+\.attention\.bias$",
)
"""Constants that old checkpoints store beside the weights: causal masks, rotary frequencies, positions."""
