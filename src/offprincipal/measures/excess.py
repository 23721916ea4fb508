"""An observation beside its null: how many standard deviations lie between them."""

import math


def z_score(observed: float, expected: float, variance: float) -> float:
    """(observed - expected) / sd; zero when both the excess and the variance vanish, infinite when only the latter.

    >>> z_score(3.0, 1.0, 4.0)
    1.0
    """
    excess = observed - expected
    if variance <= 0:
        return 0.0 if abs(excess) < 1e-9 * max(1.0, abs(expected)) else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)
