"""Functions that child processes and Ray workers can import; not a test."""

import gc
import os
import signal
import time
from pathlib import Path

from offprincipal.errors import InputError

IMPORTED_BY = os.getpid()


class Stubborn(Exception):
    """Cannot be unpickled: its constructor wants two arguments, its state holds one."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def double(item):
    return item, 2 * item


def fail_on_three(item):
    if item == 3:
        raise InputError("read tensor 'w'", "it is torn", "fetch it again")
    return item


def divide(item):
    return 1 / item


def stubborn(item):
    raise Stubborn("two", "words")


def die_on_three(item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def leave_on_three(item):
    if item == 3:
        os._exit(7)
    return item


def thread_settings(item):
    import torch

    return torch.get_num_threads(), os.environ["NUMBA_NUM_THREADS"]


def lineage(item):
    """Which process imported this module, which one runs it, and the parent of that."""
    time.sleep(0.05)  # so that no process does everything
    return IMPORTED_BY, os.getpid(), os.getppid()


def variable(name):
    return os.environ.get(name)


def sleep_with_pid(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)


def slowed(function, item):
    time.sleep(0.3)
    return function(item)


def lose_its_worker_once(item):
    """Kills the worker that runs it the first time; `item` is a file that remembers."""
    if not Path(item).exists():
        Path(item).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.path.basename(item)


def collecting(item):
    return gc.isenabled()
