"""How worker processes begin: forked from a server that has imported what they need, or spawned; always quietly."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_all_start_methods, resource_tracker, set_forkserver_preload

from offprincipal.fanout._attempt import ByName

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""What torch, its linear algebra, numpy's and numba read at import to size their thread pools."""

MEMORY_VARIABLES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""Make glibc keep freed memory for the next tensor. Otherwise it maps every large one anew and unmaps it after use,
and the system clears each page again as it is touched: 1.3 million page faults and 34.3 s in a comparison that takes
0.35 million and 32.8 s with these (*ours*, measured). glibc reads them when a process is executed, musl never."""

SERVED = "OFFPRINCIPAL_SERVED"
"""Tells a fork server which process to end with."""

_SCREEN = {"LINES", "COLUMNS"}  # readline gives them to children, whether or not os.environ has them

_PACKAGE = __name__.partition(".")[0]

_warmed: set[str] = set()


def warm(module: str, jobs: int | None = None) -> None:
    """Start importing in the background what `processes` will need, and return at once.

    For a program that is about to import slowly itself and will then fan out: its workers are forked from a server
    that has imported `module` meanwhile. They are spawned all the same where forking is not safe (`processes`), or
    where they would see anything else than spawned ones would: other variables, another number of threads. A server
    that is never used ends with the program and keeps nobody waiting.

    Args:
        module: of the function that `processes` will be given. Importing it must leave nothing behind that a fork
            breaks: threads, a CUDA context (to ask whether there is a GPU makes one), a random state of its own. Later
            changes of its file go unnoticed.
        jobs: how many workers there will be; one per core, at most eight, when None.
    """
    _warmed.add(module)
    jobs = usual_jobs() if jobs is None else jobs
    if jobs > 1 and forkable(module):
        with suppress(OSError):  # it is a head start: whatever is wrong, starting the workers tells
            start_server(module, variables(jobs))


def usual_jobs() -> int:
    """One worker per core, at most eight, since each takes half a gigabyte before any item."""
    return min(os.cpu_count() or 1, 8)


def module_of(function: Callable) -> str:
    """The module that a child imports to get this function; empty if there is no telling.

    >>> module_of(partial(partial(print, "a"), "b")), module_of(ByName("math", "sqrt"))
    ('builtins', 'math')
    """
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, ByName):
        return function.module
    return getattr(function, "__module__", None) or ""


def forkable(module: str) -> bool:
    """Whether workers for functions of this module may be forked from a server that has imported it.

    Not every import bears it (see `warm`). This package's modules do; others on the word of whoever warms them. On
    macOS the system's own libraries do not.
    """
    ours = module in _warmed or module.startswith(f"{_PACKAGE}.")
    return ours and sys.platform != "darwin" and "forkserver" in get_all_start_methods()


def start_server(module: str, environment: Mapping[str, str]) -> None:
    """Have a fork server that has imported the module, or is about to; one that already runs stays as it is."""
    from multiprocessing.forkserver import ensure_running  # there is none on Windows

    set_forkserver_preload([f"{__package__}._server", module])
    # "python -c" would look for every module in the working directory first; children are given the parent's path
    own = {"PYTHONSAFEPATH": os.environ.get("PYTHONSAFEPATH") or "1"}
    if threading.current_thread() is threading.main_thread():  # any other thread may end before the process
        own[SERVED] = str(os.getpid())
    with quiet_start({**environment, **own}):
        ensure_running()


def variables(jobs: int) -> dict[str, str]:
    """What each of so many workers finds in its environment beside the parent's: its share of the cores, memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = MEMORY_VARIABLES if sys.platform == "linux" else {}
    return {
        **dict.fromkeys(THREAD_VARIABLES, str(max(1, cores // jobs))),
        **{name: value for name, value in memory.items() if name not in os.environ},
    }


@contextmanager
def quiet_start(environment: Mapping[str, str]) -> Iterator[None]:
    """Processes started inside get these variables and leave Ctrl-C to the parent, which ends them."""
    before = {name: os.environ.get(name) for name in environment}
    masked = hasattr(signal, "pthread_sigmask") and threading.current_thread() is threading.main_thread()
    if masked:
        resource_tracker.ensure_running()  # a first child would start it, and starting it unblocks Ctrl-C
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masked else None
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@dataclass(frozen=True)
class Surroundings:
    """What a spawned child would see. A forked one sees what there was when its server started.

    Attributes:
        environment: every variable.
        origins: the files of this package and of the function's, by name: on another path another copy is found.
    """

    environment: dict[str, str]
    origins: dict[str, str | None]

    @classmethod
    def of(cls, module: str, environment: Mapping[str, str]) -> "Surroundings":
        """What a child would see that is spawned now, with these variables, for a function of this module."""
        roots = {_PACKAGE, module.partition(".")[0]}
        return cls({**os.environ, **environment}, {root: _origin(root) for root in roots})

    def hold(self) -> bool:
        """Whether this process, forked from a server, sees the same."""
        if "PYTHONSAFEPATH" not in self.environment:
            os.environ.pop("PYTHONSAFEPATH", None)  # was for the server
        different = {name for name, _ in self.environment.items() ^ os.environ.items()}
        return different <= _SCREEN and all(
            root not in sys.modules or _origin(root) == file for root, file in self.origins.items()
        )


def _origin(root: str) -> str | None:
    return getattr(sys.modules.get(root), "__file__", None)
