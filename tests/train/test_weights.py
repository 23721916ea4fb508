"""The weights of a live model under their checkpoint names, copies, and the assertion on what moved."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from offprincipal.errors import CheckFailed, UsageError
from offprincipal.lab.settings import PRESETS
from offprincipal.lab.world import make_decoder, make_tokenizer
from offprincipal.train.weights import Snapshot, assert_trained, effective_weights, parameter_names, snapshot, whole

# PEFT 0.21 reads the old name of a property that transformers 5.2x renamed
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def decoder() -> nn.Module:
    return make_decoder(PRESETS["micro"].decoder, make_tokenizer(), seed=0)


def _stirred(model: nn.Module) -> nn.Module:
    """Adapter parameters away from their start, so that every part of the formula counts."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}, {"modules_to_save": ["norm"]}])
def test_adapted_weights_are_those_of_the_merged_model(decoder: nn.Module, options: dict) -> None:
    from peft import LoraConfig, get_peft_model

    model = _stirred(get_peft_model(decoder, LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", **options)))
    read = {weight.name: weight.read() for weight in effective_weights(model)}
    merged = dict(model.merge_and_unload().named_parameters())
    assert set(read) == set(merged)
    for name, weight in merged.items():
        torch.testing.assert_close(read[name], weight.detach(), rtol=1e-6, atol=1e-7)


def test_a_merged_or_switched_off_adapter_counts_as_the_weight_it_leaves(decoder: nn.Module) -> None:
    from peft import LoraConfig, get_peft_model

    name = "model.layers.0.mlp.up_proj.weight"
    before = dict(decoder.named_parameters())[name].detach().clone()
    model = _stirred(get_peft_model(decoder, LoraConfig(r=3, target_modules="all-linear")))

    def read() -> torch.Tensor:
        return next(weight for weight in effective_weights(model) if weight.name == name).read()

    applied = read()
    assert not torch.equal(applied, before)
    with model.disable_adapter():
        assert torch.equal(read(), before)
    model.merge_adapter()
    torch.testing.assert_close(read(), applied, rtol=1e-6, atol=1e-7)


def test_an_adapter_of_another_kind_is_refused(decoder: nn.Module) -> None:
    from peft import OFTConfig, get_peft_model

    model = get_peft_model(decoder, OFTConfig(oft_block_size=4, target_modules=["up_proj"]))
    with pytest.raises(UsageError, match=r"only LoRA layers \(DoRA too\) are understood; merge the adapter"):
        effective_weights(model)


def test_flattened_parameters_are_refused() -> None:
    flat = nn.Module()
    flat.register_parameter("_flat_param", nn.Parameter(torch.zeros(3)))
    with pytest.raises(UsageError, match=r"FSDP1 has flattened the parameters.*use FSDP2"):
        list(parameter_names(flat))


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_sharded_parameters_are_read_whole(one_process: None) -> None:
    from torch.distributed.fsdp import fully_shard

    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    fully_shard(layer, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    assert hasattr(layer.weight, "full_tensor")
    assert torch.equal(whole(layer.weight), before)


def test_copies_are_short_only_where_nothing_is_lost() -> None:
    tensors = {
        "exact": torch.tensor([1.0, -0.0, torch.inf]),
        "fine": torch.tensor([1.0001]),
        "hole": torch.tensor([torch.nan]),
        "half": torch.tensor([1.001], dtype=torch.float16),
    }
    kept = Snapshot(tensors.items())
    dtypes = {name: kept[name].dtype for name in tensors}
    assert dtypes == {
        "exact": torch.bfloat16, "fine": torch.float32, "hole": torch.float32, "half": torch.float16,
    }  # fmt: skip
    for name, tensor in tensors.items():
        assert torch.equal(kept[name].to(tensor.dtype).view(torch.uint8), tensor.view(torch.uint8))
    assert ("fine" in kept, "coarse" in kept) == (True, False)


def test_what_moves_outside_is_named_and_counted() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = snapshot(model)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask[0] = True

    def allowed(name: str) -> torch.Tensor | bool:
        return mask if name == "0.weight" else False

    with pytest.raises(CheckFailed, match="none of the 3 entries that were allowed to move did; look at the learning"):
        assert_trained(model, before, allowed, what="its mask")
    model[0].weight.data[0] += 1
    assert vars(assert_trained(model, before, allowed, what="its mask")) == {"changed": 3, "allowed": 3, "frozen": 11}
    model[0].weight.data[1, :2] += 1
    model[1].bias.data += 1
    message = (
        "cannot accept that this run trained only its mask: 2 of 6 entries of '0.weight' moved outside it, "
        "and so did entries of 1 more tensors; look for a second optimizer"
    )
    with pytest.raises(CheckFailed, match=message):
        assert_trained(model, before, allowed, what="its mask")


def test_a_sign_of_zero_counts_as_moved_and_a_nan_does_not() -> None:
    layer = nn.Linear(2, 1)
    layer.weight.data[:] = torch.tensor([0.0, torch.nan])
    before = snapshot(layer)
    layer.bias.data += 1
    assert assert_trained(layer, before, lambda name: name == "bias", what="the bias").changed == 1
    layer.weight.data[0, 0] = -0.0
    with pytest.raises(CheckFailed, match="1 of 2 entries of 'weight'"):
        assert_trained(layer, before, lambda name: name == "bias", what="the bias")
