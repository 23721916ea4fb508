"""Export: the same D on the original base, exactly or with the error it reports; PEFT's own conversion as oracle."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.tiny import save_checkpoint, tiny_weights
from torch import Tensor, nn

from offprincipal.errors import InputError, UsageError
from offprincipal.train.adapters import export_adapter, init_adapter

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

TOKENS = torch.arange(20).reshape(2, 10)


def load(base: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def jiggle(model: nn.Module, scale: float = 0.02) -> None:
    """Trained-looking factors."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * scale)


def dense(folder: Path) -> dict[str, Tensor]:
    """D of every module in float64, as PEFT's configuration means it."""
    config = peft.LoraConfig.from_pretrained(str(folder))
    stored = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name, a in stored.items():
        if not name.endswith(".lora_A.weight"):
            continue
        path = name.removesuffix(".lora_A.weight").removeprefix("base_model.model.")
        alpha = next((v for k, v in config.alpha_pattern.items() if path.endswith(k)), config.lora_alpha)
        scaling = alpha / (len(a) ** 0.5 if config.use_rslora else len(a))
        found[path] = scaling * stored[name.replace("lora_A", "lora_B")].double() @ a.double()
    return found


def trained(base: Path, folder: Path, **options) -> Path:
    options = {
        "r": 4,
        "lora_alpha": 12,
        "target_modules": ["q_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
        **options,
    }
    model = peft.get_peft_model(load(base), peft.LoraConfig(**options))
    jiggle(model)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "geora", "off-principal"])
def test_ours_is_exported_bit_for_bit(checkpoint, tmp_path, method) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "init", method=method, rank=3, k=4)
    model = peft.PeftModel.from_pretrained(load(base), str(tmp_path / "init"), is_trainable=True)
    jiggle(model)
    model.save_pretrained(tmp_path / "trained")
    made = export_adapter(tmp_path / "trained", tmp_path / "out", init=tmp_path / "init")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("trained", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(made.errors.values()) == {0.0}
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    with torch.no_grad():
        expected = model.eval()(TOKENS).logits
        loaded = peft.PeftModel.from_pretrained(load(base), str(tmp_path / "out"))
        assert torch.equal(loaded(TOKENS).logits, expected)


def test_peft_s_pissa_becomes_plain_lora_on_the_original_base(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights="pissa"
    )
    model = peft.get_peft_model(load(base), config)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model.peft_config["default"], "init_lora_weights", True)
        model.save_pretrained(tmp_path / "init")
    jiggle(model)
    model.save_pretrained(tmp_path / "trained")
    with torch.no_grad():
        expected = model.eval()(TOKENS).logits
    with pytest.raises(InputError, match=r"it began as 'pissa', which took part of the base .*--init"):
        export_adapter(tmp_path / "trained", tmp_path / "out")
    made = export_adapter(tmp_path / "trained", tmp_path / "out", init=tmp_path / "init", base=str(base))
    assert set(made.ranks.values()) == {8}
    assert max(made.errors.values()) < 1e-6
    with torch.no_grad():
        found = peft.PeftModel.from_pretrained(load(base), str(tmp_path / "out"))(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "init"))
    theirs, ours = dense(tmp_path / "theirs"), dense(tmp_path / "out")
    for path, delta in ours.items():
        torch.testing.assert_close(delta, theirs[path], rtol=0, atol=1e-6)


OPTIONS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_every_scaling_survives(checkpoint, tmp_path, options) -> None:
    base = checkpoint("base")
    trained(base, tmp_path / "trained", **OPTIONS[options])
    made = export_adapter(tmp_path / "trained", tmp_path / "out")
    model = peft.PeftModel.from_pretrained(load(base), str(tmp_path / "trained"))
    again = peft.PeftModel.from_pretrained(load(base), str(tmp_path / "out"))
    for (name, one), (_, two) in zip(model.named_modules(), again.named_modules(), strict=True):
        if hasattr(one, "get_delta_weight"):
            torch.testing.assert_close(two.get_delta_weight("default"), one.get_delta_weight("default"), msg=name)
    assert made.summary["relative_error_max"] == 0.0


@settings(max_examples=8, deadline=None)
@given(rank=st.integers(1, 4))
def test_a_shortened_adapter_is_as_far_as_it_says(tmp_path_factory, rank) -> None:
    folder = tmp_path_factory.mktemp("short")
    base = save_checkpoint(folder / "base", tiny_weights())
    trained(base, folder / "trained")
    made = export_adapter(folder / "trained", folder / "out", rank=rank)
    before, after = dense(folder / "trained"), dense(folder / "out")
    for path, delta in before.items():
        s = torch.linalg.svdvals(delta)
        error = float((after[path] - delta).norm() / delta.norm())
        assert error == pytest.approx(made.errors[path], rel=1e-6, abs=1e-9)
        assert error == pytest.approx(float(s[rank:].norm() / s.norm()), rel=1e-3, abs=1e-6)
        assert made.ranks[path] == min(rank, 4)


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))


def test_what_cannot_be_exported_is_refused(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    folder = trained(base, tmp_path / "trained")
    with pytest.raises(UsageError, match="--rank is 0"):
        export_adapter(folder, tmp_path / "out", rank=0)
    with pytest.raises(InputError, match=r"there is no adapter_config.json; give a folder that PEFT"):
        export_adapter(base, tmp_path / "out")
    with pytest.raises(InputError, match="it holds an adapter; choose another folder"):
        export_adapter(folder, folder)
    with pytest.raises(InputError, match=r"has other modules \('model.layers.0.mlp.down_proj'\)"):
        export_adapter(folder, tmp_path / "out", init=trained(base, tmp_path / "fewer", target_modules=["q_proj"]))
    with pytest.raises(InputError, match="DoRA's update is not of low rank"):
        export_adapter(trained(base, tmp_path / "dora", use_dora=True), tmp_path / "out")
    with pytest.raises(InputError, match=r"'base_model.model.lm_head.weight' is no LoRA factor"):
        export_adapter(trained(base, tmp_path / "head", modules_to_save=["lm_head"]), tmp_path / "out")
    edit(folder, peft_type="IA3")
    with pytest.raises(InputError, match="peft_type is 'IA3'"):
        export_adapter(folder, tmp_path / "out")
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"adapter_config.json is not a JSON object"):
        export_adapter(folder, tmp_path / "out")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match=r"adapter_config.json cannot be read"):
        export_adapter(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_torn_adapters_are_refused(checkpoint, tmp_path) -> None:
    folder = trained(checkpoint("base"), tmp_path / "trained")
    file = folder / "adapter_model.safetensors"
    whole = load_file(file)
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    for words, tensors in (
        ("it has only one factor of 'model.layers.0.self_attn.q_proj'", {stem + "A.weight": torch.ones(4, 32)}),
        (
            r"the factors \[32, 3\] x \[4, 32\] of '.*q_proj' do not fit",
            whole | {stem + "B.weight": torch.ones(32, 3)},
        ),
        ("it holds no factor", {}),
    ):
        save_file(tensors, file)
        with pytest.raises(InputError, match=words):
            export_adapter(folder, tmp_path / "out")
    shaped = trained(checkpoint("base2"), tmp_path / "shaped")
    tensors = load_file(shaped / "adapter_model.safetensors")
    save_file(tensors | {stem + "A.weight": torch.ones(4, 30)}, shaped / "adapter_model.safetensors")
    save_file(whole, file)
    with pytest.raises(InputError, match=r"'model.layers.0.self_attn.q_proj' of .* has another shape"):
        export_adapter(folder, tmp_path / "out", init=shaped)
    file.unlink()
    with pytest.raises(InputError, match=r"there is no adapter_model.safetensors; save it with PEFT"):
        export_adapter(folder, tmp_path / "out")
