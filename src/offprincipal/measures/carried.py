"""A tuned matrix seen from its base: singular values and principal angles without a second full eigenproblem.

What it is: the short way for small steps. In the frame of the base's singular vectors the Gram matrix of the tuned
side is ``Lambda + E``, and E, made of ``X = W0^T D`` and ``C = D^T D``, is as small as the step: float32 products give
it to seven digits of *itself*, which is more than a float64 Gram matrix leaves of a small difference. So close to a
diagonal, the matrix comes apart into a leading block and others (`_cut`), whose eigenvalues are taken in float64; the
leading subspace is the base's, turned by a small block Z; angles on both sides follow from Z, X and C, and nothing
long is multiplied again.

What it is not: an approximation on trust. The error of every value and angle follows from that of the float32
products, and where it might exceed what `spectrum` and `angles` promise (large steps, wide angles, tiny singular
values), `carry` returns None and `spectrum.factorise` decides. Two things are taken again from the weights in float64:
entries of E about a cut between close values, and a few small values, as square matrices have them, from ``W V`` with
V the directions of the small end. Source: ours; the equation for Z is Stewart 1973.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from offprincipal.measures import angles, spectrum
from offprincipal.measures._cut import Cut, NearlyDiagonal, cut, eigenvalues
from offprincipal.measures._gram import add_lower, mirrored
from offprincipal.measures._products import DEPTH, step_products
from offprincipal.measures._slices import tall
from offprincipal.measures.delta import Products
from offprincipal.measures.spectrum import ACCURACY, Factors

SHORTEST = 128
"""Short sides below this are factorised at once: nothing is gained."""

PRODUCT = 2.0**-20
"""Relative error that an entry of E may have (*ours*; the standard deviation measured is half of it)."""

WIDE = 0.1
"""Radians. An angle carries the relative error of E, so that up to here it is within 1e-7 (*ours*); at a cut whose
entries were taken again up to `CLOSE` times this."""

CLOSE = 8
"""Where the values beside a cut are so many times closer than E's rounding allows, its entries there are taken in
float64. They are kept in float32, a sixteenth of that rounding (*ours*)."""

ASIDE = 16
"""Directions on each side of such a cut whose entries are taken again (*ours*)."""


@dataclass(frozen=True)
class Tuned:
    """What geometry asks of a tuned side.

    Attributes:
        values: float64 [short], on the CPU: singular values, falling, within 1e-10 s_1.
        angles: "left" and "right" to size to float64 [size]: principal angles with the base, radians, rising.
        products: what the pass over the pair left of D; None where the side was factorised by itself.
    """

    values: Float[Tensor, " short"]
    angles: Mapping[str, Mapping[int, Tensor]]
    products: Products | None = None


def carry(
    before: Shaped[Tensor, "out in"],
    after: Shaped[Tensor, "out in"],
    base: Factors,
    sizes: Sequence[int],
    *,
    holes: Bool[Tensor, "out in"] | None = None,
    device: str | torch.device = "cpu",
) -> Tuned | None:
    """Singular values of the tuned side and its principal angles with the base, where the step is small enough.

    Args:
        before: the base, ``[out, in]``, of 16 bits or fewer.
        after: the tuned side, same shape, of 16 bits or fewer.
        base: factors of `before` with their `frame`.
        sizes: of the subspaces, rising, at most half the short side.
        holes: entries that count as zero on both sides.
        device: where to compute.

    Returns:
        None where the promises of `spectrum` (1e-10 s_1) and `angles` (1e-7 rad) could be missed, or nothing is
        gained: then factorise. Cost for k vectors: ``3 m n^2 + 3 n^3 + 16 n^2 k`` flops in float32, less where D is
        mostly zeros, and eigenproblems of size k and below. Peak memory: ten float32 squares of the short side, and a
        slice or the nonzeros of D.

    >>> carry(torch.eye(2), torch.eye(2), Factors(torch.ones(2), torch.eye(2), torch.eye(2)), [1]) is None
    True
    """
    if base.frame is None or not sizes or not _worth(before, after, base, sizes):
        return None
    products = step_products(before, after, holes=holes, device=device)
    cross, square = products.cross, products.square
    frame, squares = base.frame.to(device), base.values.to(device).square()
    moved = _turned(cross.T.contiguous().add_(cross).add_(_whole(square)), frame)
    rounding = moved.square().mean(dim=1).sqrt() * PRODUCT
    close = _close(squares, rounding, sizes)
    if close is None:
        return None  # D was not what the sample of its rows promised
    if close:
        _take_again(moved, frame, close, before, after, holes)
    near = NearlyDiagonal.of(squares, moved)
    made = cut(near, sizes[-1])
    eigen = None if made is None else _eigen(near, made, float(rounding.max()))
    if eigen is None:
        return None
    values, short, error = eigen
    weak = (2 * rounding + error > values * (ACCURACY * float(values[0]))).nonzero()  # four deviations, to first order
    tail = len(values) - int(weak[0]) if len(weak) else 0
    end = _end(near, tail)
    if end is None:
        return None
    if tail:
        basis = torch.linalg.qr(frame.to(torch.float64) @ end).Q
        small = spectrum.values_of_image(spectrum.images(after, [basis], holes=holes, device=device)[0])
        values[-tail:] = small.clamp(max=float(values[-tail - 1]))
    own = None if before.shape[0] == before.shape[1] else square  # nothing lies beyond the base of a square matrix
    long, beyond = _long_side(short, values[: sizes[-1]], base.values.to(device), frame, cross, own)
    found = {"short": angles.angles_in_frame(short, None, sizes), "long": angles.angles_in_frame(long, beyond, sizes)}
    if not all(each[-1] <= WIDE * (CLOSE if k in close else 1) for side in found.values() for k, each in side.items()):
        return None
    left, right = ("long", "short") if tall(before) is before else ("short", "long")
    return Tuned(values.cpu(), {"left": found[left], "right": found[right]}, products)


def serves(shape: tuple[int, int]) -> bool:
    """Whether a base of this shape needs its `frame`: whether it is not too small.

    >>> serves((8960, 1536)), serves((1536, 64))
    (True, False)
    """
    return min(shape) >= SHORTEST


def _worth(before: Tensor, after: Tensor, base: Factors, sizes: Sequence[int]) -> bool:
    """Whether the short way is likely to reach its end: types, rank, and the step beside the gaps.

    An entry of E is about ``sqrt(2) s_k`` times one of D. Over the gap it is the angle between neighbours at the cut,
    and its rounding over the gap is the error of that angle, which grows as the gap closes.
    """
    m, n = max(before.shape), min(before.shape)
    values = base.values.cpu()
    if max(before.itemsize, after.itemsize) > 2 or base.rank < n:
        return False
    if not float(values.square().mean()) * 2.0**-48 <= ACCURACY * float(values[0] * values[-1]):
        return False  # what float32 leaves of the large directions in the small ones would show
    sample = slice(None, None, 1 + m // 256)  # rows enough for the size of a step
    step = (tall(after)[sample].to(torch.float32) - tall(before)[sample].to(torch.float32)).nan_to_num(0.0, 0.0, 0.0)
    entry, squares = float(step.square().mean().sqrt()), values.square()
    for k in sizes:
        rounding = PRODUCT * entry * math.sqrt(2 * float(squares[k - 1]))
        if not rounding <= 2 / 3 * angles.ACCURACY * CLOSE * _room(squares, k):  # errs by at most 1.4 times (measured)
            return False
    return True


def _room(squares: Tensor, k: int, aside: int = 0) -> float:
    """How far apart the squares on the two sides of a cut are, one of them `aside` from it."""
    last, first = min(k + aside, len(squares) - 1), max(0, k - 1 - aside)
    return float(min(squares[k - 1] - squares[last], squares[first] - squares[k]))


def _whole(lower: Tensor) -> Tensor:
    """Both triangles, float32, in memory of their own."""
    return mirrored(lower.to(torch.float32, copy=True))


def _turned(symmetric: Tensor, frame: Tensor) -> Tensor:
    """``V^T S V`` for a symmetric S, both triangles from one."""
    return mirrored(add_lower(torch.zeros_like(symmetric), frame, _product(symmetric, frame)))


def _close(squares: Tensor, rounding: Tensor, sizes: Sequence[int]) -> list[int] | None:
    """Cuts whose neighbours are too close for the rounding of E; None where they are too close for anything here."""
    wanted = {k: float(rounding[k - 1]) / angles.ACCURACY for k in sizes}
    if not all(room <= min(CLOSE * _room(squares, k), _room(squares, k, ASIDE)) for k, room in wanted.items()):
        return None
    return [k for k, room in wanted.items() if room > _room(squares, k)]


def _take_again(
    moved: Tensor, frame: Tensor, close: Sequence[int], before: Tensor, after: Tensor, holes: Tensor | None
) -> None:
    """Overwrite the entries of E about these cuts by ``V^T (W^T W - W0^T W0) V`` from the weights, in float64."""
    spots = [slice(max(0, k - ASIDE), min(len(moved), k + ASIDE)) for k in close]
    columns = [frame[:, spot].to(torch.float64) for spot in spots]
    sides = [spectrum.images(each, columns, holes=holes, device=frame.device) for each in (before, after)]
    for spot, first, second in zip(spots, *sides, strict=True):
        moved[spot, spot] = (second.T @ second - first.T @ first).to(moved.dtype)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in sums of `DEPTH` terms."""
    total = left.new_zeros(left.shape[0], right.shape[1])
    for start in range(0, left.shape[1], DEPTH):
        total.addmm_(left[:, start : start + DEPTH], right[start : start + DEPTH])
    return total


def _eigen(near: NearlyDiagonal, made: Cut, allowed: float) -> tuple[Tensor, Tensor, float] | None:
    """Singular values, falling; the leading vectors; and a bound of the error of the squares by cuts.

    A cut that may err by more than `allowed` is not used for the values. None where what it says is leading is not.
    """
    top, vectors = made.leading()
    below, error = made.below()
    if error <= allowed:
        rest, more = eigenvalues(below, allowed)
        squares, error = torch.cat([top, rest]), error + more
    else:
        squares, error = torch.linalg.eigvalsh(near.whole().cpu()).flip(0).to(top.device), 0.0
    if float(squares[len(top)]) > float(top[-1]):
        return None
    return squares.clamp(min=0).sqrt(), vectors, error


def _end(near: NearlyDiagonal, tail: int) -> Tensor | None:
    """The last `tail` eigenvectors, float64 [n, tail], any order; None where they are many or do not settle."""
    if not 0 < tail <= len(near.diagonal) // 4:
        return None if tail else near.diagonal.new_zeros(len(near.diagonal), 0)
    made = cut(NearlyDiagonal(-near.diagonal.flip(0), -near.rest.flip(0, 1)), tail)
    return None if made is None else made.leading()[1].flip(0)


def _long_side(
    short: Tensor, values: Tensor, before: Tensor, frame: Tensor, cross: Tensor, square: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Coordinates of the long side's leading vectors in the base's long side, and the Gram matrix of what lies beyond.

    ``U0^T U = (S0 Q + S0^-1 V0^T X V) S^-1`` with ``V = V0 Q``; beyond the range of the base lies D alone:
    ``S^-1 (V^T C V - N^T N) S^-1`` with ``N = S0^-1 V0^T X V``. `cross` is ``X^T``.
    """
    vectors = _product(frame, short.to(torch.float32))
    through = _product(frame.T, _product(cross.T, vectors)).to(torch.float64) / before[:, None]
    long = (before[:, None] * short + through) / values
    if square is None:
        return long, None
    energy = (vectors.T @ _product(_whole(square), vectors)).to(torch.float64)
    return long, (energy - through.T @ through) / values / values[:, None]
