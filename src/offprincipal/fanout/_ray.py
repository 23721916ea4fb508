"""Items over a Ray cluster; ray is handed in by the caller, who imported it."""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from offprincipal.errors import OffprincipalError, UsageError
from offprincipal.fanout._attempt import attempt, loaded, name_of, outcome
from offprincipal.fanout._start import THREAD_VARIABLES


def submitter_of(
    ray: Any, function: Callable, gpus: float, cpus: float, max_retries: int
) -> Callable[[object], object]:
    """How to submit one item. The function is stored once, on the node of the driver, which outlives the others."""
    threads = dict.fromkeys(THREAD_VARIABLES, str(max(1, int(cpus))))
    stored = ray.put(ray.cloudpickle.dumps(function))
    task = ray.remote(
        num_cpus=cpus,
        num_gpus=gpus,
        max_retries=max_retries,
        retry_exceptions=False,
        runtime_env={"env_vars": threads},
    )(_attempt_pickled)
    return lambda item: task.remote(stored, item)


def over_ray(
    ray: Any, submitter: Callable[[], Callable], items: Iterator, gpus: float, cpus: float, address: str | None
) -> Iterator:
    ours = not ray.is_initialized()
    if ours:
        alone = address is None and "RAY_ADDRESS" not in os.environ
        ray.init(address=address, log_to_driver=False, **({"include_dashboard": False} if alone else {}))
    pending: dict[Any, object] = {}
    try:
        submit = submitter()
        while True:
            for item in islice(items, max(0, 2 * _slots(ray, gpus, cpus) - len(pending))):
                pending[submit(item)] = item
            if not pending:
                return
            ready, _ = ray.wait(list(pending), num_returns=1)
            yield outcome(_ray_result(ray, ready[0], pending.pop(ready[0])))
    finally:
        for task in pending:
            ray.cancel(task, force=True)
        if ours:
            ray.shutdown()


def _slots(ray: Any, gpus: float, cpus: float) -> int:
    """How many tasks the cluster can run at once now; it may grow and shrink."""
    have = ray.cluster_resources()
    slots = (
        min(have.get(kind, 0) / need for kind, need in (("GPU", gpus), ("CPU", cpus)) if need) if gpus or cpus else 1
    )
    if slots < 1:
        found = f"the cluster has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs"
        raise UsageError(
            f"fan out over a Ray cluster with {cpus:g} CPUs and {gpus:g} GPUs per task", found, "ask for less per task"
        )
    return int(slots)


def _ray_result(ray: Any, task: object, item: object) -> bytes:
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        words = str(error).strip().splitlines()
        found = f"Ray lost it for good ({type(error).__name__}: {words[0] if words else 'no message'})"
        raise OffprincipalError(f"work on {name_of(item)}", found, "look at the cluster's memory and nodes") from error


def _attempt_pickled(payload: bytes, item: object) -> bytes:
    return attempt(loaded(payload), item)
