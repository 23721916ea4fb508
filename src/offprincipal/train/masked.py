"""Optimizers that move only what a mask allows, and keep state only for that.

What it is: AdamW and SGD whose moments, and float32 masters if asked, exist for allowed entries alone; every other
entry keeps its bits for any number of steps. What it is not: a masked gradient under a dense optimizer, which saves
nothing and lets weight decay move everything; nor a rule that mixes coordinates (`keep_off_mask` is for those).
"""

from collections.abc import Iterable
from typing import Any

from offprincipal.errors import UsageError
from offprincipal.train._masks import ParameterMasks
from offprincipal.train._optimizer import MaskedOptimizer, Rest
from offprincipal.train._rules import SGD, AdamW


class MaskedAdamW(MaskedOptimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) on the entries that a mask allows; the others keep their bits.

    State is packed in the mask's order: two moments for each allowed entry, one bit for every entry. Arithmetic is
    float32 (float64 for float64 weights). On allowed entries it is ``torch.optim.AdamW(fused=True)`` to a few units
    in the last place. Moments have the weight's dtype, as in torch, unless masters or stochastic rounding are asked
    for: then they are float32.

    Args:
        params: parameters, groups of them, or ``(name, parameter)`` pairs, as torch takes them; every masked one
            must be there.
        masks: from `masks_for`.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, and on allowed entries only.
        rest: what becomes of parameters without a mask: "freeze" leaves their bits alone, "train" moves every entry
            (with packed state of every entry, so a dense AdamW).
        masters: keep a float32 master of each allowed entry of bfloat16 and float16 weights.
        stochastic_rounding: round bfloat16 weights up or down by chance; seeded by parameter and step, the same for
            any device, number of threads or ranks.
        seed: of that.
        maximize: climb instead of descend.
        amsgrad: refused when true; so are capturable and differentiable.
        foreach: taken and ignored, for trainers that pass it; likewise fused. There is one code path per device.
        fused: see foreach.
        capturable: see amsgrad.
        differentiable: see amsgrad.

    Raises:
        UsageError: an option that is refused or out of range.
        InputError: masked parameters are missing from `params`, complex, or sharded otherwise than by rows.

    Left out: AMSGrad, sparse gradients (refused at the step), parameters that change their identity after this.
    Clipping by norm sees the whole gradient, off the mask too.

    >>> import torch
    >>> from offprincipal.train import masks_for
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> masks = masks_for([("w", weight)], {"w": torch.tensor([True, False])})
    >>> optimizer = MaskedAdamW([weight], masks, lr=0.1)
    >>> weight.grad = torch.ones(2)
    >>> optimizer.step()
    >>> [round(value, 4) for value in weight.tolist()]
    [0.899, 1.0]
    """

    def __init__(
        self,
        params: Iterable[Any],
        masks: ParameterMasks,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        rest: Rest = "freeze",
        masters: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        maximize: bool = False,
        amsgrad: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ):
        _refuse("MaskedAdamW", amsgrad=amsgrad, capturable=capturable, differentiable=differentiable)
        _bound("MaskedAdamW", lr=lr, eps=eps, weight_decay=weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise UsageError("build MaskedAdamW", f"betas are {betas}", "give two numbers from 0 to below 1")
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        chosen = {"rest": rest, "masters": masters, "stochastic_rounding": stochastic_rounding, "seed": seed}
        super().__init__(params, masks, defaults, **chosen)

    def _rule(self, group: dict[str, Any], step: int) -> AdamW:
        (beta1, beta2), sign = group["betas"], -1.0 if group["maximize"] else 1.0
        return AdamW(float(group["lr"]), beta1, beta2, group["eps"], group["weight_decay"], sign, step)

    def _names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return AdamW.names

    def _step_size(self, group: dict[str, Any]) -> float | None:
        return float(group["lr"])  # the first step has this size, later ones seldom more


class MaskedSGD(MaskedOptimizer):
    """SGD with momentum on the entries that a mask allows; the others keep their bits.

    The formula is that of ``torch.optim.SGD``, weight decay coupled to the gradient; the momentum buffer exists for
    allowed entries only, and without momentum nothing is kept but the mask. Options not named here are those of
    `MaskedAdamW`.

    Args:
        params: as in `MaskedAdamW`.
        masks: from `masks_for`.
        lr: learning rate.
        momentum: decay of the buffer; 0 keeps none.
        dampening: share of the gradient that does not enter the buffer, from the second step on.
        weight_decay: times the weight, added to the gradient.
        nesterov: look ahead; needs momentum and no dampening.
        rest: "freeze" or "train".
        masters: float32 masters of 16-bit weights.
        stochastic_rounding: of bfloat16 weights.
        seed: of the rounding.
        maximize: climb instead of descend.
        foreach: ignored.
        fused: ignored.
        differentiable: refused when true.

    Raises:
        UsageError: an option that is refused or out of range.
        InputError: as in `MaskedAdamW`.

    >>> import torch
    >>> from offprincipal.train import masks_for
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> masks = masks_for([("w", weight)], {"w": torch.tensor([True, False])})
    >>> optimizer = MaskedSGD([weight], masks, lr=0.5, momentum=0.9)
    >>> weight.grad = torch.ones(2)
    >>> optimizer.step()
    >>> weight.tolist()
    [0.5, 1.0]
    """

    def __init__(
        self,
        params: Iterable[Any],
        masks: ParameterMasks,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        rest: Rest = "freeze",
        masters: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: bool = False,
    ):
        _refuse("MaskedSGD", differentiable=differentiable)
        _bound("MaskedSGD", lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and (not momentum or dampening):
            raise UsageError(
                "build MaskedSGD",
                f"nesterov with momentum {momentum} and dampening {dampening}",
                "give it momentum and no dampening",
            )
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        chosen = {"rest": rest, "masters": masters, "stochastic_rounding": stochastic_rounding, "seed": seed}
        super().__init__(params, masks, defaults | {"nesterov": nesterov, "maximize": maximize}, **chosen)

    def _rule(self, group: dict[str, Any], step: int) -> SGD:
        sign = -1.0 if group["maximize"] else 1.0
        rate, decay = float(group["lr"]), group["weight_decay"]
        return SGD(rate, group["momentum"], group["dampening"], decay, group["nesterov"], sign, step)

    def _names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _step_size(self, group: dict[str, Any]) -> float | None:
        return None  # lr times the gradient, which nobody knows beforehand


def _refuse(what: str, **options: bool) -> None:
    for name, given in options.items():
        if given:
            raise UsageError(f"build {what}", f"{name}=True is not supported", f"leave {name} out")


def _bound(what: str, **numbers: float) -> None:
    for name, given in numbers.items():
        if not 0 <= float(given) < float("inf"):
            raise UsageError(f"build {what}", f"{name} is {given}", f"give a finite {name} of at least 0")
