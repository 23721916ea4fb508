"""The leading right singular vectors of a matrix, checked: block Krylov, and an exact factorisation where it fails."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

EXTRA = 8
"""Columns of a block beyond those wanted."""

BLOCKS = 16
"""Krylov blocks at most; then the Gram matrix of the short side is factored instead."""

SHORT = 512
"""Short sides up to here are factored at once: a Krylov basis would be as large."""

TOLERANCE = 1e-6
"""Accepted sine of the angle to the true subspace: residual over gap (Davis and Kahan)."""

RANK = 1e-12
"""Directions with less than this share of the largest squared singular value count as rounding (1e-6 of s_1)."""


@dataclass(frozen=True)
class Leading:
    """Leading right factors.

    Attributes:
        vectors: float64 [in, k'], orthonormal columns; k' <= k where the rank is smaller.
        squares: float64 [k'], squared singular values, falling.
        gap_sq: squared s_k' minus squared s_k'+1; the subspace means nothing where this is closed.
        exact: whether the whole Gram matrix was factored.
    """

    vectors: Float[Tensor, "in kept"]
    squares: Float[Tensor, " kept"]
    gap_sq: float
    exact: bool


def leading(matrix: Float[Tensor, "out in"], k: int, generator: torch.Generator) -> Leading:
    """The k leading right singular vectors of a float64 matrix.

    Block Krylov on ``D^T D`` from a random start, with full reorthogonalisation (Musco and Musco 2015), grown until
    the residual over the gap bounds the angle to the true subspace by `TOLERANCE`; where that is not reached, the
    Gram matrix of the short side is factored.

    >>> D = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    >>> leading(D, 1, torch.Generator().manual_seed(0)).squares.tolist()
    [9.0]
    """
    if min(matrix.shape) > max(SHORT, 2 * (k + EXTRA)):
        found = _krylov(matrix, k, generator)
        if found is not None:
            return found
    return _exact(matrix, k)


def _exact(matrix: Tensor, k: int) -> Leading:
    wide = matrix.shape[1] > matrix.shape[0]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    squares, vectors = torch.linalg.eigh(gram)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    kept = _kept(squares, k)
    vectors = vectors[:, :kept]
    if wide:  # from left to right: D^T u / s, orthonormal once more because the division spreads rounding
        vectors = torch.linalg.qr(matrix.T @ vectors).Q
    return Leading(vectors, squares[:kept], _gap(squares, kept), True)


def _krylov(matrix: Tensor, k: int, generator: torch.Generator) -> Leading | None:
    width = k + EXTRA
    block = torch.randn(matrix.shape[1], width, generator=generator, dtype=torch.float64, device=matrix.device)
    basis = matrix.new_zeros(matrix.shape[1], 0)
    images = matrix.new_zeros(matrix.shape[0], 0)
    for number in range(1, BLOCKS + 1):
        for _ in range(2):  # once is not enough in floating point, twice is
            block = block - basis @ (basis.T @ block)
            block = torch.linalg.qr(block).Q
        image = matrix @ block
        basis, images = torch.cat([basis, block], 1), torch.cat([images, image], 1)
        if number >= 4 and number % 2 == 0:
            found = _ritz(matrix, basis, images, k)
            if found is not None:
                return found
        block = matrix.T @ image
    return None


def _ritz(matrix: Tensor, basis: Tensor, images: Tensor, k: int) -> Leading | None:
    """The best approximation from the basis, or None while it is not good enough."""
    squares, turn = torch.linalg.eigh(images.T @ images)
    squares, turn = squares.flip(0).clamp(min=0), turn.flip(1)
    kept = _kept(squares, k)
    vectors = basis @ turn[:, :kept]
    residual = matrix.T @ (images @ turn[:, :kept]) - vectors * squares[:kept]
    gap = _gap(squares, kept)
    if kept and float(residual.norm()) > TOLERANCE * gap:
        return None
    return Leading(vectors, squares[:kept], gap, False)


def _kept(squares: Tensor, k: int) -> int:
    return min(k, int((squares > RANK * squares[0]).sum())) if squares.numel() else 0


def _gap(squares: Tensor, kept: int) -> float:
    following = float(squares[kept]) if kept < squares.numel() else 0.0
    return float(squares[kept - 1]) - following if kept else 0.0
