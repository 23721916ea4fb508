"""Items over fresh processes of this machine: a pipe to each, one item in each."""

import gc
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from offprincipal.errors import OffprincipalError
from offprincipal.fanout._attempt import attempt, loaded, name_of, outcome
from offprincipal.fanout._start import Surroundings, forkable, module_of, quiet_start, start_server, variables


@dataclass
class _Worker:
    process: BaseProcess
    pipe: connection.Connection
    item: object = None


def _end_with(parent: int) -> None:
    """A child whose parent was killed would finish its item, perhaps beside the run that took the parent's place."""
    connection.wait([parent])
    os._exit(1)


def _worker(pipe: connection.Connection, expected: Surroundings | None) -> None:
    """Life of a child: the function first, then items until the parent closes the pipe; it ends with its parent.

    Of a forked child the parent first asks whether it sees what is expected.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # blocked until here; a tracker started by an item would unblock it
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        if expected is not None:
            pipe.send(expected.hold())
        function = loaded(pipe.recv_bytes())
        gc.freeze()  # what was imported stays; were it searched for garbage, a forked child would copy its pages
        gc.enable()
        while True:
            pipe.send_bytes(attempt(function, pickle.loads(pipe.recv_bytes())))


def _start(workers: list[_Worker], module: str, jobs: int) -> None:
    """Forked workers where they may be and see what spawned ones would, else spawned ones.

    They are put into the list one by one: whatever interrupts this, the caller can stop those that are there.
    """
    if forkable(module):
        with suppress(EOFError, OSError):  # the server died: an import failed there, or memory ran out
            surroundings = Surroundings.of(module, variables(jobs))
            start_server(module, variables(jobs))
            _launch(workers, get_context("forkserver"), jobs, surroundings)
            if all(worker.pipe.recv() for worker in workers):
                return
        _stop(workers, patience=0.0)
        workers.clear()
    with quiet_start(variables(jobs)):
        _launch(workers, get_context("spawn"), jobs)


def _launch(workers: list[_Worker], context: BaseContext, jobs: int, surroundings: Surroundings | None = None) -> None:
    for _ in range(jobs):
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs, surroundings), daemon=True)  # type: ignore[attr-defined]
        process.start()
        theirs.close()  # so that the end of the process is the end of the file
        workers.append(_Worker(process, ours))


def over_processes(function: Callable, items: Iterator, jobs: int) -> Iterator:
    """See `fanout.processes`; at least two jobs."""
    first = list(islice(items, jobs))
    if not first:
        return
    payload = pickle.dumps(function)
    workers: list[_Worker] = []
    finished = False
    try:
        _start(workers, module_of(function), len(first))
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
