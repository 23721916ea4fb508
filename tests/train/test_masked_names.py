"""Which mask belongs to which parameter."""

import pytest
import torch
from tests.tiny import tiny_weights
from torch import nn

from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError
from offprincipal.masksets import save_masks
from offprincipal.train import masks_for


def ones(*shape):
    return torch.ones(shape, dtype=torch.bool)


def layer():
    return nn.Linear(4, 3)


def test_masks_find_their_parameters_through_wrappers():
    model = nn.ModuleDict({"module": nn.ModuleDict({"model": nn.ModuleDict({"norm": nn.Linear(4, 3)})})})
    found = masks_for(model, {"model.norm.weight": ones(3, 4)})
    [parameter] = found
    assert parameter is model["module"]["model"]["norm"].weight
    assert (len(found), found.name(parameter)) == (1, "module.model.norm.weight")
    assert found.name(nn.Parameter(torch.zeros(1))) is None


def test_a_mask_set_is_read_on_demand_and_checked_against_its_base(checkpoint, tmp_path):
    weights = tiny_weights()
    base = open_checkpoint(checkpoint("base"))
    name = "model.layers.0.mlp.up_proj.weight"
    masks = save_masks(tmp_path / "masks", {name: ones(*weights[name].shape)}, base=base)
    parameters = [(key, nn.Parameter(value)) for key, value in weights.items()]
    found = masks_for(parameters, masks, base=base)
    assert [found.name(parameter) for parameter in found] == [name]
    other = open_checkpoint(checkpoint("other", delta=1e-2))
    with pytest.raises(InputError):
        masks_for(parameters, masks, base=other)


def tied():
    model = nn.ModuleDict({"embed": nn.Embedding(3, 4), "head": nn.Linear(4, 3, bias=False)})
    model["head"].weight = model["embed"].weight
    return model


def frozen():
    model = layer()
    model.weight.requires_grad_(False)
    return model


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(12))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.complex64))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.experts = nn.Module()
        self.mlp.experts.gate_up_proj = nn.Parameter(torch.zeros(2, 4, 4))


@pytest.mark.parametrize(
    ("model", "masks", "words"),
    [
        (layer, {"wait": ones(3, 4)}, "1 of 1 masks have no parameter in the model; names of this model look like"),
        (layer, {"weight": ones(4, 3)}, r"the mask is \[4, 3\] and the parameter \[3, 4\]; give the masks"),
        (layer, {"weight": torch.ones(3, 4)}, "it is torch.float32, not bool; give booleans"),
        (layer, {"weight": ~ones(3, 4), "bias": ~ones(3)}, "they allow no entry at all; check how"),
        (layer, {}, "they allow no entry at all"),
        (tied, {"embed.weight": ones(3, 4), "head.weight": ones(3, 4)}, "both are names of one tied parameter; give"),
        (frozen, {"weight": ones(3, 4)}, "the parameter is frozen; set requires_grad, or leave its mask out"),
        (Flat, {"weight": ones(3, 4)}, r"flat, \[12\], as FSDP1 and DeepSpeed ZeRO make it; shard with FSDP2"),
        (Complex, {"weight": ones(3, 4)}, "it is torch.complex64; masked optimizers move real floating-point weights"),
        (Experts, {"mlp.experts.0.up_proj.weight": ones(2, 4)}, "fuses its experts: give one mask per fused"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(model, masks, words):
    with pytest.raises(InputError, match=words):
        masks_for(model(), masks)


def test_one_name_of_a_tied_parameter_is_enough():
    model = tied()
    assert list(masks_for(model, {"head.weight": ones(3, 4)})) == [model["embed"].weight]


def test_an_empty_mask_beside_others_means_that_nothing_moves_there():
    found = masks_for(layer(), {"weight": ones(3, 4), "bias": ~ones(3)})
    assert len(found) == 2
