"""For a fork server, which imports this before anything else: it then ends at once with the process that started it.

By itself it notices only when its imports are over, and takes torch down module by module; meanwhile it holds the
command's output open, and whoever reads that to its end (a pipe, a shell's ``$(...)``) waits a second for nothing.
Its imports are a fifth quicker without a search for garbage; a worker switches that on again (``_processes``).
"""

import ctypes
import gc
import os
import signal
import sys

from offprincipal.fanout._start import SERVED

PR_SET_PDEATHSIG = 1

if os.environ.pop(SERVED, None) == str(os.getppid()) and sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    gc.disable()
