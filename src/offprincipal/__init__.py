"""A microscope and a steering wheel for what reinforcement learning does to the weights of a language model.

The public names, imported on first use so that ``import offprincipal`` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offprincipal.checkpoint import describe, open_checkpoint
    from offprincipal.errors import CheckFailed, InputError, OffprincipalError, UsageError
    from offprincipal.pairs import pair
    from offprincipal.results import Comparison
    from offprincipal.survey import compare

__version__ = "0.1.0"

__all__ = [
    "CheckFailed",
    "Comparison",
    "InputError",
    "OffprincipalError",
    "UsageError",
    "compare",
    "describe",
    "open_checkpoint",
    "pair",
]

_HOME = {
    "CheckFailed": "errors",
    "Comparison": "results",
    "InputError": "errors",
    "OffprincipalError": "errors",
    "UsageError": "errors",
    "compare": "survey",
    "describe": "checkpoint",
    "open_checkpoint": "checkpoint",
    "pair": "pairs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'offprincipal' has no attribute {name!r}")
    return getattr(import_module(f"offprincipal.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
