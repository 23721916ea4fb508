"""Gaussian tails over the finite magnitude codes, compiled: the inner loop of the rounding null's bisection."""

import math

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def beyond(scale, outward, inward):
    """P(a step of this scale passes the outward or the inward half gap), float64, one per pair of half gaps."""
    result = np.empty(outward.size)
    root = scale * math.sqrt(2.0)
    for i in range(outward.size):
        result[i] = 0.0 if root == 0.0 else 0.5 * (math.erfc(outward[i] / root) + math.erfc(inward[i] / root))
    return result


@njit(nogil=True, cache=True)
def log_scale_for(changed, weights, outward, inward, low, high):
    """The natural logarithm of the scale at which `changed` entries are expected to be visible, by bisection."""
    for _ in range(60):
        middle = 0.5 * (low + high)
        if (weights * beyond(math.exp(middle), outward, inward)).sum() < changed:
            low = middle
        else:
            high = middle
    return high
