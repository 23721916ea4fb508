"""Any optimizer inside a mask: what may not move is put back."""

import pytest
import torch
from torch import nn

from offprincipal.train import keep_off_mask, masks_for


class Mixes(torch.optim.Optimizer):
    """Muon's idea: orthogonalise the gradient, so that every coordinate moves every other."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            left, _, right = torch.linalg.svd(parameter.grad.float(), full_matrices=False)
            parameter.sub_((0.1 * left @ right).to(parameter.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rest", ["freeze", "train"])
def test_an_optimizer_that_mixes_coordinates_keeps_to_the_mask(dtype, rest):
    torch.manual_seed(0)
    weight, other = nn.Parameter(torch.randn(9, 7).to(dtype)), nn.Parameter(torch.randn(4, 4).to(dtype))
    mask = torch.rand(9, 7) < 0.4
    start, untouched = weight.detach().clone(), other.detach().clone()
    optimizer = Mixes([weight, other])
    guard = keep_off_mask(optimizer, masks_for([("w", weight)], {"w": mask}), rest=rest)
    for _ in range(5):
        weight.grad, other.grad = (
            torch.randn(p.shape).to(dtype) * mask if p is weight else torch.randn(p.shape).to(dtype)
            for p in (weight, other)
        )
        optimizer.step()
    assert torch.equal(weight.detach()[~mask], start[~mask])
    assert bool((weight.detach() != start)[mask].double().mean() > 0.9)
    assert torch.equal(other.detach(), untouched) == (rest == "freeze")
    values = int((~mask).sum()) + (16 if rest == "freeze" else 0)
    assert guard.bytes == values * weight.itemsize + 8 + 16  # bits of 63 entries, one block of 512


def test_removing_the_guard_lets_go():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    guard = keep_off_mask(optimizer, masks_for([("w", weight)], {"w": torch.eye(2).bool()}))
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert weight.tolist() == [[-1.0, 0.0], [0.0, -1.0]]
    guard.remove()
    optimizer.step()
    assert (weight.tolist(), guard.bytes) == ([[-2.0, -1.0], [-1.0, -2.0]], 0)


def test_a_full_mask_keeps_nothing():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    keep_off_mask(optimizer, masks_for([("w", weight)], {"w": torch.ones(2, 2, dtype=torch.bool)}))
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert weight.tolist() == [[-1.0, -1.0], [-1.0, -1.0]]
