"""State of masked optimizers: saved, loaded, and refused where it does not fit."""

import pytest
import torch
from tests.train.test_masked import gradients, made

from offprincipal.errors import InputError
from offprincipal.train import MaskedAdamW, MaskedSGD, masks_for


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_going_on_from_a_file_is_going_on(dtype, tmp_path):
    parameter, _, masks = made((33, 65), 0.4, dtype)
    optimizer = MaskedAdamW([parameter], masks, lr=0.01, masters=True)
    steps = gradients((33, 65), dtype, 6)
    for gradient in steps[:3]:
        parameter.grad = gradient
        optimizer.step()
    torch.save((parameter.detach(), optimizer.state_dict()), tmp_path / "saved.pt")
    for gradient in steps[3:]:
        parameter.grad = gradient
        optimizer.step()
    end = parameter.detach().clone()
    weight, state = torch.load(tmp_path / "saved.pt", weights_only=True)
    parameter.data.copy_(weight)
    fresh = MaskedAdamW([parameter], masks, lr=0.5, masters=True)
    fresh.load_state_dict(state)
    assert fresh.param_groups[0]["lr"] == 0.01
    for gradient in steps[3:]:
        parameter.grad = gradient
        fresh.step()
    assert torch.equal(parameter, end)
    assert all(tensor.dtype == torch.float32 for key, tensor in fresh.state[parameter].items() if key != "mask")


def test_a_loaded_state_is_a_copy():
    parameter, _, masks = made((3, 5), 0.5, torch.float32)
    optimizer = MaskedAdamW([parameter], masks)
    parameter.grad = torch.ones(3, 5)
    optimizer.step()
    state = optimizer.state_dict()
    fresh = MaskedAdamW([parameter], masks)
    fresh.load_state_dict(state)
    assert fresh.state[parameter]["exp_avg"].data_ptr() != state["state"][0]["exp_avg"].data_ptr()


@pytest.mark.parametrize("kind", [MaskedAdamW, MaskedSGD])
def test_state_of_another_mask_is_refused(kind):
    parameter, mask, masks = made((3, 5), 0.5, torch.float32)
    optimizer = kind([parameter], masks)
    parameter.grad = torch.ones(3, 5)
    optimizer.step()
    other = kind([parameter], masks_for([("weight", parameter)], {"weight": ~mask}))
    with pytest.raises(InputError, match="it belongs to another mask; train with the mask"):
        other.load_state_dict(optimizer.state_dict())


def test_state_of_another_optimizer_is_refused():
    parameter, _, masks = made((3, 5), 0.5, torch.bfloat16)
    parameter.grad = torch.ones(3, 5, dtype=torch.bfloat16)
    dense = torch.optim.AdamW([parameter])
    dense.step()
    optimizer = MaskedAdamW([parameter], masks, masters=True)
    words = "holds exp_avg, exp_avg_sq, step and this optimizer keeps exp_avg, exp_avg_sq, mask, master, step"
    with pytest.raises(InputError, match=words):
        optimizer.load_state_dict(dense.state_dict())
    assert optimizer.state_dict()["state"] == {}


def test_a_frozen_rest_keeps_only_its_step():
    parameter, _, masks = made((3, 5), 0.5, torch.float32)
    other = torch.nn.Parameter(torch.ones(2))
    optimizer = MaskedAdamW([parameter, other], masks)
    parameter.grad, other.grad = torch.ones(3, 5), torch.ones(2)
    optimizer.step()
    state = optimizer.state_dict()
    assert set(state["state"][1]) == {"step"}
    optimizer.load_state_dict(state)
    assert float(optimizer.state[other]["step"]) == 1
