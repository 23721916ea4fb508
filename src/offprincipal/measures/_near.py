"""Nested top fractions chosen from float32 scores, exactly: only entries near a threshold are looked at in float64.

What it is: `masks.select` at half the memory traffic. The caller says how far a float32 score may be from the true
one; an entry further from the threshold than twice that is decided, the few others are computed again. What it is not:
an approximation. Where too many entries are near (equal scores, thresholds at zero) it gives up: `select` decides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from offprincipal.measures import _mask_pass

CROWD = 16
"""Above one entry in so many near a threshold, recomputing them costs more than the whole in float64 (*ours*)."""

MAGNITUDE, SHIFT = np.uint32(0x7FFFFFFF), np.uint32(15)
"""A bin is the top of a float32 pattern: 8 bits of exponent and 8 of mantissa, 0.4 % wide."""

BINS = 1 << 16

Exact = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Chosen:
    """What `select_near` found.

    Attributes:
        threshold: the least true ``|score|`` inside the largest mask; infinite for an empty one.
        ties: how many entries lie within `slack` of it.
    """

    threshold: float
    ties: int


def select_near(
    scores: np.ndarray, error: float, slack: float, ones: Sequence[int], shift: int, levels: np.ndarray, exact: Exact
) -> Chosen | None:
    """Or into `levels`, shifted left by `shift`, how many of the nested masks of the true scores hold each entry.

    Args:
        scores: flat float32, no NaN.
        error: bound of ``|score - true score|``.
        slack: entries this close to the last threshold are counted as ties.
        ones: sizes of the masks, rising.
        shift: bit at which the level is stored.
        levels: uint8, one per score; changed in place, and only where something is returned.
        exact: true scores (float64) of flat indices.

    Returns:
        The last threshold and its ties; None, with `levels` as they were, where too many entries are near.
    """
    patterns, room = scores.view(np.uint32), 2 * error + slack
    counted = np.zeros(BINS, np.int64)
    _mask_pass.count_bins(patterns, MAGNITUDE, SHIFT, counted)
    above = counted[::-1].cumsum()[::-1] - counted  # entries in higher bins
    level, opened = np.zeros(BINS, np.uint8), np.zeros(BINS, np.bool_)
    reach = []
    for size in (size for size in ones if size):
        edge = int(np.argmax(above < size))
        low, high = _bin(_start(edge) - room, 0.0), _bin(_start(edge + 1) + room, np.inf)
        reach.append((size, edge, low, high))
        level[high + 1 :] += 1
        opened[low : high + 1] = True
    near = int(counted[opened].sum())
    if near > max(4096, scores.size // CROWD):
        return None
    where, found = np.empty(near, np.int64), Chosen(float("inf"), 0)
    _mask_pass.level_bins(patterns, MAGNITUDE, SHIFT, level, opened, np.uint8(shift), levels, where)
    values = np.abs(scores[where])
    bins = values.view(np.uint32) >> SHIFT
    for size, edge, low, high in reach:
        at, quota = (bins >= low) & (bins <= high), size - int(above[high])
        below = int(above[edge] + counted[edge]) - size  # of the edge's own bin, entries under the rough threshold
        rough = np.partition(values[bins == edge], below)[below]
        found = _settle(values[at], float(rough), room, where[at], quota, exact, np.uint8(1 << shift), levels, slack)
    return found


def _start(bin: int) -> float:
    """The least magnitude in a bin; infinite or nan beyond the largest finite ones."""
    return float(np.array([bin << int(SHIFT)], np.uint32).view(np.float32)[0])


def _bin(magnitude: float, towards: float) -> int:
    """The bin of a magnitude, rounded outwards to float32 so that rounding closes no bin."""
    if not magnitude < float(np.finfo(np.float32).max):
        return BINS - 1
    edge = np.nextafter(np.float32(max(magnitude, 0.0)), np.float32(towards))
    return int(np.array([edge], np.float32).view(np.uint32)[0] >> SHIFT)


def _settle(
    values: np.ndarray, rough: float, room: float, places: np.ndarray, quota: int, exact: Exact, one: np.uint8,
    levels: np.ndarray, slack: float,
) -> Chosen:  # fmt: skip
    """Give one level more to the `quota` entries of the largest true score, computing those near the threshold."""
    distance = values.astype(np.float64) - rough
    sure, close = distance > room, np.abs(distance) <= room
    true, places_close = np.abs(exact(places[close])), places[close]
    left = quota - int(sure.sum())
    order = np.argsort(-true, kind="stable")[:left]  # largest first, equal ones by index: `places` rise
    levels[places[sure]] += one
    levels[places_close[order]] += one
    threshold = float(true[order[-1]])
    return Chosen(threshold, int((np.abs(true - threshold) <= slack).sum()))
