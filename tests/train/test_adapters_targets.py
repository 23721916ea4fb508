"""Which modules an adapter sits on, family by family, from headers alone."""

import pytest

from offprincipal.checkpoint import Checkpoint, TensorInfo
from offprincipal.checkpoint._source import Stored
from offprincipal.errors import InputError, UsageError
from offprincipal.train.adapters import choose

LAYER = "model.layers.0."
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32, "head_dim": 8}
ATTENTION = {f"{LAYER}self_attn.{name}_proj.weight": (32, 32) for name in "qkvo"}
DENSE = {f"{LAYER}mlp.{name}_proj.weight": (48, 32) for name in ("gate", "up")} | {
    f"{LAYER}mlp.down_proj.weight": (32, 48)
}
OUTSIDE = {"model.embed_tokens.weight": (50, 32), "lm_head.weight": (50, 32), "model.norm.weight": (32,)}
NORMS = {f"{LAYER}input_layernorm.weight": (32,), f"{LAYER}self_attn.q_proj.bias": (32,)}
EXPERTS = {f"{LAYER}mlp.experts.{i}.gate_proj.weight": (16, 32) for i in range(2)}


def base(shapes: dict[str, tuple[int, ...]], model_type: str = "llama") -> Checkpoint:
    sources = {name: Stored(TensorInfo(name, shape, "BF16", "/none", 0, 0)) for name, shape in shapes.items()}
    return Checkpoint("base", "folder", None, sources, {"model_type": model_type, **HEADS})


def paths(found) -> list[str]:
    return [module.path.removeprefix(LAYER) for module in found.modules]


def test_all_linear_is_every_matrix_of_a_block_and_nothing_else() -> None:
    found = choose(base({**ATTENTION, **DENSE, **OUTSIDE, **NORMS}))
    assert sorted(paths(found)) == sorted(
        [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    )
    assert found.words == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert found.left_out == ()
    assert {module.shape for module in found.modules} == {(32, 32), (48, 32), (32, 48)}


@pytest.mark.parametrize("target", ["q,down", "q_proj, down_proj", "q,down_proj,"])
def test_kinds_and_module_names_mean_the_same(target) -> None:
    found = choose(base({**ATTENTION, **DENSE, **OUTSIDE}), target)
    assert paths(found) == ["self_attn.q_proj", "mlp.down_proj"]
    assert found.words == ("down_proj", "q_proj")


def test_a_fused_projection_is_one_module() -> None:
    shapes = {f"{LAYER}self_attn.qkv_proj.weight": (64, 32), f"{LAYER}mlp.gate_up_proj.weight": (96, 32), **OUTSIDE}
    phi = base(shapes, "phi3")
    assert paths(choose(phi)) == ["self_attn.qkv_proj", "mlp.gate_up_proj"]
    assert choose(phi, "qkv_proj").modules[0].shape == (64, 32)
    with pytest.raises(
        UsageError, match=r"one part of the fused module 'qkv_proj'; PEFT adapts it whole: --target qkv"
    ):
        choose(phi, "q")


def test_a_transposed_weight_is_seen_through() -> None:
    found = choose(base({"h.0.mlp.c_fc.weight": (32, 128), "h.0.attn.c_attn.weight": (32, 96)}, "gpt2"))
    assert [(module.path, module.shape, module.transposed) for module in found.modules] == [
        ("transformer.h.0.mlp.c_fc", (128, 32), True),
        ("transformer.h.0.attn.c_attn", (96, 32), True),
    ]


def test_experts_and_routers_are_left_out_with_a_reason_or_refused_by_name() -> None:
    mixture = base({**ATTENTION, **EXPERTS, f"{LAYER}mlp.gate.weight": (2, 32)}, "qwen3_moe")
    found = choose(mixture)
    assert sorted(paths(found)) == [f"self_attn.{x}_proj" for x in "koqv"]
    reasons = dict(found.left_out)
    assert "one fused parameter" in reasons[f"{LAYER}mlp.experts.0.gate_proj.weight"]
    assert "router" in reasons[f"{LAYER}mlp.gate.weight"]
    with pytest.raises(InputError, match=r"experts.0.gate_proj.weight.*one fused parameter.*train it with a mask"):
        choose(mixture, "gate")
    fused = base({**ATTENTION, f"{LAYER}mlp.experts.gate_up_proj": (2, 32, 32)}, "qwen3_moe")
    assert [name for name, _ in choose(fused).left_out] == [f"{LAYER}mlp.experts.gate_up_proj"]


def test_words_never_name_a_weight_that_was_not_chosen() -> None:
    shared = {f"{LAYER}mlp.shared_expert.gate_proj.weight": (16, 32)}
    found = choose(base({**shared, **EXPERTS, **ATTENTION}, "qwen2_moe"))
    assert "mlp.shared_expert.gate_proj" in found.words
    assert "gate_proj" not in found.words
    tower = {"model.visual.blocks.0.self_attn.q_proj.weight": (32, 32)}
    inside = {name.replace("model.", "model.language_model.", 1): shape for name, shape in ATTENTION.items()}
    found = choose(base({**tower, **inside}, "gemma3"), "q")
    assert found.words == ("model.language_model.layers.0.self_attn.q_proj",)
    assert found.modules[0].path == "model.language_model.layers.0.self_attn.q_proj"


def test_wrappers_and_a_missing_root_do_not_reach_the_path() -> None:
    found = choose(base({"module._orig_mod.layers.0.self_attn.q_proj.weight": (32, 32)}))
    assert found.modules[0].path == f"{LAYER}self_attn.q_proj"


def test_what_cannot_be_adapted_is_said() -> None:
    with pytest.raises(UsageError, match=r"no module is called that; choose all-linear or some of down, down_proj"):
        choose(base({**DENSE}), "attention")
    with pytest.raises(
        InputError, match=r"no module can be adapted \(it has no linear module inside a numbered block\)"
    ):
        choose(base(OUTSIDE))
    with pytest.raises(InputError, match=r"no module can be adapted \(nothing declares what this weight does\)"):
        choose(base({f"{LAYER}mixer.in_proj.weight": (32, 32)}))
