"""What a worker does with one item, and how its outcome travels."""

import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from offprincipal.errors import OffprincipalError


@dataclass(frozen=True)
class ByName:
    """A function by its name: whoever hands out work need not import what the work needs.

    Attributes:
        module: where it lives; imported by the first call, and before any call by a fork server.
        name: what it is called there.

    >>> ByName("math", "sqrt")(4)
    2.0
    """

    module: str
    name: str

    def __call__(self, item: Any) -> Any:
        """Call it."""
        return getattr(import_module(self.module), self.name)(item)


def name_of(item: object) -> str:
    """How an item is called in messages: its ``name``, else the start of its repr.

    >>> name_of(range(3)), len(name_of("x" * 1000))
    ('range(0, 3)', 120)
    """
    name = getattr(item, "name", None)
    text = name if isinstance(name, str) else repr(item)
    return text if len(text) <= 120 else text[:117] + "..."


def attempt(function: Callable[[Any], Any], item: object) -> bytes:
    """The pickled outcome of one item: (True, result) or (False, exception).

    Plain pickle, not multiprocessing's: torch teaches the latter to share memory between processes, and that memory
    ends with the worker.
    """
    try:
        return pickle.dumps((True, function(item)), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # any exception of the caller's function; it is raised again by `outcome`
        return pickle.dumps((False, _portable(error, item)))


def _portable(error: Exception, item: object) -> Exception:
    """The exception itself if it survives pickling, else its words; with a note of where it happened."""
    if not isinstance(error, OffprincipalError):
        error.add_note(f"in a worker, on {name_of(item)}:\n{''.join(traceback.format_exception(error)).rstrip()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a foreign exception's own pickling raises
        words = f"{type(error).__name__}: {error}"
        return OffprincipalError(f"work on {name_of(item)}", words, "see the message; it came from a worker")
    return error


def outcome(payload: bytes) -> Any:
    """The result that `attempt` packed, or its exception, raised."""
    succeeded, value = pickle.loads(payload)
    if not succeeded:
        raise value
    return value


def give_up(error: Exception, _item: object) -> None:
    """Stands in for a function that could not be loaded: raises why, for the first item."""
    raise error


def loaded(payload: bytes) -> Callable[[Any], Any]:
    """The pickled function; if its module cannot be imported here, a function that says so."""
    try:
        return pickle.loads(payload)
    except Exception as error:  # whatever importing the caller's module raises
        return partial(give_up, error)
