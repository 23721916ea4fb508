"""How much of an update lies in the principal subspaces, beside what Gaussian and randomly turned updates would give.

What it is: ``||U_k^T D||^2``, ``||D V_k||^2`` and ``||U_k^T D V_k||^2`` with exact means and standard deviations of
two nulls. What it is not: a simulation; both nulls have closed forms (tests check them against draws).
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class Inside:
    """Accumulates what a matrix looks like from a subspace of its long side, a few rows at a time.

    Attributes:
        long: [long, k], orthonormal basis.
        image: [k, short], ``long^T D`` of the rows seen so far, float64.
    """

    long: Float[Tensor, "long k"]
    short: int
    image: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.image = self.long.new_zeros(self.long.shape[1], self.short)

    def update(self, start: int, stop: int, rows: Tensor) -> None:
        """Take in rows ``start..stop`` of the long side, each of the short side's length."""
        self.image += self.long[start:stop].T.to(rows.dtype) @ rows


def through_gram(lower: Float[Tensor, "n n"], basis: Float[Tensor, "n k"]) -> float:
    """``||D V||^2`` from the lower triangle of ``D^T D``: the trace of ``V^T (D^T D) V``, no second pass over D.

    The product is in the dtype of both, the sum in float64.

    >>> through_gram(torch.tensor([[2.0, 9.0], [1.0, 2.0]]).tril().double(), torch.ones(2, 1).double())
    6.0
    """
    whole, diagonal = (lower @ basis) * basis, lower.diagonal()[:, None] * basis.square()
    return 2 * float(whole.sum(dtype=torch.float64)) - float(diagonal.sum(dtype=torch.float64))


def inside(
    delta: Float[Tensor, "out in"], left: Float[Tensor, "out k"], right: Float[Tensor, "in k"]
) -> tuple[float, float, float]:
    """``||U^T D||^2, ||D V||^2, ||U^T D V||^2`` for orthonormal U, V: numerators, in the squared units of D.

    Divide by ``||D||^2`` for the shares rho_U, rho_V, rho_UV of DEFINITIONS section 3.

    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> inside(torch.tensor([[3.0, 1.0], [2.0, 0.0]], dtype=torch.float64), eye[:, :1], eye[:, :1])
    (10.0, 13.0, 9.0)
    """
    through = left.T @ delta
    return (
        float(through.square().sum()),
        float((delta @ right).square().sum()),
        float((through @ right).square().sum()),
    )


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of the three energy shares under a null.

    Attributes:
        left: (mean, sd) of the share in the left subspace.
        right: of the share in the right subspace.
        both: of the share in both.
    """

    left: tuple[float, float]
    right: tuple[float, float]
    both: tuple[float, float]


def gauss(shape: tuple[int, int], k: int) -> Moments:
    """Energy shares of a Gaussian update of any scale in fixed k-dimensional subspaces (N-gauss), exact.

    The share of d out of N = out in independent Gaussian coordinates is Beta(d/2, (N - d)/2) with mean d/N and
    variance ``2 d (N - d) / (N^2 (N + 2))``; d is k in, k out and k^2. Source: DEFINITIONS section 5, ours.

    >>> gauss((4, 2), 1).left[0], gauss((4, 2), 1).both[0]
    (0.25, 0.125)
    """
    total = shape[0] * shape[1]
    left, right, both = (_beta(d, total) for d in (k * shape[1], k * shape[0], k * k))
    return Moments(left, right, both)


def _beta(part: int, total: int) -> tuple[float, float]:
    return part / total, math.sqrt(2 * part * max(0, total - part) / (total**2 * (total + 2)))


def haar(values: Float[Tensor, " n"], shape: tuple[int, int], k: int) -> Moments:
    """Energy shares of an update with these singular values and Haar-random singular vectors (N-haar), exact.

    Args:
        values: singular values of D, any order.
        shape: (out, in).
        k: size of both subspaces.

    Returns:
        Means k/out, k/in, k^2/(out in); standard deviations from ``q = sum s^4 / (sum s^2)^2`` alone.

    Derivation (ours). Seen from the singular vectors of D the subspace is a random projection A with
    ``E A_ij A_kl = a d_ij d_kl + b (d_ik d_jl + d_il d_jk)`` by rotation invariance; ``(tr A)^2 = k^2`` and
    ``tr A^2 = k`` fix ``b = k (m - k) / (m (m - 1) (m + 2))`` and ``a = (k^2 - 2 m b) / m^2``. One-sided energy is
    ``sum s_i^2 A_ii``, two-sided ``sum s_i s_j A_ij C_ij`` with A and C independent. Second moments of a zero matrix
    are nan.

    >>> haar(torch.tensor([1.0]).double(), (2, 2), 1).left  # one direction: Beta(1/2, 1/2)
    (0.5, 0.3535533905932738)
    """
    squares = values.square()
    total = float(squares.sum())
    q = float(squares.square().sum()) / total**2 if total else math.nan
    (a, b), (c, d) = (_projection(k, size) for size in shape)
    left, right = _one_sided(k, shape[0], a, b, q), _one_sided(k, shape[1], c, d, q)
    mean = k * k / (shape[0] * shape[1])
    second = a * c + 2 * (a * d + b * c) * q + 2 * b * d * (1 + q)
    return Moments(left, right, (mean, _root(second - mean**2)))


def _projection(k: int, size: int) -> tuple[float, float]:
    """The two coefficients of ``E A_ij A_kl`` for a random projection on k of `size` dimensions."""
    b = k * (size - k) / (size * (size - 1) * (size + 2)) if size > 1 else 0.0
    return (k * k - 2 * size * b) / size**2, b


def _one_sided(k: int, size: int, a: float, b: float, q: float) -> tuple[float, float]:
    return k / size, _root(a + 2 * b * q - (k / size) ** 2)


def _root(variance: float) -> float:
    """Square root of a variance that rounding may have left a little below zero; nan stays nan."""
    return math.sqrt(variance) if not variance < 0 else 0.0
