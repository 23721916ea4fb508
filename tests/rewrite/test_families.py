"""Every family, every transform: the same logits in float64, or refused with the reason."""

import pytest
import torch

from offprincipal import rewrite
from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError
from tests.rewrite.families import FAMILIES, make

pytest.importorskip("transformers")

LATENT = "has latent attention: its values come from one projection together with the keys"
POST = "cannot be rotated: its .* a norm that a fold cannot pass"
LAYER = "cannot be rotated: LayerNorm subtracts the mean"
REFUSED = {
    ("deepseek_v3", "rotate"): LATENT,
    ("deepseek_v3", "permute"): LATENT,
    ("gemma2", "residual"): POST,
    ("gemma3_text", "residual"): POST,
    ("olmo2", "residual"): POST,
    ("gpt2", "residual"): LAYER,
    ("gpt_neox", "residual"): LAYER,
}
TRANSFORMS = {
    "rotate": lambda base, out: rewrite.rotate(base, out, verify=True),
    "groups": lambda base, out: rewrite.rotate(base, out, verify=True, basis="hadamard", per_group=True, layers=[1]),
    "permute": lambda base, out: rewrite.permute(base, out, verify=True),
    "neurons": lambda base, out: rewrite.permute(base, out, verify=True, heads=False),
    "residual": lambda base, out: rewrite.rotate_residual(base, out, verify=True),
}
REFUSED[("deepseek_v3", "groups")] = LATENT
NAMED = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "qwen3_moe", "phi3")
QUICK = [(family, what) for family in NAMED for what in ("rotate", "permute", "residual")]
ALL = [(family, what) for family in FAMILIES for what in TRANSFORMS]


@pytest.mark.parametrize(
    ("family", "what"),
    [each if each in QUICK else pytest.param(*each, marks=pytest.mark.slow) for each in ALL],
)
def test_the_function_is_preserved_or_the_transform_refused(family, what, tmp_path):
    base = make(family, tmp_path / "base")
    before = open_checkpoint(base)
    reason = REFUSED.get((family, what))
    if reason:
        with pytest.raises(InputError, match=reason):
            TRANSFORMS[what](base, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    found = TRANSFORMS[what](base, tmp_path / "out")["verify"]
    assert found["float64"]["max_relative"] <= 1e-10
    assert found["float64"]["argmax_agreement"] == 1
    assert found["float32"]["max_relative"] < 1e-4
    assert found["rounding"]["max_relative"] < (1e-10 if what in ("permute", "neurons") else 0.3)
    after = open_checkpoint(tmp_path / "out")
    assert {name: info.dtype for name, info in before.tensors.items()}.items() <= {
        name: info.dtype for name, info in after.tensors.items()
    }.items()
    changed = [name for name in before.tensors if not torch.equal(before.read(name), after.read(name))]
    assert changed
    if what == "groups":
        assert all(".1." in name for name in changed)
