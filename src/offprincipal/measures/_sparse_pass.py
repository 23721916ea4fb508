"""The compiled loops behind `_products`: a difference that is mostly zeros, multiplied by its nonzeros alone."""

from numba import njit

_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})


@_compiled
def columns(step, starts, rows, values):
    """The nonzeros of ``step [R, n]``, column after column.

    Column j has ``rows`` and ``values`` from ``starts[j]`` to ``starts[j + 1]`` (int32 [n + 1]), rows rising.
    """
    height, width = step.shape
    starts[:] = 0
    for i in range(height):
        for j in range(width):
            starts[j + 1] += step[i, j] != 0.0
    for j in range(width):
        starts[j + 1] += starts[j]
    at = starts[:width].copy()
    for i in range(height):
        for j in range(width):
            if step[i, j] != 0.0:
                rows[at[j]], values[at[j]] = i, step[i, j]
                at[j] += 1


@_compiled
def add_products(starts, rows, values, dense, lower, total):
    """Add ``step^T dense`` to ``total [n, k]``, or only what lies on and below its diagonal.

    Step as `columns` gives it, ``dense [R, k]``. Four rows at a time: a row of the total is read and written a quarter
    as often, and rounded a quarter as often too.
    """
    for j in range(total.shape[0]):
        width = j + 1 if lower else total.shape[1]
        row, k, stop = total[j], starts[j], starts[j + 1]
        while k + 4 <= stop:
            a, b, c, d = values[k], values[k + 1], values[k + 2], values[k + 3]
            first, second, third, fourth = dense[rows[k]], dense[rows[k + 1]], dense[rows[k + 2]], dense[rows[k + 3]]
            for i in range(width):
                row[i] += a * first[i] + b * second[i] + c * third[i] + d * fourth[i]
            k += 4
        while k < stop:
            a, first = values[k], dense[rows[k]]
            for i in range(width):
                row[i] += a * first[i]
            k += 1
