"""Transforms of small checkpoints: against their literal twins, stopped and resumed, mapped back, refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import offprincipal
from offprincipal import rewrite
from offprincipal.checkpoint import Checkpoint, open_checkpoint
from offprincipal.errors import CheckFailed, InputError, UsageError
from offprincipal.measures.seeds import torch_generator
from offprincipal.rewrite import Transform
from tests.tiny import CONFIG, save_checkpoint, tiny_weights

ROOT = Path(__file__).parents[2]
ATTENTION, MLP = "model.layers.1.self_attn.", "model.layers.1.mlp."
HEADS, GROUPS, SIZE = 4, 2, 8


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def step(weights: dict[str, torch.Tensor], size: float = 1e-4) -> dict[str, torch.Tensor]:
    """What training might have made of these weights."""
    noise = {n: torch.randn(w.shape, generator=torch_generator(9, n)) * size for n, w in weights.items()}
    return {n: (w.float() + noise[n]).to(w.dtype) for n, w in weights.items()}


def weights_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def test_rotate_is_the_formula_of_the_paper(checkpoint, tmp_path):
    base = open_checkpoint(checkpoint("base"))
    rewrite.rotate(base.ref, tmp_path / "out", layers=[1], per_group=True, dtype=torch.float64)
    after, transform = open_checkpoint(tmp_path / "out"), Transform.load(tmp_path / "out")
    blocks = transform.tensors()["turn.layers.1.values"]
    assert blocks.shape == (GROUPS, SIZE, SIZE)
    turn_kv = torch.block_diag(*blocks)
    turn_q = torch.block_diag(*(blocks[head // (HEADS // GROUPS)] for head in range(HEADS)))
    value, output = (base.read(f"{ATTENTION}{p}_proj.weight").double() for p in "vo")
    torch.testing.assert_close(after.read(f"{ATTENTION}v_proj.weight"), turn_kv.T @ value)
    torch.testing.assert_close(after.read(f"{ATTENTION}o_proj.weight"), output @ turn_q)
    for name, weight in weights_of(base).items():
        if name not in (f"{ATTENTION}v_proj.weight", f"{ATTENTION}o_proj.weight"):
            assert torch.equal(after.read(name), weight.double())
    for before, name in ((value, "v"), (output, "o")):  # I4: the spectrum stays
        now = after.read(f"{ATTENTION}{name}_proj.weight")
        torch.testing.assert_close(torch.linalg.svdvals(now), torch.linalg.svdvals(before))


def test_one_rotation_for_all_heads_unless_asked_otherwise(checkpoint, tmp_path):
    rewrite.rotate(checkpoint("base"), tmp_path / "out", basis="hadamard")
    numbers = Transform.load(tmp_path / "out").tensors()
    assert numbers.keys() == {"turn.layers.0.values", "turn.layers.1.values"}
    assert all(turn.shape == (1, SIZE, SIZE) for turn in numbers.values())
    assert not torch.equal(numbers["turn.layers.0.values"], numbers["turn.layers.1.values"])


def test_permute_moves_whole_heads_and_neurons(checkpoint, tmp_path):
    base = open_checkpoint(checkpoint("base"))
    rewrite.permute(base.ref, tmp_path / "out", seed=2)
    after, transform = open_checkpoint(tmp_path / "out"), Transform.load(tmp_path / "out")
    keys = transform.tensors()["order.layers.1.key_heads"]
    groups = (keys[::SIZE] // SIZE).tolist()
    heads = [g * 2 + member for g in groups for member in (0, 1)]
    for name, order in (("q", heads), ("k", groups), ("v", groups)):
        before, now = (c.read(f"{ATTENTION}{name}_proj.weight").view(-1, SIZE, 32) for c in (base, after))
        assert torch.equal(now, before[order])
    before, now = (c.read(f"{ATTENTION}o_proj.weight").view(32, HEADS, SIZE) for c in (base, after))
    assert torch.equal(now, before[:, heads])
    neurons = transform.tensors()["order.layers.1.mlp.neurons"]
    for name in ("gate", "up"):
        assert torch.equal(after.read(f"{MLP}{name}_proj.weight"), base.read(f"{MLP}{name}_proj.weight")[neurons])
    assert torch.equal(after.read(f"{MLP}down_proj.weight"), base.read(f"{MLP}down_proj.weight")[:, neurons])


@pytest.mark.parametrize(("heads", "neurons", "touched"), [(True, False, "qkvo"), (False, True, "gud")])
def test_permute_can_be_told_what(checkpoint, tmp_path, heads, neurons, touched):
    rewrite.permute(checkpoint("base"), tmp_path / "out", layers=[0], heads=heads, neurons=neurons)
    actions = Transform.load(tmp_path / "out").actions
    assert {name.rsplit(".", 2)[1][0] for name in actions} == set(touched)


def test_a_permuted_tune_comes_back_bit_for_bit(checkpoint, tmp_path):
    base = open_checkpoint(checkpoint("base"))
    rewrite.permute(base.ref, tmp_path / "moved")
    tune = step(weights_of(open_checkpoint(tmp_path / "moved")))
    save_checkpoint(tmp_path / "tuned", tune)
    record = rewrite.map_back(tmp_path / "moved", tmp_path / "tuned", tmp_path / "back")
    assert record["options"] == {"undoes": "permute"}
    back, transform = open_checkpoint(tmp_path / "back"), Transform.load(tmp_path / "moved")
    for name, weight in tune.items():
        assert torch.equal(back.read(name), transform.undo(name, weight, weight.dtype))
        assert torch.equal(transform.apply(name, back.read(name), weight.dtype), weight)
    moved = {name for name, weight in tune.items() if not torch.equal(weight, back.read(name))}
    assert moved == set(transform.actions)


def test_a_rotated_tune_comes_back_as_base_plus_the_change_undone(checkpoint, tmp_path):
    base = open_checkpoint(checkpoint("base"))
    rewrite.rotate(base.ref, tmp_path / "turned", layers=[1])
    start = weights_of(open_checkpoint(tmp_path / "turned"))
    save_checkpoint(tmp_path / "tuned", step(start))
    rewrite.map_back(tmp_path / "turned", tmp_path / "tuned", tmp_path / "back")
    back = open_checkpoint(tmp_path / "back")
    turn = torch.block_diag(*Transform.load(tmp_path / "turned").tensors()["turn.layers.1.values"].expand(2, -1, -1))
    name = f"{ATTENTION}v_proj.weight"
    change = step(start)[name].double() - start[name].double()
    assert back.read(name).dtype == torch.float32  # rounded to bfloat16 most of it would be gone
    torch.testing.assert_close(
        back.read(name).double(), base.read(name).double() + turn @ change, atol=1e-8, rtol=1e-6
    )
    assert torch.equal(back.read(f"{MLP}up_proj.weight"), step(start)[f"{MLP}up_proj.weight"])
    result = offprincipal.compare(base.ref, {"back": tmp_path / "back"}, geometry=False)
    assert result.summary["runs"][0]["unpaired_count"] == 0
    rewrite.map_back(tmp_path / "turned", tmp_path / "tuned", tmp_path / "short", dtype=torch.bfloat16)
    assert {info.dtype for info in open_checkpoint(tmp_path / "short").tensors.values()} == {"BF16"}


def test_a_residual_rotation_comes_back_too_if_norms_were_frozen(tmp_path):
    config = {**CONFIG, "tie_word_embeddings": True}
    weights = tiny_weights()
    weights.pop("lm_head.weight")
    for name in weights:
        if "norm" in name:
            weights[name] = weights[name] + 1
    base = save_checkpoint(tmp_path / "base", weights, config)
    rewrite.rotate_residual(base, tmp_path / "turned", dtype=torch.float64)
    turned = open_checkpoint(tmp_path / "turned")
    assert turned.config["tie_word_embeddings"] is False
    assert turned.config["dtype"] == "float64"
    assert (turned.read("model.norm.weight") == 1).all()
    turn = Transform.load(tmp_path / "turned").tensors()["turn.residual"][0]
    embedding, final = (weights[f"model.{name}.weight"].double() for name in ("embed_tokens", "norm"))
    torch.testing.assert_close(turned.read("lm_head.weight"), embedding * final @ turn)
    tuned = {n: w if "norm" in n else w + 0.01 * w.roll(1, 0) for n, w in weights_of(turned).items()}
    save_checkpoint(tmp_path / "tuned", tuned, dict(turned.config))
    rewrite.map_back(tmp_path / "turned", tmp_path / "tuned", tmp_path / "back")
    back, transform = weights_of(open_checkpoint(tmp_path / "back")), Transform.load(tmp_path / "turned")
    for name, weight in tuned.items():
        torch.testing.assert_close(transform.apply(name, back[name], torch.float64), weight)
    tuned["model.norm.weight"] = tuned["model.norm.weight"] * 1.01
    save_checkpoint(tmp_path / "scaled", tuned, dict(turned.config))
    with pytest.raises(InputError, match=r"model\.norm\.weight was trained: a scale in rotated coordinates"):
        rewrite.map_back(tmp_path / "turned", tmp_path / "scaled", tmp_path / "no")


def test_masks_come_back_through_permutations_only(checkpoint, tmp_path):
    base = open_checkpoint(checkpoint("base"))
    rewrite.permute(base.ref, tmp_path / "moved")
    rewrite.rotate(base.ref, tmp_path / "turned", layers=[1])
    transform, name = Transform.load(tmp_path / "moved"), f"{MLP}down_proj.weight"
    mask = base.read(name) > 0
    moved = open_checkpoint(tmp_path / "moved").read(name) > 0
    assert torch.equal(transform.mask_back(name, moved), mask)
    assert torch.equal(transform.mask_back("lm_head.weight", mask), mask)
    with pytest.raises(UsageError, match=r"the tensor was rotated.*map the checkpoint back"):
        Transform.load(tmp_path / "turned").mask_back(f"{ATTENTION}v_proj.weight", mask)


@pytest.mark.parametrize(
    "killed_at", [pytest.param(1, marks=pytest.mark.slow), 11, pytest.param(21, marks=pytest.mark.slow)]
)
def test_killed_it_goes_on_with_the_same_bytes(checkpoint, tmp_path, killed_at):
    base = checkpoint("base")
    rewrite.rotate(base, tmp_path / "whole", shard_bytes=4000)
    program = (
        "import os; from offprincipal import rewrite; "
        f"rewrite.rotate({str(base)!r}, {str(tmp_path / 'part')!r}, shard_bytes=4000, "
        f"progress=lambda done, total, name: os.kill(os.getpid(), 9) if done == {killed_at} else None)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == -9
    with pytest.raises(InputError):
        open_checkpoint(tmp_path / "part")
    rewrite.rotate(base, tmp_path / "part", shard_bytes=4000)
    assert files(tmp_path / "part") == files(tmp_path / "whole")
    rewrite.rotate(base, tmp_path / "part", shard_bytes=4000)  # nothing left to do
    assert files(tmp_path / "part") == files(tmp_path / "whole")
    with pytest.raises(InputError, match=r"of another job \(different seed\)"):
        rewrite.rotate(base, tmp_path / "part", seed=1, shard_bytes=4000)


def test_spectral_edits_touch_linear_weights_of_the_chosen_layers(checkpoint, tmp_path):
    base, tuned = checkpoint("base"), checkpoint("rl", delta=1e-3)
    before, after = open_checkpoint(base), open_checkpoint(tuned)
    for what, call in {
        "restored": lambda out: rewrite.restore_spectrum(base, tuned, out, layers=[1], dtype=torch.float64),
        "swapped": lambda out: rewrite.swap_spectrum(base, tuned, out, layers=[1], dtype=torch.float64),
        "rank": lambda out: rewrite.keep_rank(base, tuned, out, 2, layers=[1], dtype=torch.float64),
    }.items():
        record = call(tmp_path / what)
        assert record["tuned"]["content_xxh3"]
        for name, now in weights_of(open_checkpoint(tmp_path / what)).items():
            old, new = before.read(name).double(), after.read(name).double()
            if ".layers.1." not in name or now.dim() < 2:
                assert torch.equal(now, new)
            elif what == "rank":
                assert torch.linalg.matrix_rank(now - old, rtol=1e-9) == 2
            else:
                wanted = old if what == "restored" else new
                torch.testing.assert_close(torch.linalg.svdvals(now), torch.linalg.svdvals(wanted))


def test_scale_reaches_every_weight_or_those_of_a_layer(checkpoint, tmp_path):
    base, tuned = checkpoint("base"), checkpoint("rl", delta=1e-3)
    before, after = (weights_of(open_checkpoint(ref)) for ref in (base, tuned))
    rewrite.scale(base, tuned, tmp_path / "none", 0.0)
    rewrite.scale(base, tuned, tmp_path / "same", 1.0)
    rewrite.scale(base, tuned, tmp_path / "one", 0.0, layers=[0])
    for name in before:
        none, same, one = (open_checkpoint(tmp_path / out).read(name) for out in ("none", "same", "one"))
        assert torch.equal(none, before[name])
        assert torch.equal(same, after[name])
        assert torch.equal(one, (before if ".layers.0." in name else after)[name])


def test_a_tied_head_that_is_stored_is_edited_like_its_embedding(tmp_path):
    config = {**CONFIG, "tie_word_embeddings": True}
    sides = []
    for name, weights in (("base", tiny_weights()), ("tuned", tiny_weights(1e-3))):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        sides.append(save_checkpoint(tmp_path / name, weights, config))
    rewrite.scale(*sides, tmp_path / "out", 3.0)
    out = open_checkpoint(tmp_path / "out")
    assert torch.equal(out.read("lm_head.weight"), out.read("model.embed_tokens.weight"))


def test_round_changes_the_type_of_weights_and_says_so(checkpoint, tmp_path):
    wide = checkpoint("wide", dtype=torch.float32)
    record = rewrite.round_weights(wide, tmp_path / "out", torch.bfloat16)
    assert record["what"] == "round"
    assert "seed" not in record or record["seed"] is None
    out = open_checkpoint(tmp_path / "out")
    assert out.config["dtype"] == "bfloat16"
    for name, weight in weights_of(open_checkpoint(wide)).items():
        assert torch.equal(out.read(name), weight.bfloat16())
    weights = tiny_weights(dtype=torch.float32)
    weights["model.norm.weight"][3] = 1e6
    weights["model.rotary_emb.inv_freq"] = torch.ones(4, dtype=torch.float32)
    large = save_checkpoint(tmp_path / "large", weights)
    rewrite.round_weights(large, tmp_path / "kept", torch.bfloat16)
    assert open_checkpoint(tmp_path / "kept").tensors["model.rotary_emb.inv_freq"].dtype == "F32"  # a constant
    with pytest.raises(InputError, match="1 weights are larger than its largest value 65504"):
        rewrite.round_weights(large, tmp_path / "half", torch.float16)
    assert not list(tmp_path.glob("half/*.safetensors"))


def test_what_lies_beside_the_weights_goes_along(checkpoint, tmp_path):
    base = checkpoint("base")
    kept = {"tokenizer.json": "{}", "generation_config.json": "{}", "chat_template.jinja": "x", "LICENSE": "mine"}
    for name, text in {
        **kept,
        "run.json": "{}",
        "README.md": "---\nlicense: mit\ntags: [a]\n---\n# Base\n\nText.\n",
    }.items():
        (base / name).write_text(text)
    rewrite.rotate(base, tmp_path / "out", layers=[1], command="offprincipal transform rotate base --layers 1")
    assert {name: (tmp_path / "out" / name).read_text() for name in kept} == kept
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert not (tmp_path / "out" / "run.json").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    for words in (
        "license: mit",
        "- a\n- offprincipal",
        "# Base\n\nText.",
        "    offprincipal transform rotate base",
        "seed: `0`",
    ):
        assert words in card
    record = json.loads((tmp_path / "out" / "transform.json").read_text())
    assert record["schema_version"] == 1
    assert (record["what"], record["seed"], record["layers"]) == ("rotate", 0, [1])
    assert record["base"]["ref"] == str(base)
    assert len(record["base"]["content_xxh3"]) == 32
    (base / "README.md").write_text("---\n: [\n---\n# Base\n")
    rewrite.rotate(base, tmp_path / "again")
    assert "# Base" in (tmp_path / "again" / "README.md").read_text()


def test_a_single_file_can_be_read(tmp_path):
    base = save_checkpoint(tmp_path / "one", tiny_weights(), shards=1)
    (base / "model.safetensors.index.json").unlink()
    file = (base / "model-00001-of-00001.safetensors").rename(base / "model.safetensors")
    rewrite.rotate(file, tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").config["model_type"] == "llama"
    with pytest.raises(UsageError, match=r"is no whole model \(file\)"):
        rewrite.rotate(file, tmp_path / "verified", verify=True)


def damaged(tmp_path: Path, weights=None, **config) -> Path:
    return save_checkpoint(tmp_path / "damaged", tiny_weights() if weights is None else weights, {**CONFIG, **config})


def without(*names: str) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in tiny_weights().items() if name not in names}


def biased(*kinds: str) -> dict[str, torch.Tensor]:
    rows = {"q": 32, "k": 16, "v": 16, "gate": 48, "up": 48}
    return tiny_weights() | {
        f"model.layers.{layer}.{'self_attn' if kind in 'qkv' else 'mlp'}.{kind}_proj.bias": torch.ones(
            rows[kind]
        ).bfloat16()
        for layer in (0, 1)
        for kind in kinds
    }


BAD = {
    "unknown family": (lambda t: damaged(t, model_type="mamba"), "model_type 'mamba', which no table"),
    "no config": (lambda t: save_checkpoint(t / "d", tiny_weights(), {}), "model_type None, which"),
    "heads": (lambda t: damaged(t, num_key_value_heads=3), "does not divide into heads"),
    "head_dim": (lambda t: damaged(t, head_dim=4), "4 query heads, 2 key/value heads, head_dim 4"),
    "groups": (lambda t: damaged(t, num_attention_heads=8), "they do not group"),
    "no value": (lambda t: damaged(t, without(f"{ATTENTION}v_proj.weight")), "layer 1 has no value projection"),
    "no output": (lambda t: damaged(t, without(f"{ATTENTION}o_proj.weight")), "no output projection"),
    "some biases": (lambda t: damaged(t, biased("q", "k")), r"layer 0 has no .*v_proj\.bias, though"),
    "declared biases": (lambda t: damaged(t, attention_bias=True), r"has no .*k_proj\.bias, though"),
    "qwen2 without": (lambda t: damaged(t, model_type="qwen2"), r"has no .*k_proj\.bias, though"),
    "other part": (
        lambda t: damaged(t, tiny_weights() | {f"{ATTENTION}v_norm.weight": torch.ones(8)}),
        r"layer 1 holds model\.layers\.1\.self_attn\.v_norm\.weight, and no table says",
    ),
    "no blocks": (lambda t: damaged(t, {"model.norm.weight": torch.ones(32)}), "it has no numbered blocks"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_rotated_is_refused_with_the_reason(what, tmp_path):
    make, words = BAD[what]
    base = make(tmp_path)
    with pytest.raises(InputError, match=words):
        rewrite.rotate(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_biases_turn_with_their_weights(tmp_path):
    base = damaged(tmp_path, biased("q", "k", "v", "gate", "up"))
    rewrite.rotate(base, tmp_path / "turned")
    rewrite.permute(base, tmp_path / "moved", seed=1)
    assert f"{ATTENTION}v_proj.bias" in Transform.load(tmp_path / "turned").actions
    names = set(Transform.load(tmp_path / "moved").actions)
    assert {f"{ATTENTION}{n}_proj.bias" for n in "qkv"} | {f"{MLP}{n}_proj.bias" for n in ("gate", "up")} <= names


def test_other_bad_requests(checkpoint, tmp_path):
    base, tuned = checkpoint("base"), checkpoint("rl", delta=1e-3)
    with pytest.raises(UsageError, match="there is no layer 2: the model has layers 0 to 1"):
        rewrite.rotate(base, tmp_path / "out", layers=[0, 2])
    with pytest.raises(UsageError, match="there is no basis 'fourier'; choose one of haar, hadamard"):
        rewrite.rotate(base, tmp_path / "out", basis="fourier")
    with pytest.raises(UsageError, match="neither heads nor neurons"):
        rewrite.permute(base, tmp_path / "out", heads=False, neurons=False)
    with pytest.raises(UsageError, match="cannot keep rank -1"):
        rewrite.keep_rank(base, tuned, tmp_path / "out", -1)
    with pytest.raises(UsageError, match="nothing to verify"):
        rewrite.scale(base, tuned, tmp_path / "out", 2.0, verify=True)
    with pytest.raises(UsageError, match="there is no layer 7"):
        rewrite.scale(base, tuned, tmp_path / "out", 2.0, layers=[7])
    with pytest.raises(InputError, match=r"is where .* lies; choose another folder"):
        rewrite.rotate(base, base)
    with pytest.raises(InputError, match=r"is where .* lies; choose another folder"):
        rewrite.scale(base, tuned, tuned, 2.0)
    shorter = save_checkpoint(tmp_path / "shorter", {**tiny_weights(), f"{MLP}up_proj.weight": torch.ones(40, 32)})
    with pytest.raises(InputError, match=r"up_proj\.weight has no partner in .*shapes differ"):
        rewrite.scale(shorter, tuned, tmp_path / "out", 2.0)
    with pytest.raises(InputError, match=r"up_proj\.weight has 40 rows and .*down_proj\.weight 48 columns"):
        rewrite.permute(shorter, tmp_path / "out")
    extra = save_checkpoint(tmp_path / "extra", tiny_weights() | {"model.extra.weight": torch.ones(2)})
    with pytest.raises(InputError, match=r"model\.extra\.weight has no partner"):
        rewrite.swap_spectrum(base, extra, tmp_path / "out")
    with pytest.raises(InputError, match="may write into the residual stream"):
        rewrite.rotate_residual(extra, tmp_path / "out")
    hole = tiny_weights()
    hole[f"{MLP}up_proj.weight"][0, 0] = torch.nan
    with pytest.raises(InputError, match=r"cannot edit model\.layers\.1\.mlp\.up_proj\.weight: it has NaN"):
        rewrite.keep_rank(base, save_checkpoint(tmp_path / "hole", hole), tmp_path / "out2", 1)


@pytest.mark.parametrize(
    ("dropped", "words"),
    [
        ("model.norm.weight", "there is no model.norm.weight"),
        ("model.embed_tokens.weight", "there is no model.embed_tokens.weight"),
        ("lm_head.weight", "there is no lm_head.weight"),
    ],
)
def test_a_residual_stream_needs_all_its_ends(tmp_path, dropped, words):
    with pytest.raises(InputError, match=words):
        rewrite.rotate_residual(damaged(tmp_path, without(dropped)), tmp_path / "out")


def test_a_scale_of_zero_cannot_be_folded(tmp_path):
    weights = tiny_weights()
    weights["model.norm.weight"][5] = 0
    with pytest.raises(InputError, match=r"model\.norm\.weight has scales of zero"):
        rewrite.rotate_residual(damaged(tmp_path, weights), tmp_path / "out")


def test_map_back_refuses_what_does_not_belong_together(checkpoint, tmp_path):
    base, other = checkpoint("base"), checkpoint("other", delta=0.1)
    rewrite.rotate(base, tmp_path / "turned")
    rewrite.scale(base, other, tmp_path / "scaled", 2.0)
    turned = tmp_path / "turned"
    with pytest.raises(InputError, match=r"transform\.json cannot be read"):
        rewrite.map_back(base, turned, tmp_path / "out")
    with pytest.raises(InputError, match="scale is no change of coordinates"):
        rewrite.map_back(tmp_path / "scaled", turned, tmp_path / "out")
    with pytest.raises(
        InputError, match="is not what the transform makes of this base; give the original base with --base"
    ):
        rewrite.map_back(turned, turned, tmp_path / "out", base=other)
    fewer = save_checkpoint(tmp_path / "fewer", without("lm_head.weight"))
    with pytest.raises(InputError, match=r"the original base has no lm_head\.weight of shape"):
        rewrite.map_back(turned, turned, tmp_path / "out", base=fewer)
    with pytest.raises(UsageError, match="is compared, not verified"):
        rewrite.map_back(turned, turned, tmp_path / "out", verify=True)
    base.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="the original base cannot be opened"):
        rewrite.map_back(turned, turned, tmp_path / "out")
    rewrite.map_back(turned, turned, tmp_path / "out", base=tmp_path / "moved")
    numbers = turned / "transform" / "transform.safetensors"
    numbers.write_bytes(numbers.read_bytes()[:100])
    with pytest.raises(InputError, match="it is damaged"):
        rewrite.map_back(turned, turned, tmp_path / "out2", base=tmp_path / "moved")
    numbers.unlink()
    with pytest.raises(InputError, match="it is damaged"):
        Transform.load(turned)
    (turned / "transform.json").write_text('{"schema_version": 99}')
    with pytest.raises(InputError, match="no record of schema version 1"):
        Transform.load(turned)


@pytest.mark.parametrize(
    "numbers", [{"order.x": torch.tensor([0, 0])}, {"turn.x": torch.ones(2, 2)}, {"odd.x": torch.ones(2)}]
)
def test_numbers_that_are_no_change_are_refused(checkpoint, tmp_path, numbers):
    from safetensors.torch import save_file

    rewrite.permute(checkpoint("base"), tmp_path / "out")
    save_file(numbers, tmp_path / "out" / "transform" / "transform.safetensors")
    with pytest.raises(InputError, match="it is damaged"):
        Transform.load(tmp_path / "out")


def test_a_function_that_is_not_preserved_is_said(tmp_path):
    from offprincipal.rewrite._verify import check

    for relative in (1e-9, float("nan")):
        with pytest.raises(CheckFailed, match="of the largest in float64, and 1e-10 is allowed"):
            check({"float64": {"max_relative": relative}}, tmp_path)


def test_verify_says_what_it_needs(checkpoint, tmp_path, monkeypatch):
    base = checkpoint("base")
    broken = damaged(tmp_path, vocab_size=None)
    with pytest.raises(InputError, match=r"config.json gives no vocab_size"):
        rewrite.rotate(broken, tmp_path / "one", verify=True)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"transformers is not installed; run: pip install 'offprincipal\[hf\]'"):
        rewrite.rotate(base, tmp_path / "two", verify=True)
    assert sorted(os.listdir(tmp_path)) == ["base", "damaged", "one", "two"]  # no float64 copy stays


def test_a_checkpoint_that_transformers_cannot_load_is_said(tmp_path):
    pytest.importorskip("transformers")
    base = damaged(tmp_path, vocab_size=51)
    with pytest.raises(InputError, match="transformers cannot load"):
        rewrite.rotate(base, tmp_path / "out", verify=True)
