"""A tuned matrix seen from its base: singular values and principal angles without a second full eigenproblem.

What it is: the short way for small steps. In the frame of the base's singular vectors the Gram matrix of the tuned
side is ``Lambda + E``, and E, made of ``X = W0^T D`` and ``C = D^T D``, is as small as the step: float32 products give
it to seven digits of *itself*, which is more than a float64 Gram matrix leaves of a small difference. Eigenvalues
alone are then taken of ``Lambda + E`` in float64; the leading subspace is the base's, turned by a small block Z that
solves a Riccati equation; angles on both sides follow from Z, X and C, and nothing long is multiplied again.

What it is not: an approximation on trust. The error of every value and angle follows from that of the float32
products, and where it might exceed what `spectrum` and `angles` promise (large steps, wide angles, tiny singular
values), `carry` returns None and `spectrum.factorise` decides. A few small values, as square matrices have them, are
taken again from ``W V`` with V the directions of the small end. Source: ours; the equation for Z is Stewart 1973.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from offprincipal.measures import angles, spectrum
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
"""Radians. An angle carries the relative error of E, so that up to here it is within 1e-7 (*ours*)."""

WINDOW = 64
"""Directions on each side of the cut that are turned exactly before the rest is iterated (*ours*)."""

ROUNDS = 8
"""Iterations at most: a step that is small enough needs three or four."""


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
        gained: then factorise. Cost for k vectors: ``3 m n^2 + 3 n^3 + 16 n^2 k`` flops in float32 and ``4/3 n^3`` in
        float64, less where D is mostly zeros. Peak memory: ten float32 squares of the short side and one slice.

    >>> carry(torch.eye(2), torch.eye(2), Factors(torch.ones(2), torch.eye(2), torch.eye(2)), [1]) is None
    True
    """
    if base.frame is None or not sizes or not _worth(before, after, base, sizes):
        return None
    products = step_products(before, after, holes=holes, device=device)
    cross, square = products.cross, products.square
    frame, squares = base.frame.to(device), base.values.to(device).square()
    moved = _turned(cross.T.contiguous().add_(cross).add_(_whole(square)), frame)
    values = _values(squares, moved)
    rounding = moved.square().mean(dim=1).sqrt() * PRODUCT
    if any(not float(rounding[k - 1]) <= angles.ACCURACY * _room(squares, k) for k in sizes):
        return None  # D was not what the sample of its rows promised
    weak = (2 * rounding > values * (ACCURACY * float(values[0]))).nonzero()  # four deviations, to first order
    tail = len(values) - int(weak[0]) if len(weak) else 0
    short, end = _leading(squares, moved, sizes[-1]), _end(squares, moved, tail)
    if short is None or end is None:
        return None
    if tail:
        basis = torch.linalg.qr(frame.to(torch.float64) @ end).Q
        small = spectrum.values_of_image(spectrum.images(after, [basis], holes=holes, device=device)[0])
        values[-tail:] = small.clamp(max=float(values[-tail - 1]))
    own = None if before.shape[0] == before.shape[1] else square  # nothing lies beyond the base of a square matrix
    long, beyond = _long_side(short, values[: sizes[-1]], base.values.to(device), frame, cross, own)
    found = {"short": angles.angles_in_frame(short, None, sizes), "long": angles.angles_in_frame(long, beyond, sizes)}
    if not max(float(each[-1]) for side in found.values() for each in side.values()) <= WIDE:
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
        if not rounding <= 2 / 3 * angles.ACCURACY * _room(squares, k):  # it errs by at most 1.4 times (measured)
            return False
    return True


def _room(squares: Tensor, k: int) -> float:
    return float(squares[k - 1] - squares[k])


def _whole(lower: Tensor) -> Tensor:
    """Both triangles, float32, in memory of their own."""
    return mirrored(lower.to(torch.float32, copy=True))


def _turned(symmetric: Tensor, frame: Tensor) -> Tensor:
    """``V^T S V`` for a symmetric S, both triangles from one."""
    return mirrored(add_lower(torch.zeros_like(symmetric), frame, _product(symmetric, frame)))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in sums of `DEPTH` terms."""
    total = left.new_zeros(left.shape[0], right.shape[1])
    for start in range(0, left.shape[1], DEPTH):
        total.addmm_(left[:, start : start + DEPTH], right[start : start + DEPTH])
    return total


def _values(squares: Tensor, moved: Tensor) -> Tensor:
    """Square roots of the eigenvalues of ``Lambda + E``, falling, float64."""
    whole = moved.to(torch.float64)
    whole.diagonal().add_(squares)
    return torch.linalg.eigvalsh(whole.cpu()).flip(0).clamp(min=0).sqrt().to(squares.device)


def _leading(squares: Tensor, moved: Tensor, k: int) -> Tensor | None:
    """The k leading eigenvectors of ``Lambda + E``, float64 [n, k] in order; None where the iteration does not settle.

    ``[1; Z]`` spans them when ``Z = (E21 + E22 Z - Z (E11 + E12 Z)) / (lambda_j - lambda_i)``. Close neighbours at the
    cut are turned apart first, so that the division is safe and the iteration contracts.
    """
    around = slice(max(0, k - WINDOW), min(len(squares), k + WINDOW))
    inner, turn = torch.linalg.eigh((torch.diag(squares[around]) + moved[around, around]).cpu())
    inner, turn = inner.flip(0).to(squares.device), turn.flip(1).to(squares.device)
    diagonal, rest = squares + moved.diagonal(), moved.clone()
    diagonal[around] = inner
    rest.diagonal().zero_()
    rest[around] = turn.to(rest.dtype).T @ rest[around]
    rest[:, around] = rest[:, around] @ turn.to(rest.dtype)
    rest[around, around] = 0.0
    block = _riccati(rest, diagonal, k)
    if block is None:
        return None
    vectors = _ordered(block.to(torch.float64), rest, diagonal[:k])
    vectors[around] = turn @ vectors[around]
    return vectors


def _end(squares: Tensor, moved: Tensor, tail: int) -> Tensor | None:
    """The last `tail` eigenvectors, float64 [n, tail], any order; None where they are many or do not settle."""
    if not 0 < tail <= len(squares) // 4:
        return None if tail else squares.new_zeros(len(squares), 0)
    found = _leading(-squares.flip(0), -moved.flip(0, 1), tail)
    return None if found is None else found.flip(0)


def _riccati(rest: Tensor, diagonal: Tensor, k: int) -> Tensor | None:
    """The block Z below the identity, float32 [n - k, k]; None unless it settles."""
    first, cross, second = rest[:k, :k], rest[k:, :k], rest[k:, k:]
    inverse = (1.0 / (diagonal[:k] - diagonal[k:, None])).to(torch.float32)
    block = cross * inverse
    for _ in range(ROUNDS):
        following = (cross + second @ block - block @ (first + cross.T @ block)) * inverse
        change, size = float((following - block).norm()), float(following.norm())
        block = following
        if not size <= 1.0:  # nan too
            return None
        if change <= 1e-6 * size:  # the next one would be a tenth of it or less
            return block
    return None


def _ordered(block: Tensor, rest: Tensor, diagonal: Tensor) -> Tensor:
    """Eigenvectors in falling order from the span of ``[1; Z]``: float64 [n, k], orthonormal.

    With ``1 + Z^T Z = L L^T`` the problem on the span is ``L^T (H11 + E12 Z) L^-T``, symmetric but for rounding.
    """
    k = len(diagonal)
    metric = block.T @ block
    metric.diagonal().add_(1.0)
    lower = torch.linalg.cholesky(metric)
    inside = (rest[:k, :k] + rest[k:, :k].T @ block.to(rest.dtype)).to(torch.float64)
    inside.diagonal().add_(diagonal)
    inside = torch.linalg.solve_triangular(lower.T, lower.T @ inside, upper=True, left=False)
    turn = torch.linalg.eigh(((inside + inside.T) / 2).cpu())[1].flip(1).to(block.device)
    top = torch.linalg.solve_triangular(lower.T, turn, upper=True)
    return torch.cat([top, block @ top])


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
