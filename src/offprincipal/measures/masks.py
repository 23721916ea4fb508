"""Masks chosen from the base alone: largest, smallest, principal, safe; overlap, lift, Jaccard.

What it is: exact top fractions with one tie rule, at any size. What it is not: the update mask (``sweep``), the nulls
(``nulls``), or many masks at once (``levels``).

Ties: a mask is a function of the weights alone and has exactly ``round(alpha n)`` ones (half to even). Low magnitude
goes by bfloat16 magnitude code, then by flat index; principal by ``|W0^(r)|`` in float64, then by flat index.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from offprincipal.measures import _mask_pass, bits
from offprincipal.measures.bits import flat_codes
from offprincipal.measures.spectrum import Factors

ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Mask sizes of the overlap curves (DEFINITIONS section 2)."""

ALPHA = 0.5
"""Default mask size: PNT section 5.1."""

RANKS = (16, 64, 128, 512)
"""Ranks of the principal mask whose sensitivity is reported (*ours*)."""

RANK = 64
"""Default rank: PNT states none; arXiv 2606.07082."""


def count(alpha: float, entries: int) -> int:
    """How many ones a mask of fraction `alpha` has: ``round(alpha n)``, half to even.

    >>> count(0.5, 5), count(0.3, 10)
    (2, 3)
    """
    return round(alpha * entries)


def nonfinite(weight: Shaped[Tensor, "*shape"]) -> Bool[Tensor, "*shape"] | None:
    """Where a weight is NaN or infinite; None where nothing is. Any shape and floating dtype.

    >>> nonfinite(torch.ones(2)) is None, nonfinite(torch.tensor([1.0, float("nan")])).tolist()
    (True, [False, True])
    """
    fast = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    if fast and not _mask_pass.any_nonfinite(flat_codes(weight)):
        return None
    found = ~torch.isfinite(weight.to(torch.float32) if weight.itemsize == 1 else weight)
    return found if bool(found.any()) else None


def smallest(weight: Shaped[Tensor, "*shape"], ones: int) -> Bool[Tensor, "*shape"]:
    """The `ones` smallest magnitudes: by bfloat16 magnitude code, then by flat index (M_low, PNT section 4.3).

    Any shape, floating dtype and size; NaN counts as largest. Boolean out, exactly `ones` true.

    >>> smallest(torch.tensor([1.0, -0.5, 1.0, 2.0]), 2).tolist()
    [True, True, False, False]
    """
    levels = np.zeros(weight.numel(), np.uint8)
    mark_low(flat_codes(weight), ones, 1, levels)
    return torch.from_numpy(levels).view(torch.bool).reshape(weight.shape).to(weight.device)


def count_codes(weight: Shaped[Tensor, "*shape"]) -> np.ndarray:
    """How many entries have each bfloat16 magnitude code: int64 [32768].

    >>> int(count_codes(torch.ones(3))[16256])
    3
    """
    return _count(flat_codes(weight))


def _count(codes: np.ndarray) -> np.ndarray:
    counted = np.zeros(bits.MAGNITUDE_CODES, np.int64)
    _mask_pass.count_codes(codes, counted)
    return counted


def mark_low(codes: np.ndarray, ones: int, bit: int, levels: np.ndarray) -> None:
    """Or `bit` into the levels (uint8) of the `ones` smallest of these flat codes, as `smallest` orders them."""
    counted = _count(codes)
    reached = np.cumsum(counted)
    last = int(np.searchsorted(reached, ones))
    if last >= bits.MAGNITUDE_CODES:  # only an empty matrix has no code to end in
        return
    _mask_pass.mark_low(codes, last, ones - int(reached[last] - counted[last]), np.uint8(bit), levels)


def largest(score: Float[Tensor, "*shape"], ones: int) -> Bool[Tensor, "*shape"]:
    """The `ones` entries of largest ``|score|``, compared in float64; equal scores by flat index.

    Any shape and size. Boolean out, exactly `ones` true. No sort: bins of the float64 pattern, then one bin exactly.

    >>> largest(torch.tensor([1.0, -3.0, 1.0, 2.0]), 3).tolist()
    [True, True, False, True]
    """
    levels = np.zeros(score.numel(), np.uint8)
    select(score.to(torch.float64).cpu().contiguous().numpy().reshape(-1), [ones], 0, levels)
    return torch.from_numpy(levels).view(torch.bool).reshape(score.shape).to(score.device)


def select(scores: np.ndarray, ones: Sequence[int], shift: int, levels: np.ndarray) -> list[float]:
    """Or into `levels`, shifted left by `shift`, how many of the nested masks hold each entry.

    Args:
        scores: flat float64, no NaN; ordered by magnitude, then by index.
        ones: sizes of the masks, rising.
        shift: bit at which the level is stored.
        levels: uint8, one per score; changed in place.

    Returns:
        The least ``|score|`` inside each mask (infinite for an empty one). An entry of level 1 lies in the largest
        mask alone, one of level ``len(ones)`` in all.
    """
    patterns = scores.view(np.uint64)
    counted, of = np.zeros(_mask_pass.BINS, np.int64), (_mask_pass.MAGNITUDE, _mask_pass.SHIFT)
    _mask_pass.count_bins(patterns, *of, counted)
    above = counted[::-1].cumsum()[::-1] - counted  # entries in higher bins
    edges = [int(np.argmax(above < size)) if size else _mask_pass.BINS for size in ones]
    level, opened = np.zeros(_mask_pass.BINS, np.uint8), np.zeros(_mask_pass.BINS, np.bool_)
    for edge, size in zip(edges, ones, strict=True):
        level[edge + 1 :] += 1
        if size:
            opened[edge] = True
    where = np.empty(int(counted[opened].sum()), np.int64)
    _mask_pass.level_bins(patterns, *of, level, opened, np.uint8(shift), levels, where)
    values = np.abs(scores[where])
    bins = values.view(np.uint64) >> _mask_pass.SHIFT
    return [
        _settle(values, bins == edge, where, size - int(above[edge]), shift, levels) if size else float("inf")
        for edge, size in zip(edges, ones, strict=True)
    ]


def _settle(
    values: np.ndarray, at: np.ndarray, where: np.ndarray, quota: int, shift: int, levels: np.ndarray
) -> float:
    """Give the `quota` largest of the entries `at` one level more; return the least value that got it."""
    here, places = values[at], where[at]
    threshold = np.partition(here, len(here) - quota)[len(here) - quota]
    over = here > threshold
    equal = np.flatnonzero(here == threshold)[: quota - int(over.sum())]  # `where` rises: flat order
    levels[places[over]] += np.uint8(1 << shift)
    levels[places[equal]] += np.uint8(1 << shift)
    return float(threshold)


def low_rank(factors: Factors, rank: int) -> Float[Tensor, "out in"]:
    """``W0^(r)``, the rank-r truncated reconstruction, float64 ``[out, in]`` (PNT section 4.2).

    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> low_rank(Factors(torch.tensor([3.0]).double(), one, one), 1).item()
    3.0
    """
    return (factors.left[:, :rank] * factors.values[:rank]) @ factors.right[:, :rank].T


def principal(factors: Factors, rank: int = RANK, alpha: float = ALPHA) -> Bool[Tensor, "out in"]:
    """M_princ(r, alpha): the largest entries of ``|W0^(r)|`` (PNT section 4.2, after LIFT, arXiv 2506.00772).

    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> principal(Factors(torch.tensor([3.0]).double(), one, one), 1, 1.0).item()
    True
    """
    score = low_rank(factors, rank)
    return largest(score, count(alpha, score.numel()))


def safe(low: Bool[Tensor, "*shape"], principal: Bool[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """M_low or not M_princ: where PNT section 5.1 lets the optimizer write.

    >>> safe(torch.tensor([True, False]), torch.tensor([True, True])).tolist()
    [True, False]
    """
    return low | ~principal


def principal_rank(shape: tuple[int, int], rank: int = RANK) -> int:
    """The rank used on a matrix of this shape: capped at half the short side, at least 1 (DEFINITIONS section 2).

    >>> principal_rank((40, 4096)), principal_rank((1, 7))
    (20, 1)
    """
    return max(1, min(rank, min(shape) // 2))


def overlap(mask: Bool[Tensor, "*shape"], changed: Bool[Tensor, "*shape"]) -> float:
    """``|A and M| / |M|`` (PNT section 4.2); nan when nothing changed. Chance level is ``|A| / n``.

    >>> overlap(torch.tensor([True, False]), torch.tensor([True, True]))
    0.5
    """
    moved = int(changed.sum())
    return int((mask & changed).sum()) / moved if moved else float("nan")


def lift(inside: int, changed: int, ones: int, entries: int) -> float:
    """Overlap over chance: ``(inside / changed) / (ones / entries)``; nan where either is empty.

    >>> lift(25, 100, 50, 100)
    0.5
    """
    return inside * entries / (changed * ones) if changed and ones else float("nan")


def feasible(changed: int, ones: int, entries: int) -> tuple[float, float]:
    """Least and largest overlap that these counts allow: a dense update pins it near chance (paper.md 1.7).

    >>> feasible(90, 50, 100)
    (0.4444444444444444, 0.5555555555555556)
    """
    if not changed:
        return float("nan"), float("nan")
    return max(0, changed + ones - entries) / changed, min(ones, changed) / changed


def jaccard(left: Bool[Tensor, "*shape"], right: Bool[Tensor, "*shape"]) -> float:
    """``|A and B| / |A or B|`` (PNT section 2.2); nan when both are empty.

    >>> jaccard(torch.tensor([True, True]), torch.tensor([True, False]))
    0.5
    """
    union = int((left | right).sum())
    return int((left & right).sum()) / union if union else float("nan")
