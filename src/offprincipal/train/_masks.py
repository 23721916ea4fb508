"""Which mask belongs to which parameter: names, shapes, tied and frozen weights are checked before anything is packed.

What it is: a lazy mapping from parameters to their masks. What it is not: a file format (``masksets``), or the packed
form that an optimizer keeps (``_region``).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from offprincipal.errors import InputError
from offprincipal.names import canonical


class Masks(Protocol):
    """Boolean masks by tensor name: a `MaskSet`, or anything that has its names and items."""

    @property
    def names(self) -> Iterable[str]:
        """The names of the masks."""
        ...

    def __getitem__(self, name: str, /) -> Tensor: ...


class ParameterMasks(Mapping[Tensor, Tensor]):
    """Parameter to mask: bool, of the parameter's whole shape, on the CPU, loaded when it is asked for.

    Made by `masks_for`. Iterating gives the masked parameters only; `name` knows the unmasked ones too.
    """

    def __init__(
        self, source: Masks | Mapping[str, Tensor], places: Mapping[Tensor, str], known: Mapping[Tensor, str]
    ):
        self._source, self._places, self._known = source, dict(places), dict(known)

    def __getitem__(self, parameter: Tensor) -> Tensor:
        mask = self._source[self._places[parameter]].cpu()
        found = self._places[parameter]
        if mask.dtype != torch.bool:
            raise InputError(
                f"use the mask of {found!r}", f"it is {mask.dtype}, not bool", "give booleans, true = may move"
            )
        if mask.shape != parameter.shape:
            raise _misshapen(found, tuple(mask.shape), parameter)
        return mask

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def name(self, parameter: Tensor) -> str | None:
        """The parameter's name in the model, or None."""
        return self._known.get(parameter)


def masks_for(
    model: nn.Module | Iterable[tuple[str, Tensor]], masks: Masks | Mapping[str, Tensor], *, base: Any = None
) -> ParameterMasks:
    """Find the parameter of every mask.

    Args:
        model: a module, or its named parameters. ``fully_shard`` replaces parameters, so call this after it.
        masks: a `MaskSet`, or booleans by name; true where the optimizer may write. Names are compared without what
            wrappers add (``module.``, ``_orig_mod.``).
        base: the opened checkpoint from which training starts; a mask set made for another one is refused.

    Raises:
        InputError: a mask has no parameter, another shape, or is not boolean; its parameter is frozen, flattened
            (FSDP1, DeepSpeed) or complex; two names of one tied parameter have masks; every mask is empty; the mask
            set belongs to another base.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> masks_for(layer, {"weight": torch.tensor([[True, False]])})[layer.weight]
    tensor([[ True, False]])
    """
    if base is not None:
        masks.check_base(base)  # pyright: ignore[reportAttributeAccessIssue]  # only a MaskSet knows its base
    pairs = list(model.named_parameters(remove_duplicate=False) if isinstance(model, nn.Module) else model)
    named = {canonical(name): parameter for name, parameter in pairs}
    names = list(masks if isinstance(masks, Mapping) else masks.names)
    places: dict[Tensor, str] = {}
    for name in names:
        parameter = named.get(canonical(name))
        if parameter is None:
            raise _homeless(name, names, named)
        if parameter in places:
            raise InputError(
                f"use the masks of {places[parameter]!r} and {name!r}",
                "both are names of one tied parameter",
                "give a mask for one of them",
            )
        _check(name, parameter)
        places[parameter] = name
    found = ParameterMasks(masks, places, {parameter: name for name, parameter in reversed(pairs)})
    allowed = sum(bool(mask.any()) for mask in found.values())  # loads each one, which checks its dtype and shape
    if not allowed:
        raise InputError("train inside these masks", "they allow no entry at all", "check how the masks were made")
    return found


def _check(name: str, parameter: Tensor) -> None:
    """A masked parameter can be trained entry by entry."""
    asked = f"train {name!r} inside its mask"
    if not parameter.requires_grad:
        raise InputError(asked, "the parameter is frozen", "set requires_grad, or leave its mask out")
    if not parameter.is_floating_point():
        raise InputError(asked, f"it is {parameter.dtype}", "masked optimizers move real floating-point weights")


def _misshapen(name: str, shape: tuple[int, ...], parameter: Tensor) -> InputError:
    asked, has = f"use the mask of {name!r}", tuple(parameter.shape)
    if len(has) == 1 and len(shape) > 1:
        return InputError(
            asked,
            f"the mask is {list(shape)} and the parameter flat, {list(has)}, as FSDP1 and DeepSpeed ZeRO make it",
            "shard with FSDP2 (fully_shard), which keeps parameters apart",
        )
    return InputError(
        asked, f"the mask is {list(shape)} and the parameter {list(has)}", "give the masks of this model's base"
    )


def _homeless(name: str, names: list[str], named: Mapping[str, Tensor]) -> InputError:
    lost = [each for each in names if canonical(each) not in named]
    experts = ".experts." in name and any(".experts." in each for each in named)
    do_next = (
        "the model fuses its experts: give one mask per fused parameter, by the parameter's name"
        if experts
        else f"names of this model look like {next(iter(named), '(it has none)')!r}"
    )
    return InputError(
        f"find the parameter of mask {name!r}",
        f"{len(lost)} of {len(names)} masks have no parameter in the model",
        do_next,
    )
