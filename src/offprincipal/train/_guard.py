"""Any optimizer inside a mask: off-mask values are put back after every step.

For optimizers that mix coordinates (Muon, SOAP, Shampoo), where a masked gradient does not keep weights still. Exact;
costs a copy of every value that must not move, and the optimizer's state stays as large as it was.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from offprincipal.train._masks import ParameterMasks
from offprincipal.train._region import Region, region, whole
from offprincipal.train._sharding import local, parts


@dataclass(frozen=True)
class _Kept:
    """One parameter, where it must not move, and the values there."""

    parameter: Tensor
    closed: Region
    values: Tensor


class OffMaskGuard:
    """Made by `keep_off_mask`; `bytes` says what the copies cost, `remove` lets go."""

    def __init__(self, optimizer: Optimizer, kept: list[_Kept]):
        self._kept = kept
        self._hook = optimizer.register_step_post_hook(lambda *_: self.restore())

    @property
    def bytes(self) -> int:
        """Bytes of saved values and packed masks in this process."""
        return sum(each.values.nbytes + each.closed.nbytes for each in self._kept)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the saved values back; runs by itself after every step."""
        for each in self._kept:
            flat = local(each.parameter).view(-1)
            for part, packed, mask in each.closed.chunks():
                if mask is None:
                    flat[part] = each.values[packed]
                else:
                    flat[part][mask] = each.values[packed]

    def remove(self) -> None:
        """Stop restoring and free the copies."""
        self._hook.remove()
        self._kept = []


def keep_off_mask(
    optimizer: Optimizer, masks: ParameterMasks, *, rest: Literal["freeze", "train"] = "freeze"
) -> OffMaskGuard:
    """Let any optimizer move only what the masks allow: a copy of the other values is put back after each step.

    Args:
        optimizer: any, Muon, SOAP or Shampoo too.
        masks: from `masks_for`; its parameters as they are now are what is kept.
        rest: "freeze" keeps parameters of the optimizer without a mask whole, "train" leaves them to it.

    Returns:
        A guard. Its `bytes`: the values that must not move, in their own dtype, and one bit per masked parameter.
        Left out: the optimizer's state, which stays dense, and its coordinates, which still mix: what happens off the
        mask may still steer what is on it.

    Raises:
        InputError: a parameter is sharded otherwise than by rows.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0)
    >>> from offprincipal.train import masks_for
    >>> guard = keep_off_mask(optimizer, masks_for([("w", weight)], {"w": torch.tensor([True, False])}))
    >>> weight.grad = torch.ones(2)
    >>> optimizer.step()
    >>> weight.tolist(), guard.bytes
    ([-1.0, 0.0], 21)
    """
    kept = []
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        ends, rank = parts(parameter)
        flat = local(parameter.detach()).reshape(-1)
        if parameter in masks:
            closed = region(~masks[parameter], ends, rank, flat.device)
        elif rest == "freeze":
            closed = whole(flat.numel(), ends, rank)
        else:
            continue
        values = [flat[part].clone() if mask is None else flat[part][mask] for part, _, mask in closed.chunks()]
        kept.append(_Kept(parameter, closed, torch.cat(values) if values else flat[:0]))
    return OffMaskGuard(optimizer, kept)
