"""The weights of a live model under their checkpoint names, copies of them on the CPU, and what moved.

What it is: the one place that knows how wrappers (FSDP2, torch.compile, PEFT) hide a weight, and the assertion that a
training run moved what it was meant to move and nothing else. What it is not: an optimizer, or a measure.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offprincipal.errors import CheckFailed, UsageError
from offprincipal.names import canonical

_SAVED = re.compile(r"\.modules_to_save\.[^.]+\.")


@dataclass(frozen=True)
class Weight:
    """One weight as a checkpoint would hold it: its name there, and how to read its present value, whole."""

    name: str
    read: Callable[[], Tensor]


def parameter_names(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters under canonical names, without what FSDP2, torch.compile, DataParallel and PEFT add; a tied one once.

    Raises:
        UsageError: FSDP1 has flattened the parameters, so that no name stands for a matrix any more.

    >>> [name for name, _ in parameter_names(nn.Linear(2, 1))]
    ['weight', 'bias']
    """
    for name, parameter in model.named_parameters():
        if "_flat_param" in name:
            found = "FSDP1 has flattened the parameters, and no name stands for a matrix any more"
            raise UsageError("read the weights of the model", found, "use FSDP2 (fsdp_version: 2)")
        yield canonical(name), parameter


def effective_weights(model: nn.Module) -> tuple[Weight, ...]:
    """Every weight that a merged checkpoint of this model would hold; adapters are added to the weight beneath.

    A LoRA layer of PEFT counts as ``W + scaling B A``, with DoRA as ``m (W + scaling B A) / ||W + scaling B A||`` per
    output row, in float32 where either part is; a merged layer as it is. DTensors are gathered when read, so every
    rank must read.

    Raises:
        UsageError: an adapter that is no LoRA, or parameters that FSDP1 has flattened.
    """
    layers = {path: module for path, module in model.named_modules() if hasattr(module, "base_layer")}
    for path, layer in layers.items():
        if not (hasattr(layer, "get_delta_weight") and hasattr(layer, "lora_A")):
            found = f"{path!r} is a {type(layer).__name__}, and only LoRA layers (DoRA too) are understood"
            raise UsageError("read the weights of the model", found, "merge the adapter, or train another kind")
    owners = {canonical(f"{path}.base_layer.weight"): layer for path, layer in layers.items()}
    found = []
    for name, parameter in parameter_names(model):
        if "lora_" in name or ".original_module." in name:
            continue
        read = _merged(owners[name]) if name in owners else _whole_of(parameter)
        found.append(Weight(_SAVED.sub(".", name.replace(".base_layer.", ".")), read))
    return tuple(found)


def _whole_of(parameter: nn.Parameter) -> Callable[[], Tensor]:
    return lambda: whole(parameter)


def whole(tensor: Tensor) -> Tensor:
    """The tensor without its gradient; a DTensor gathered from its shards.

    >>> whole(nn.Parameter(torch.ones(1))).requires_grad
    False
    """
    tensor = tensor.detach()
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def _merged(layer: Any) -> Callable[[], Tensor]:
    """How to read the weight that this LoRA layer applies."""

    def read() -> Tensor:
        weight = whole(layer.get_base_layer().weight)
        if layer.merged or layer.disable_adapters:
            return weight
        for adapter in layer.active_adapters:
            if adapter not in layer.lora_A:
                continue
            delta = whole(layer.get_delta_weight(adapter))
            wide = torch.promote_types(weight.dtype, delta.dtype)
            weight = weight.to(wide) + delta.to(wide)
            if adapter in layer.lora_magnitude_vector:
                axis = 0 if layer.fan_in_fan_out else 1
                magnitude = whole(layer.lora_magnitude_vector[adapter].weight).unsqueeze(axis)
                weight = weight * (magnitude / torch.linalg.vector_norm(weight, dim=axis, keepdim=True))
        return weight

    return read


class Snapshot:
    """Copies of named tensors on the CPU, in bfloat16 where that loses nothing, else in their own dtype.

    >>> kept = Snapshot([("a", torch.ones(2)), ("b", torch.full((2,), 1.0001))])
    >>> kept["a"].dtype, kept["b"].dtype, kept.nbytes
    (torch.bfloat16, torch.float32, 12)
    """

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]):
        self._kept = {name: _copy(tensor) for name, tensor in tensors}

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[name]

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    @property
    def nbytes(self) -> int:
        """Host memory that the copies take."""
        return sum(tensor.nbytes for tensor in self._kept.values())


def _copy(tensor: Tensor) -> Tensor:
    short = tensor.to(torch.bfloat16)
    lossless = tensor.dtype != torch.bfloat16 and torch.equal(short.to(tensor.dtype), tensor)
    return short.cpu() if lossless else tensor.detach().cpu().clone()


def snapshot(model: nn.Module) -> Snapshot:
    """Copies of all parameters of the model, for `assert_trained`; every rank of a sharded model must call it."""
    return Snapshot((name, whole(parameter)) for name, parameter in parameter_names(model))


@dataclass(frozen=True)
class Trained:
    """What a run was seen to move: entries that changed, of those that might, in tensors that might change."""

    changed: int
    allowed: int
    frozen: int


def assert_trained(
    model: nn.Module, before: Snapshot, allowed: Callable[[str], Tensor | bool], *, what: str
) -> Trained:
    """Check that nothing outside what was allowed differs from before, bit for bit, and that something inside does.

    Args:
        model: after training.
        before: its parameters before training (`snapshot`).
        allowed: parameter name to a mask [shape of the parameter] of the entries that may move, or to True (all), or
            False (none).
        what: the words for what was allowed, as in ``"the entries of masks/safe"``.

    Returns:
        How many entries moved, might have moved, and had to stay.

    Raises:
        CheckFailed: something outside moved (the first tensor and its count are named), or nothing inside did.

    >>> layer = nn.Linear(2, 1)
    >>> before = snapshot(layer)
    >>> layer.bias.data += 1
    >>> assert_trained(layer, before, lambda name: name == "bias", what="the bias")
    Trained(changed=1, allowed=1, frozen=2)
    """
    changed = may = entries = 0
    strays: list[tuple[str, int, int]] = []
    for name, parameter in parameter_names(model):
        after, mask = whole(parameter).cpu(), allowed(name)
        moved = _bits(after) != _bits(before[name].to(after.dtype))
        inside = moved & mask if isinstance(mask, Tensor) else moved if mask else torch.zeros_like(moved)
        stray = int(moved.sum()) - int(inside.sum())
        if stray:
            strays.append((name, stray, moved.numel()))
        changed += int(inside.sum())
        may += int(mask.sum()) if isinstance(mask, Tensor) else moved.numel() * mask
        entries += moved.numel()
    asked = f"accept that this run trained only {what}"
    if strays:
        name, count, size = strays[0]
        rest = f", and so did entries of {len(strays) - 1} more tensors" if strays[1:] else ""
        found = f"{count} of {size} entries of {name!r} moved outside it{rest}"
        raise CheckFailed(asked, found, "look for a second optimizer, a merge, or a cast that writes these weights")
    if not changed:
        found = f"none of the {may} entries that were allowed to move did"
        raise CheckFailed(asked, found, "look at the learning rate, the rewards and requires_grad")
    return Trained(changed, may, entries - may)


def _bits(tensor: Tensor) -> Tensor:
    """The stored bits, so that signed zeros differ and a NaN equals itself."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(width)
