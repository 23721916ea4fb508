"""The gates of one step, against the definitions written out."""

import pytest
import torch
from torch import nn

from offprincipal import geometry
from offprincipal.factors import FactorCache
from offprincipal.lab.settings import PRESETS
from offprincipal.lab.world import make_decoder, make_tokenizer
from offprincipal.measures import bits
from offprincipal.train.prompts import Prompts
from offprincipal.train.watch import Watch

# PEFT 0.21 reads the old name of a property that transformers 5.2x renamed
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def decoder() -> nn.Module:
    model = make_decoder(PRESETS["micro"].decoder, make_tokenizer(), seed=0)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


def _step(model: nn.Module, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)


def test_counts_and_norms_are_those_of_the_definitions(decoder: nn.Module) -> None:
    base = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    watch = Watch(decoder, matrices=0)
    _step(decoder, 1e-3, 1)
    before = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    watch.before_step()
    _step(decoder, 1e-4, 2)
    found = watch.after_step()
    after = {name: p.detach() for name, p in decoder.named_parameters()}
    for group, chosen in {
        "all": list(after),
        "q": ["model.layers.0.self_attn.q_proj.weight"],
        "linear": [name for name, p in after.items() if "layers" in name and p.ndim == 2],
    }.items():
        n = sum(after[name].numel() for name in chosen)
        step = sum(int(bits.changed(before[name], after[name]).sum()) for name in chosen)
        whole = sum(int(bits.changed(base[name], after[name]).sum()) for name in chosen)
        norm = sum(float((after[name].double() - base[name].double()).square().sum()) for name in chosen) ** 0.5
        size = sum(float(base[name].double().square().sum()) for name in chosen) ** 0.5
        assert found[f"step_changed/{group}"] == step / n
        assert found[f"changed/{group}"] == whole / n
        assert found[f"delta_norm/{group}"] == pytest.approx(norm)
        assert found[f"relative_delta_norm/{group}"] == pytest.approx(norm / size)
        assert 0 < found[f"step_norm/{group}"] < found[f"delta_norm/{group}"]
        assert found[f"density/{group}"] == pytest.approx(1, abs=1e-3)
    assert {name.split("/")[1] for name in found} == {
        "all", "linear", "q", "k", "v", "o", "gate", "up", "down", "embed", "norm",
    }  # fmt: skip
    assert "step_norm/all" not in watch.after_step()  # the step was not announced


def test_energy_finds_a_planted_direction_and_nss_is_that_of_a_full_decomposition() -> None:
    model = _One(torch.randn(24, 16, generator=torch.Generator().manual_seed(0)))
    base = model.weight.detach().double().clone()
    u, s, v = torch.linalg.svd(base, full_matrices=False)
    watch = Watch(model, rank=4, cache=False)
    model.weight.data += (0.01 * u[:, :4] @ torch.randn(4, 4).double() @ v[:4]).float()
    found = watch.after_step()
    assert found["energy_both/q"] == pytest.approx(1, abs=1e-4)
    assert found["energy_off/q"] == pytest.approx(0, abs=1e-4)
    assert found["energy_both_lift/q"] == pytest.approx(24 * 16 / 16, rel=1e-3)
    shifted = torch.linalg.svdvals(model.weight.detach().double())
    assert found["nss/q"] == pytest.approx(float((shifted - s).norm() / s.norm()), rel=1e-6)
    model.weight.data = (base + 0.01 * u[:, 4:8] @ torch.randn(4, 4).double() @ v[:4]).float()
    found = watch.after_step()
    assert found["energy_left/q"] == pytest.approx(0, abs=1e-4)
    assert found["energy_right/q"] == pytest.approx(1, abs=1e-4)
    assert found["energy_right_lift/q"] == pytest.approx(4, rel=1e-3)


class _One(nn.Module):
    """A model of one query projection."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"self_attn": nn.ModuleDict()})])})
        self.model["layers"][0]["self_attn"]["q_proj"] = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.weight = self.model["layers"][0]["self_attn"]["q_proj"].weight  # type: ignore[assignment]
        self.weight.data = weight

    def named_parameters(self, *args, **kwargs):  # the short name is for the test alone
        return [("model.layers.0.self_attn.q_proj.weight", self.weight)]


def test_matrices_take_turns_and_an_unmoved_one_has_no_directions(decoder: nn.Module) -> None:
    watch = Watch(decoder, matrices=2, cache=False)
    seen = []
    for _ in range(4):
        found = watch.after_step()
        seen += [name for name in found if name.startswith("nss/")]
        assert not [name for name in found if name.startswith("energy")]
        assert all(found[name] < 1e-12 for name in found if name.startswith("nss/"))
    assert set(seen) == {f"nss/{kind}" for kind in ("q", "k", "v", "o", "gate", "up", "down")}


def test_factors_are_those_that_a_comparison_keeps(decoder: nn.Module) -> None:
    """A base trained in float32 but exact in bfloat16 finds the factors of its bfloat16 checkpoint."""
    FactorCache().clear()
    weights = {name: p.detach().bfloat16() for name, p in decoder.named_parameters() if "up_proj" in name}
    for name, weight in weights.items():
        geometry.measure(weight, weight, name=name, factors=FactorCache())
    files = FactorCache().size()[0]
    assert files == 1
    watch = Watch(decoder, matrices=7)
    _step(decoder, 1e-3, 0)
    watch.after_step()
    assert FactorCache().size()[0] == 7
    watch.after_step()
    assert FactorCache().size()[0] == 7


def test_kl_of_step_and_base(decoder: nn.Module) -> None:
    prompts = Prompts.of([[3, 4, 5], [6, 7]])
    watch = Watch(decoder, prompts, matrices=0)
    assert watch.after_step()["kl_base/prompts"] == 0
    watch.before_step()
    _step(decoder, 1e-2, 0)
    first = watch.after_step()
    assert first["kl_step/prompts"] == first["kl_base/prompts"] > 0
    watch.before_step()
    second = watch.after_step()
    assert (second["kl_step/prompts"], second["kl_base/prompts"]) == (0, first["kl_base/prompts"])


def test_an_adapter_counts_as_the_weights_that_it_changes(decoder: nn.Module) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(decoder, LoraConfig(r=2, target_modules=["up_proj"]))
    watch = Watch(model, matrices=7, cache=False)
    assert watch.after_step()["density/all"] == 0
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    layer.lora_B["default"].weight.data += 0.1
    found = watch.after_step()
    assert found["density/up"] > 0.99
    assert found["density/down"] == 0
    assert found["delta_norm/up"] == pytest.approx(float(layer.get_delta_weight("default").detach().norm()), rel=1e-5)
