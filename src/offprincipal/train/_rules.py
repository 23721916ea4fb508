"""The arithmetic of a step on packed values, in plain torch: the literal form, and the one for any device and dtype.

A rule holds the numbers of one step of one parameter. The compiled kernels do the same in the same order.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from offprincipal.train._region import Region


@dataclass(frozen=True)
class AdamW:
    """One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101), as torch's fused kernel orders it."""

    names: ClassVar = ("exp_avg", "exp_avg_sq")
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    sign: float
    step: int

    def constants(self) -> tuple[float, ...]:
        """Decay, 1 - beta1, beta2, 1 - beta2, step size, 1 / sqrt(bias of the second moment), eps, sign."""
        size = self.lr / (1 - self.beta1**self.step)
        scale = (1 - self.beta2**self.step) ** -0.5
        decay = 1 - self.lr * self.weight_decay
        return decay, 1 - self.beta1, self.beta2, 1 - self.beta2, size, scale, self.eps, self.sign

    def apply(self, weight: Tensor, gradient: Tensor, average: Tensor, square: Tensor) -> Tensor:
        """The new weight, float32 or float64 ``[n]``; the moments change in place."""
        decay, c1, beta2, c2, size, scale, eps, sign = self.constants()
        gradient = gradient * sign
        average.add_((gradient - average) * c1)
        square.mul_(beta2).add_(gradient * c2 * gradient)
        return weight * decay - average * size / (square.sqrt() * scale + eps)


@dataclass(frozen=True)
class SGD:
    """One step of SGD with momentum, dampening, Nesterov and coupled weight decay, as in ``torch.optim.SGD``."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    sign: float
    step: int

    def constants(self) -> tuple[float, ...]:
        """Rate, weight decay, momentum, 1 - dampening, Nesterov, sign; the first buffer is the gradient itself."""
        keep, take = (0.0, 1.0) if self.step == 1 else (self.momentum, 1 - self.dampening)
        return self.lr, self.weight_decay, keep, take, self.momentum if self.nesterov else 0.0, self.sign

    def apply(self, weight: Tensor, gradient: Tensor, buffer: Tensor | None = None) -> Tensor:
        """The new weight, float32 or float64 ``[n]``; the buffer changes in place."""
        rate, decay, keep, take, ahead, sign = self.constants()
        gradient = gradient * sign + weight * decay
        if buffer is None:
            return weight - gradient * rate
        buffer.mul_(keep).add_(gradient * take)
        return weight - (gradient + buffer * ahead if self.nesterov else buffer) * rate


@dataclass(frozen=True)
class Task:
    """One parameter's step: flat contiguous tensors of the part that this process holds.

    Attributes:
        rule: the numbers of this step.
        weight: ``[entries]``, any real floating dtype; changes in place where the region allows.
        gradient: ``[entries]``.
        region: what may move.
        moments: packed ``[ones]`` each; change in place.
        master: packed float32 ``[ones]``, or None; changes in place.
        key: of the noise for stochastic rounding to bfloat16, or None.
    """

    rule: AdamW | SGD
    weight: Tensor
    gradient: Tensor
    region: Region
    moments: tuple[Tensor, ...]
    master: Tensor | None = None
    key: int | None = None


def noise(key: int, first: int, count: int, device: torch.device) -> Tensor:
    """16 random bits (int64) for each of the packed entries ``first .. first + count``: a hash of key and place.

    The hash is Wellons's lowbias32 twice. Nothing is kept between steps and any part can be drawn by itself, so the
    draw does not depend on the device, the threads or the sharding.

    >>> noise(7, 0, 4, torch.device("cpu"))[2:].equal(noise(7, 2, 2, torch.device("cpu")))
    True
    """
    place = torch.arange(first, first + count, dtype=torch.int64, device=device)
    low, high = key & 0xFFFFFFFF, key >> 32
    return _mix(_mix((place & 0xFFFFFFFF) ^ low) ^ (place >> 32) ^ high) >> 16


def _mix(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def round_randomly(values: Tensor, bits: Tensor) -> Tensor:
    """float32 to bfloat16, up or down with the probability of the distance; `bits` from `noise`.

    What is not finite rounds to nearest, so that infinity stays and a NaN is a NaN.

    >>> round_randomly(torch.ones(2), torch.tensor([0, 65535])).tolist()
    [1.0, 1.0]
    """
    raised = (values.view(torch.int32).to(torch.int64) + bits) >> 16 << 16
    chosen = raised.to(torch.int32).view(torch.float32)
    return torch.where(torch.isfinite(values), chosen, values).to(torch.bfloat16)
