"""Python's search for garbage, put off where there is none to find."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Run something that makes a million objects and hardly any garbage: importing torch, drawing a page.

    To look for cycles among them takes a fifth of an import and a third of a page. What was made is left out of
    later searches too: most of it stays to the end.

    >>> with uncollected():
    ...     gc.isenabled()
    False
    >>> gc.isenabled()
    True
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
