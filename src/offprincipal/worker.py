"""What workers are forked from: a process that has imported how a tensor is measured, and has begun numba.

Numba's first call in a process takes .3 s; a server that makes it spares each worker its own.
"""

import numpy as np

from offprincipal.measurement import measure_tensor as measure_tensor
from offprincipal.measures._mask_pass import any_nonfinite

any_nonfinite(np.zeros(1, np.uint16))
