"""Principal angles between leading subspaces, by cosine where they are wide and by sine where they are narrow.

What it is: angles between the spans of two orthonormal bases, for one size or for a nested grid of sizes at the price
of the largest. What it is not: a statement about single vectors, which near-equal singular values leave undetermined;
at a closed gap (`gap_closed`) an angle says nothing at all.

An arc cosine is blind below the square root of the machine's precision (1.5e-8 in float64, more where the bases are
orthonormal only to 1e-12). The sines are the singular values of ``(1 - A A^T) B``. For a leading block of k columns
``A_k^T`` of the rest splits into two orthogonal parts, so that its Gram matrix is a leading block of one product plus
``C[k:, :k]^T C[k:, :k]``: sums of squares, no cancellation, nothing long recomputed per k.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from offprincipal.measures._gram import EPS
from offprincipal.measures.sizes import GRID as GRID
from offprincipal.measures.sizes import grid as grid

ACCURACY = 1e-7
"""Promised accuracy in radians wherever the gap allows."""

NARROW = 2e-5
"""Sines are computed when the narrowest angle is below this many radians (*ours*). A cosine that is wrong by d turns
an angle by d over itself: bases orthonormal to 1e-12 leave 5e-8 rad here, half of what is promised."""

NOISE = 8
"""Rounding turns eigenvectors as if the Gram matrix were off by this many ``eps s_1^2`` (*ours*; 1 to 4 measured)."""


def principal_angles(before: Float[Tensor, "n k"], after: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    """Principal angles between two spans, radians in 0..pi/2, rising.

    Args:
        before: orthonormal columns, float64.
        after: the same size.

    Returns:
        float64 [k]. Below pi/4 from sines, above from cosines, so that both ends are exact to about 1e-8.

    Source: Bjorck and Golub 1973; PNT section 4.1 gives the cosine form only.

    >>> turned = torch.tensor([[1.0], [1e-9]], dtype=torch.float64)
    >>> principal_angles(torch.eye(2, 1, dtype=torch.float64), turned).tolist()
    [1e-09]
    """
    return nested_angles(before, after, [before.shape[1]])[before.shape[1]]


def nested_angles(
    before: Float[Tensor, "n k"], after: Float[Tensor, "n k"], sizes: Sequence[int]
) -> dict[int, Float[Tensor, " _"]]:
    """Principal angles between the leading columns of two bases, for each size: radians, rising.

    Args:
        before: orthonormal columns, float64, in falling order of importance.
        after: the same shape.
        sizes: numbers of leading columns.

    Returns:
        Size to float64 [size]. Cosines alone where every angle is wider than `NARROW`, else the sine branch for the
        narrow ones: one more product of the same size and nothing longer than k x k per size.

    >>> eye = torch.eye(3, dtype=torch.float64)
    >>> nested_angles(eye[:, :2], eye[:, [0, 2]], [1, 2])[2].tolist()
    [0.0, 1.5707963267948966]
    """
    cross = before.T @ after
    cosines = {k: _roots(cross[:k, :k].T @ cross[:k, :k]).flip(0) for k in sizes}
    if all(float(c[0]) < math.cos(NARROW) for c in cosines.values()):
        return {k: torch.arccos(c) for k, c in cosines.items()}
    rest = after - before @ cross
    return _nested(cross, rest.T @ rest, sizes)


def angles_in_frame(
    after: Float[Tensor, "n k"], beyond: Float[Tensor, "k k"] | None, sizes: Sequence[int]
) -> dict[int, Float[Tensor, " _"]]:
    """`nested_angles` of a basis given by its coordinates in a frame whose leading columns are the first basis.

    Args:
        after: float64 [n, k], coordinates; n at least k.
        beyond: float64 [k, k], Gram matrix of what of the basis lies outside the frame; None for nothing.
        sizes: numbers of leading columns.

    >>> tilted = torch.tensor([[0.8], [0.6]], dtype=torch.float64)
    >>> round(angles_in_frame(tilted, None, [1])[1].item(), 6)
    0.643501
    """
    size = after.shape[1]
    cross, rest = after[:size], after[size:]
    return _nested(cross, rest.T @ rest if beyond is None else rest.T @ rest + beyond, sizes)


def _nested(cross: Tensor, squared: Tensor, sizes: Sequence[int]) -> dict[int, Tensor]:
    """Sine branch for every size: what leaves the k columns is what leaves them all and what stays among the rest."""
    return {k: _from_sines(_roots(squared[:k, :k] + cross[k:, :k].T @ cross[k:, :k]), cross[:k, :k]) for k in sizes}


def _roots(square: Tensor) -> Tensor:
    """Rising square roots of the eigenvalues, clamped to what a sine or cosine can be."""
    return torch.linalg.eigvalsh(square).clamp(min=0, max=1).sqrt()


def _from_sines(sines: Tensor, cross: Tensor) -> Tensor:
    """Rising angles from rising sines; above pi/4, where sines are blind, from the cosines in the same order."""
    narrow = torch.arcsin(sines)
    if float(sines[-1]) < math.sqrt(0.5):
        return narrow
    return torch.where(sines < math.sqrt(0.5), narrow, torch.arccos(_roots(cross.T @ cross).flip(0)))


def uncertainty(values: Float[Tensor, " n"], k: int) -> float:
    """How far rounding alone may turn the leading k vectors: ``8 eps s_1^2 / (s_k^2 - s_{k+1}^2)`` radians.

    Infinite at a closed gap. Davis and Kahan 1970 with the error of a float64 Gram matrix, `NOISE`.

    >>> uncertainty(torch.tensor([2.0, 2.0, 1.0]).double(), 1)
    inf
    """
    following = float(values[k]) if k < len(values) else 0.0
    room = (float(values[k - 1]) - following) * (float(values[k - 1]) + following)
    return math.inf if room <= 0 else NOISE * EPS * float(values[0]) ** 2 / room


def gap_closed(before: Float[Tensor, " n"], after: Float[Tensor, " n"], k: int) -> bool:
    """Whether the subspace of size k is undetermined on either side, so that its angles mean nothing.

    True where rounding alone could turn either basis by more than `ACCURACY` (repeated singular values, k beyond the
    rank).

    >>> gap_closed(torch.tensor([2.0, 2.0, 1.0]).double(), torch.tensor([2.0, 1.5, 1.0]).double(), 1)
    True
    """
    return max(uncertainty(before, k), uncertainty(after, k)) > ACCURACY


def sine_bound(gap: float, delta_norm: float) -> float:
    """Largest sine that a perturbation of spectral norm `delta_norm` can cause at a gap of ``s_k - s_{k+1}``.

    ``||D||_2 / (gap - ||D||_2)``, infinite where the gap is not larger than the norm. PNT Theorem 3.3 has the
    unperturbed gap with constant 1, which is false (paper.md 2.3); this is Wedin 1972 with the gap corrected by Weyl.

    >>> sine_bound(1.0, 0.25)
    0.3333333333333333
    """
    return delta_norm / (gap - delta_norm) if gap > delta_norm else math.inf


def vacuous(values: Float[Tensor, " n"], delta_norm: float, largest: int) -> int:
    """For how many k in 1..largest the sine bound is 1 or more and says nothing: gaps of at most ``2 ||D||_2``.

    >>> vacuous(torch.tensor([9.0, 5.0, 4.9, 1.0]).double(), 1.0, 3)
    1
    """
    following = torch.cat([values[1:], values.new_zeros(1)])
    return int((values - following <= 2 * delta_norm)[:largest].sum())
