"""What workers are forked from: a process that has imported how a tensor is measured, and has begun numba.

numba's first call takes .3 s of a process, .2 s of them for scipy's BLAS, which no loop here uses; forked workers pay
neither. What it is not: needed. Where workers are spawned, each begins for itself.
"""

import sys

import numpy as np

from offprincipal import measurement as measurement
from offprincipal.measures._mask_pass import any_nonfinite

BLAS = "scipy.linalg.cython_blas"
"""What numba looks for once, as it begins, and does without."""

if BLAS not in sys.modules:
    sys.modules[BLAS] = None  # type: ignore[assignment]  # Python's way to say that there is none
    try:
        any_nonfinite(np.zeros(1, np.uint16))
    finally:
        del sys.modules[BLAS]
