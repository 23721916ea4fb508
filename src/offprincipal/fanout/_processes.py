"""Items over fresh processes of this machine: a pipe to each, one item in each."""

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.process import BaseProcess

from offprincipal.errors import OffprincipalError
from offprincipal.fanout._attempt import attempt, loaded, name_of, outcome

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""What torch, its linear algebra, numpy's and numba read at import to size their thread pools."""


@dataclass
class _Worker:
    process: BaseProcess
    pipe: connection.Connection
    item: object = None


def _end_with(parent: int) -> None:
    """A child whose parent was killed would finish its item, perhaps beside the run that took the parent's place."""
    connection.wait([parent])
    os._exit(1)


def _worker(pipe: connection.Connection) -> None:
    """Life of a child: the function first, then items until the parent closes the pipe; it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # blocked until here; a tracker started by an item would unblock it
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        function = loaded(pipe.recv_bytes())
        while True:
            pipe.send_bytes(attempt(function, pickle.loads(pipe.recv_bytes())))


@contextmanager
def _quiet_start(threads: int) -> Iterator[None]:
    """Children started inside get this many threads and leave Ctrl-C to the parent, which ends them."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    masked = hasattr(signal, "pthread_sigmask") and threading.current_thread() is threading.main_thread()
    if masked:
        resource_tracker.ensure_running()  # a first child would start it, and starting it unblocks Ctrl-C
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masked else None
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
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


def _start(jobs: int) -> list[_Worker]:
    context, workers = get_context("spawn"), []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with _quiet_start(max(1, cores // jobs)):
        for _ in range(jobs):
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the file
            workers.append(_Worker(process, ours))
    return workers


def over_processes(function: Callable, items: Iterator, jobs: int) -> Iterator:
    """See `fanout.processes`; at least two jobs."""
    first = list(islice(items, jobs))
    if not first:
        return
    payload = pickle.dumps(function)
    workers: list[_Worker] = []
    finished = False
    try:
        workers = _start(len(first))
        busy = {worker.pipe: worker for worker in workers}
        for worker, item in zip(workers, first, strict=True):
            _send(worker, item, payload)
        while busy:
            for pipe in connection.wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                value = outcome(_receive(worker))
                for item in islice(items, 1):
                    _send(worker, item)
                    break
                else:
                    del busy[worker.pipe]
                yield value
        finished = True
    finally:
        _stop(workers, patience=5.0 if finished else 0.0)


def _send(worker: _Worker, item: object, first: bytes | None = None) -> None:
    worker.item = item
    with suppress(BrokenPipeError, ConnectionResetError):  # it died: `_receive` says so, with the item's name
        if first is not None:
            worker.pipe.send_bytes(first)
        worker.pipe.send_bytes(pickle.dumps(item))


def _receive(worker: _Worker) -> bytes:
    try:
        return worker.pipe.recv_bytes()
    except (EOFError, ConnectionResetError):
        worker.process.join(5.0)
        code = worker.process.exitcode
        killed = code is not None and code < 0
        found = (
            f"its process was killed by {signal.Signals(-code).name}"
            if code is not None and code < 0
            else f"its process ended with {code}"
        )
        do_next = "if memory ran out, use fewer jobs" if killed else "see what the process printed"
        raise OffprincipalError(f"work on {name_of(worker.item)}", found, do_next) from None


def _stop(workers: list[_Worker], patience: float) -> None:
    """Close the pipes, which ends idle children; after `patience` seconds end those that are still there."""
    for worker in workers:
        worker.pipe.close()
    deadline = time.monotonic() + patience
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
    for worker in workers:
        if worker.process.is_alive():
            worker.process.terminate()
    for worker in workers:
        worker.process.join(2.0)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.process.close()
