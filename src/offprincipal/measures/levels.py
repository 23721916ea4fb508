"""Every mask of the report on one base matrix, one byte per weight, and one pass that counts against all of them.

What it is: the level map (`levels`), the table of counts by magnitude code, level and changed (`cross`), and the sums
of |D| (`abs_on_mask`). What it is not: single masks (``masks``), which the tests hold against these.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from offprincipal.measures import _mask_pass, bits
from offprincipal.measures._gram import EPS
from offprincipal.measures._near import select_near
from offprincipal.measures.bits import flat_codes
from offprincipal.measures.masks import ALPHA, ALPHAS, RANKS, count, mark_low, principal_rank, select
from offprincipal.measures.spectrum import Factors

LOW_BIT = 6
"""Bit of the level byte that says M_low."""


@dataclass(frozen=True)
class Levels:
    """Every mask of the report on one base matrix, one byte per weight.

    Attributes:
        level: uint8 [out, in]. Bits 0-2: in how many of the six principal masks (default rank) the entry lies; bits
            3-5: in the principal masks of default size at the other ranks, in rising order; bit 6: in M_low.
        ranks: the ranks in use, rising; the default one is ``rank``.
        rank: rank of bits 0-2.
        ties: per rank, entries whose side of the threshold at the default size is within rounding.
    """

    level: UInt8[Tensor, "out in"]
    ranks: tuple[int, ...]
    rank: int
    ties: tuple[int, ...]

    def principal(self, alpha: float = ALPHA) -> Bool[Tensor, " 128"]:
        """Which level bytes lie in M_princ at the default rank; `alpha` must be one of `ALPHAS`."""
        return (torch.arange(128) & 7) >= len(ALPHAS) - ALPHAS.index(alpha)

    def at_rank(self, rank: int) -> Bool[Tensor, " 128"]:
        """Which level bytes lie in M_princ of default size at another rank."""
        if rank == self.rank:
            return self.principal()
        others = [r for r in self.ranks if r != self.rank]
        return (torch.arange(128) >> (3 + others.index(rank)) & 1).bool()

    def low(self) -> Bool[Tensor, " 128"]:
        """Which level bytes lie in M_low of default size."""
        return (torch.arange(128) >> LOW_BIT & 1).bool()


def levels(weight: Shaped[Tensor, "out in"], factors: Factors) -> Levels:
    """All masks of the report for one base matrix: M_princ over `ALPHAS` and `RANKS`, and M_low.

    Args:
        weight: the base, ``[out, in]``, any floating dtype.
        factors: its factors, with at least as many vectors as the largest rank in use.

    Returns:
        One byte per weight. Ranks are capped at half the short side; equal ranks appear once. Peak memory: a float32
        copy of the matrix and of the vectors beside the byte map. Cost: ``2 out in r`` flops in float32 for the
        largest rank r, reached step by step, and two compiled passes per rank; entries near a threshold are computed
        again in float64, and all of them where too many are near, so that the masks are those of float64.
    """
    shape = (weight.shape[0], weight.shape[1])
    ranks = tuple(sorted({principal_rank(shape, r) for r in RANKS}))
    default = principal_rank(shape)
    found, ties = np.zeros(weight.numel(), np.uint8), []
    sizes = [count(alpha, weight.numel()) for alpha in ALPHAS]
    scores = _Scores(shape, factors)
    shifts = iter((3, 4, 5))
    for rank in ranks:
        wanted, shift = (sizes, 0) if rank == default else (sizes[-1:], next(shifts))
        ties.append(scores.mark(rank, wanted, shift, found))
    mark_low(flat_codes(weight), sizes[-1], 1 << LOW_BIT, found)
    return Levels(torch.from_numpy(found).reshape(shape), ranks, default, tuple(ties))


class _Scores:
    """``W0^(r)`` for rising r: in float32, with a bound of its error and the float64 products behind it."""

    def __init__(self, shape: tuple[int, int], factors: Factors) -> None:
        self.factors, self.done = factors, 0
        left, right = factors.left.cpu().contiguous(), factors.right.cpu().contiguous()
        if shape[0] < shape[1]:  # the values go to the shorter of the two
            left = left * factors.values[: left.shape[1]].cpu()
        else:
            right = right * factors.values[: right.shape[1]].cpu()
        self.left, self.right = left, right
        self.rough = (left.to(torch.float32), right.to(torch.float32))
        self.squares = [torch.zeros(size) for size in shape]  # of the rows, so far
        self.score = torch.zeros(shape, dtype=torch.float32)

    def mark(self, rank: int, sizes: list[int], shift: int, found: np.ndarray) -> int:
        """Mark the masks of these sizes at a rank not below the last one; returns the ties at the last size."""
        (left, right), part = self.rough, slice(self.done, rank)
        self.score.addmm_(left[:, part], right[:, part].T)
        for squares, each in zip(self.squares, self.rough, strict=True):
            squares += torch.linalg.vector_norm(each[:, part], dim=1).square()
        self.done = rank
        error, slack = self._error(rank), _slack(self.factors, rank)
        if 0 < error < 1e15 and slack < 1e15:
            near = select_near(self.score.numpy().reshape(-1), error, slack, sizes, shift, found, self._exact)
            if near is not None:
                return near.ties
        score = (self.left[:, :rank] @ self.right[:, :rank].T).numpy().reshape(-1)
        threshold = select(score, sizes, shift, found)[-1]
        return score.size if math.isinf(slack) else int(_mask_pass.count_near(score, threshold, slack))

    def _error(self, rank: int) -> float:
        """Bound of the error of a float32 score: ``(r + 9) 2^-24`` times the longest rows (Higham 2002, 3.5).

        One of the nine is for the lengths themselves, which are in float32 too.
        """
        longest = [math.sqrt(float(each.max())) for each in self.squares]
        return (rank + 9) * 2.0**-24 * longest[0] * longest[1]

    def _exact(self, where: np.ndarray) -> np.ndarray:
        values = np.empty(where.size)
        _mask_pass.products(self.left.numpy(), self.right.numpy(), self.done, where, values)
        return values


def _slack(factors: Factors, rank: int) -> float:
    """How close to the threshold another exact SVD might put an entry on the other side.

    The error of ``W0^(r)`` is about ``sqrt(n) eps s_1 (1 + s_1 / (s_r - s_{r+1}))`` in spectral norm, hence per entry.
    A closed gap leaves the reconstruction itself undetermined: then it is infinite, and every entry counts.
    """
    values = factors.values
    following = float(values[rank]) if rank < len(values) else 0.0
    top, room = float(values[0]), float(values[rank - 1]) - following
    if not following:  # everything is kept: only rounding remains
        room = top
    if room <= len(values) * EPS * top:
        return math.inf
    return len(values) ** 0.5 * EPS * top * (1 + top / room)


def cross(
    before: Shaped[Tensor, "out in"], after: Shaped[Tensor, "out in"], found: UInt8[Tensor, "out in"]
) -> Int[Tensor, "codes 128 2"]:
    """Count entries by magnitude code of the base, by level byte and by changed, in one pass.

    Integer [32768, 128, 2]; rows of codes that do not occur are zero. Every overlap of the report and its
    N-magnitude null is a sum over this table.

    >>> w = torch.tensor([[1.0, 2.0]]).bfloat16()
    >>> int(cross(w, w, torch.zeros(1, 2, dtype=torch.uint8))[:, 0, 0].sum())
    2
    """
    left, right, level = flat_codes(before), flat_codes(after), found.contiguous().numpy().reshape(-1)
    narrow = left.size < 1 << 31  # half the table, so that more of it stays in the cache
    counts = np.zeros((bits.MAGNITUDE_CODES, 128, 2), np.int32 if narrow else np.int64)
    _mask_pass.cross(left, right, level, counts)
    return torch.from_numpy(counts)


def abs_on_mask(
    before: Shaped[Tensor, "*shape"], delta_abs: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> tuple[float, float]:
    """Sum of ``|D|`` on a mask, and what the mask's magnitude codes alone predict: the threshold-free comparison.

    Args:
        before: the base, for its magnitude codes.
        delta_abs: ``|D|`` from values finer than bfloat16, float64.
        mask: where to sum.

    Returns:
        ``sum_mask |D|`` and ``sum_c a_c mean_c(|D|)``. Their ratio is 1 when the mask says nothing beyond magnitude;
        no rounding enters. Source: DEFINITIONS section 5, ours.

    >>> one = torch.ones(2)
    >>> abs_on_mask(one, torch.tensor([3.0, 1.0]).double(), torch.tensor([True, False]))
    (3.0, 2.0)
    """
    codes = flat_codes(before) & 0x7FFF
    steps, inside = delta_abs.cpu().contiguous().numpy().reshape(-1), mask.cpu().numpy().reshape(-1)
    total = np.bincount(codes, minlength=bits.MAGNITUDE_CODES)
    moved = np.bincount(codes, weights=steps, minlength=bits.MAGNITUDE_CODES)
    ones = np.bincount(codes[inside], minlength=bits.MAGNITUDE_CODES)
    return float(steps[inside].sum()), float((ones * moved / np.maximum(total, 1)).sum())
