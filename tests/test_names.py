"""The tables: every family's names, by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.errors import InputError, OffprincipalError
from offprincipal.names import FAMILIES, Place, canonical, family_of, flat, is_buffer, is_tied, locate

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_size": 32}


def places(name: str, shape: tuple[int, ...], model_type: str | None = "llama", **config: object) -> list[Place]:
    return [piece.place for piece in locate(name, shape, {"model_type": model_type, **HEADS, **config})]


LAYER = "model.layers.7."
TABLE = [
    ("llama", "model.embed_tokens.weight", (64, 32), Place(None, "embed", None, False)),
    ("llama", "lm_head.weight", (64, 32), Place(None, "head", None, False)),
    ("llama", "lm_head.bias", (64,), Place(None, "bias", None, False)),
    ("llama", "model.norm.weight", (32,), Place(None, "norm", None, False)),
    ("llama", LAYER + "self_attn.q_proj.weight", (32, 32), Place(7, "q", None, True)),
    ("qwen2", LAYER + "self_attn.q_proj.bias", (32,), Place(7, "bias", None, False)),
    ("mistral", LAYER + "mlp.down_proj.weight", (32, 48), Place(7, "down", None, True)),
    ("qwen3", LAYER + "self_attn.k_norm.weight", (8,), Place(7, "norm", None, False)),
    ("olmo2", LAYER + "post_feedforward_layernorm.weight", (32,), Place(7, "norm", None, False)),
    ("gemma2", LAYER + "pre_feedforward_layernorm.weight", (32,), Place(7, "norm", None, False)),
    ("qwen3_moe", LAYER + "mlp.gate.weight", (4, 32), Place(7, "router", None, True)),
    ("qwen3_moe", LAYER + "mlp.experts.3.up_proj.weight", (16, 32), Place(7, "up", 3, True)),
    ("mixtral", LAYER + "block_sparse_moe.gate.weight", (4, 32), Place(7, "router", None, True)),
    ("mixtral", LAYER + "block_sparse_moe.experts.2.w2.weight", (32, 48), Place(7, "down", 2, True)),
    ("deepseek_v3", LAYER + "self_attn.q_a_proj.weight", (16, 32), Place(7, "q_a", None, True)),
    ("deepseek_v3", LAYER + "self_attn.kv_b_proj.weight", (64, 16), Place(7, "kv_b", None, True)),
    ("deepseek_v3", LAYER + "mlp.gate.e_score_correction_bias", (4,), Place(7, "bias", None, False)),
    ("deepseek_v3", LAYER + "mlp.shared_experts.gate_proj.weight", (16, 32), Place(7, "gate", None, True)),
    ("gpt_neox", "gpt_neox.layers.7.attention.dense.weight", (32, 32), Place(7, "o", None, True)),
    ("gpt_neox", "embed_out.weight", (64, 32), Place(None, "head", None, False)),
    ("gpt2", "wpe.weight", (16, 32), Place(None, "position", None, False)),
    ("gpt2", "h.7.mlp.c_fc.weight", (32, 128), Place(7, "up", None, True)),
    ("gpt2", "h.7.mlp.c_fc.bias", (128,), Place(7, "bias", None, False)),
    ("llama", LAYER + "self_attn.strange.weight", (32, 32), Place(7, "other", None, False)),
    ("llama", "strange.weight", (32, 32), Place(None, "other", None, False)),
    (None, LAYER + "self_attn.v_proj.weight", (16, 32), Place(7, "v", None, True)),
    ("unheard_of", LAYER + "mlp.experts.1.gate_proj.weight", (16, 32), Place(7, "gate", 1, True)),
    ("unheard_of", LAYER + "self_attn.qkv_proj.weight", (64, 32), Place(7, "other", None, False)),
]


@pytest.mark.parametrize(("model_type", "name", "shape", "place"), TABLE)
def test_place(model_type: str | None, name: str, shape: tuple[int, ...], place: Place) -> None:
    assert places(name, shape, model_type) == [place]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("module.model.norm.weight", "model.norm.weight"),
        ("module.module._orig_mod.model.norm.weight", "model.norm.weight"),
        ("base_model.model.model.norm.weight", "model.norm.weight"),
        ("model.layers.0._orig_mod.input_layernorm.weight", "model.layers.0.input_layernorm.weight"),
        ("model.layers.0._fsdp_wrapped_module.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("norm.weight", "model.norm.weight"),
        ("layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("vision_tower.x.weight", "model.vision_tower.x.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("strange.weight", "strange.weight"),
    ],
)
def test_prefixes_are_seen_through(stored: str, expected: str) -> None:
    assert canonical(stored) == expected


def test_the_vision_tower_is_not_taken_for_the_decoder() -> None:
    name = "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
    assert places(name, (32, 32), "gemma3") == [Place(None, "other", None, False)]


def test_heads_and_their_axis() -> None:
    def heads(module: str, shape: tuple[int, int]) -> tuple[int | None, int | None]:
        [piece] = locate(f"model.layers.0.{module}.weight", shape, {"model_type": "qwen3", **HEADS})
        return piece.heads, piece.head_axis

    assert heads("self_attn.q_proj", (32, 32)) == (4, 0)
    assert heads("self_attn.k_proj", (16, 32)) == (2, 0)
    assert heads("self_attn.v_proj", (16, 32)) == (2, 0)
    assert heads("self_attn.o_proj", (32, 32)) == (4, 1)
    assert heads("mlp.up_proj", (48, 32)) == (None, None)
    assert heads("self_attn.q_proj", (33, 32)) == (None, None)  # the axis does not divide: nothing is claimed
    [bare] = locate("model.layers.0.self_attn.q_proj.weight", (32, 32), {})
    assert (bare.heads, bare.head_axis) == (None, None)


def test_the_text_configuration_of_a_multimodal_model() -> None:
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **HEADS}}
    [piece] = locate("language_model.model.layers.0.self_attn.q_proj.weight", (32, 32), config)
    assert (piece.name, piece.heads) == ("model.layers.0.self_attn.q_proj.weight", 4)
    assert flat({"a": 1, "text_config": "nonsense"}) == {"a": 1, "text_config": "nonsense"}


def test_tied_by_declaration_or_by_family() -> None:
    assert is_tied({"model_type": "qwen2", "tie_word_embeddings": True}) is True
    assert is_tied({"model_type": "gpt2"}) is True
    assert is_tied({"model_type": "gpt2", "tie_word_embeddings": False}) is False
    assert is_tied({"model_type": "unheard_of"}) is None


def test_buffers() -> None:
    for name in (
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.original_inv_freq",
        "gpt_neox.layers.0.attention.masked_bias",
        "gpt_neox.layers.0.attention.bias",
        "transformer.h.3.attn.bias",
        "embeddings.position_ids",
    ):
        assert is_buffer(name), name
    for name in ("gpt_neox.layers.0.attention.dense.bias", "transformer.h.3.attn.c_attn.bias", "model.bias.weight"):
        assert not is_buffer(name), name


@pytest.mark.parametrize(
    ("name", "shape", "config", "message"),
    [
        ("self_attn.qkv_proj.weight", (60, 32), {}, "has 60 rows and the heads of config.json make 64"),
        ("self_attn.qkv_proj.weight", (64, 32), {"num_attention_heads": None}, "does not give its attention heads"),
        ("mlp.gate_up_proj.weight", (7, 32), {}, r"7 rows do not divide into 2 parts \(halves\)"),
        ("mlp.gate_up_proj.weight", (0, 32), {}, "it is empty"),
    ],
)
def test_a_fused_tensor_that_does_not_fit(name: str, shape: tuple[int, ...], config: dict, message: str) -> None:
    with pytest.raises(
        InputError, match=rf"cannot split the fused tensor .*{message}; check that config\.json belongs"
    ):
        places("model.layers.0." + name, shape, "phi3", **config)


def test_fused_experts_have_three_axes() -> None:
    with pytest.raises(InputError, match="fused experts have three axes and it has 2"):
        places("model.layers.0.mlp.experts.down_proj", (4, 32), "mixtral")


def test_a_transposed_weight_has_two_axes() -> None:
    with pytest.raises(InputError, match="it has 0 axes"):
        places("h.0.mlp.c_fc.weight", (), "gpt2")


def test_a_number_beyond_reason_is_no_layer() -> None:
    name = f"model.layers.{'9' * 5000}.mlp.up_proj.weight"
    assert places(name, (4, 4)) == [Place(None, "other", None, False)]


def test_more_axes_are_folded_for_other_tensors_only() -> None:
    [piece] = locate("model.visual.patch_embed.proj.weight", (16, 3, 2, 2), {})
    assert piece.shape == (16, 12)


KNOWN = [(row[0], row[1]) for row in TABLE] + [
    ("phi3", "model.layers.0.self_attn.qkv_proj.weight"),
    ("phi3", "model.layers.0.mlp.gate_up_proj.weight"),
    ("gpt2", "h.0.attn.c_attn.weight"),
    ("gpt2", "h.0.attn.c_attn.bias"),
    ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight"),
    ("mixtral", "model.layers.0.mlp.experts.gate_up_proj"),
]


@given(
    st.sampled_from(KNOWN) | st.tuples(st.sampled_from(sorted(FAMILIES)), st.text(max_size=10)),
    st.lists(st.integers(0, 40), max_size=4),
    st.dictionaries(
        st.sampled_from([*HEADS, "text_config", "tie_word_embeddings"]),
        st.integers(-2, 9) | st.text(max_size=2) | st.none() | st.dictionaries(st.text(), st.integers(), max_size=1),
    ),
)
@settings(max_examples=300)
def test_any_name_shape_and_config_is_placed_or_refused(
    known: tuple[str | None, str], shape: list[int], config: dict
) -> None:
    model_type, name = known
    config = {"model_type": model_type, **config}
    try:
        pieces = locate(name, shape, config)
    except OffprincipalError:
        return
    total = 1
    for size in shape:
        total *= size
    held = 0
    for piece in pieces:
        assert len(piece.shape) in (1, 2)
        count = 1
        for size in piece.shape:
            count *= size
        held += count
    assert held == total  # every element is in exactly one piece
    assert family_of(config).known == (model_type in FAMILIES)
