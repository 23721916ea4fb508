"""Training inside masks and with geometry-aware adapters. Masks need torch and numba, the rest transformers and PEFT.

The public names, imported on first use: nothing here pulls in an extra until it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offprincipal.train._guard import keep_off_mask
    from offprincipal.train._masks import ParameterMasks, masks_for
    from offprincipal.train.masked import MaskedAdamW, MaskedSGD

__all__ = ["MaskedAdamW", "MaskedSGD", "ParameterMasks", "keep_off_mask", "masks_for"]

_HOME = {
    "MaskedAdamW": "masked",
    "MaskedSGD": "masked",
    "ParameterMasks": "_masks",
    "keep_off_mask": "_guard",
    "masks_for": "_masks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'offprincipal.train' has no attribute {name!r}")
    return getattr(import_module(f"offprincipal.train.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
