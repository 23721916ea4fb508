"""Map a function over items: here, over threads or processes of this machine, or over a Ray cluster.

What it is: four functions of one shape. Each takes a picklable function of one item and the items, and yields one
result per item *as it finishes*, in any order: put into the result what tells the items apart. An exception of the
function stops the run and arrives as itself; a worker that dies is an error that names its item, never a hang.
What it is not: a scheduler. It knows nothing of tensors, files or what was done before.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Protocol, TypeVar

from offprincipal.errors import UsageError
from offprincipal.fanout._attempt import ByName, name_of
from offprincipal.fanout._processes import over_processes
from offprincipal.fanout._ray import over_ray, submitter_of
from offprincipal.fanout._shard import deal, shard
from offprincipal.fanout._start import usual_jobs, warm

__all__ = [
    "ENGINES",
    "ByName",
    "Engine",
    "deal",
    "engine",
    "here",
    "name_of",
    "processes",
    "ray_cluster",
    "shard",
    "threads",
    "usual_jobs",
    "warm",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

ENGINES = ("here", "processes", "ray")
"""The names that `engine` knows."""


class Engine(Protocol):
    """What `engine` returns: called with a function and items, it yields one result per item as it finishes."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield one result per item as it finishes."""
        ...


def engine(name: str, jobs: int = 1, **options: Any) -> Engine:
    """The engine of that name, its settings filled in.

    Args:
        name: "here", "processes" or "ray".
        jobs: worker processes; "processes" with one job is "here".
        options: passed to `ray_cluster`.

    Raises:
        UsageError: no engine has this name, or there are fewer than one job.

    >>> list(engine("here")(abs, [-1, 2]))
    [1, 2]
    """
    if name == "here":
        return here
    if name == "processes":
        _check_jobs(jobs)
        return partial(processes, jobs=jobs)
    if name == "ray":
        return partial(ray_cluster, **options)
    raise UsageError(f"fan out with engine {name!r}", "there is no such engine", f"choose one of {', '.join(ENGINES)}")


def here(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """One item after the other in this process, in order; the twin that the others are tested against.

    >>> list(here(abs, [-1, 2]))
    [1, 2]
    """
    return map(function, items)


def threads(function: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> Iterator[Result]:
    """Over `jobs` threads of this process: no start, no pickling; for work that mostly leaves Python's lock alone.

    Items are drawn only when a thread is free. An exception of the function stops the run once the items that were
    begun have ended.

    Raises:
        UsageError: fewer than one job.

    >>> sorted(threads(abs, [-1, 2], 2))
    [1, 2]
    """
    _check_jobs(jobs)
    running: set[Future[Result]] = set()
    with ThreadPoolExecutor(jobs) as pool:
        for item in items:
            running.add(pool.submit(function, item))
            if len(running) == jobs:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in done)
        yield from (each.result() for each in running)


def processes(function: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> Iterator[Result]:
    """Over `jobs` fresh processes of this machine, which inherit nothing of what this one has done.

    For functions of this package, and of modules that were warmed (`warm`), they are forked from a server process
    that has imported the function's module and done nothing else (start method "forkserver"), so that N processes
    import torch once. They are spawned for any other function, on macOS and Windows, and where variables of the
    environment have changed since that server started.

    Each process holds one item at a time, and items are drawn only when a process is free, so that memory is that of
    `jobs` items. The processor's cores are divided among the processes: torch, BLAS and numba start with cores/jobs
    threads each. Leaving early (an exception, Ctrl-C, a closed iterator) ends the processes at once.

    Args:
        function: picklable, of one item; importable from the child.
        items: picklable, each small: workers read their own data.
        jobs: at least 1; 1 works in this process.

    Raises:
        UsageError: fewer than one job.
        OffprincipalError: a process died, most often for lack of memory; the item is named.
    """
    _check_jobs(jobs)
    return here(function, items) if jobs == 1 else over_processes(function, iter(items), jobs)


def ray_cluster(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    gpus_per_task: float = 0,
    cpus_per_task: float = 1,
    address: str | None = None,
    max_retries: int = 8,
) -> Iterator[Result]:
    """Over a Ray cluster: one task per item, at most twice as many submitted as can run at once.

    Joins the Ray that this process already uses; otherwise the cluster at `address` (or in RAY_ADDRESS), otherwise
    starts one on this machine, which is stopped at the end. A task lost with its node or worker is run again
    elsewhere; an exception of the function is not retried. Every node needs offprincipal and the same paths or Hub
    cache.

    Args:
        function: picklable, of one item; its result travels to this process, so it has to be small.
        items: picklable and small.
        gpus_per_task: 1 gives each task a GPU of its own; a fraction lets tasks share one.
        cpus_per_task: cores reserved for a task; also its number of threads.
        address: "auto", "ray://host:10001", "host:6379" or None.
        max_retries: how often a task may be lost with its node or worker before that is an error.

    Raises:
        UsageError: ray is not installed, or no node of the cluster can hold such a task.
        OffprincipalError: a task was lost more than `max_retries` times; the item is named.
    """
    try:
        import ray
    except ImportError:
        raise UsageError(
            "fan out over a Ray cluster", "ray is not installed", "run: pip install 'offprincipal[ray]'"
        ) from None
    submit = partial(submitter_of, ray, function, gpus_per_task, cpus_per_task, max_retries)
    return over_ray(ray, submit, iter(items), gpus_per_task, cpus_per_task, address)


def _check_jobs(jobs: int) -> None:
    if jobs < 1:
        raise UsageError("fan out over processes", f"{jobs} jobs were asked for", "ask for at least 1")
