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

hidden = sys.modules.setdefault(BLAS, None) is None  # type: ignore[arg-type]  # Python's way to say: there is none
try:
    any_nonfinite(np.zeros(1, np.uint16))
finally:
    if hidden:
        del sys.modules[BLAS]
