"""A symmetric matrix close to a diagonal one, taken apart at a cut: its leading eigenvectors, and smaller problems.

What it is: ``diag(d) + R`` with d falling and R small beside the gaps a little way from the cut. ``[1; Z]`` spans the
leading eigenvectors when Z solves a Riccati equation (Stewart 1973); close neighbours at the cut are turned apart
exactly before. In the basis of that span and its complement nothing couples the two any more, so that the eigenvalues
of each are those of the whole: two of half the size cost a fraction of one (512 columns 13 ms, 1536 170 ms, measured).
What it is not: on trust. A cut that does not settle, or may err by more than allowed, is not made.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

WINDOW = 64
"""Directions on each side of the cut that are turned exactly before the rest is iterated (*ours*)."""

ROUNDS = 8
"""Iterations at most: a step that is small enough needs two or three."""

SETTLED = 1e-6
"""Change of Z by a round, of itself, after which the next one is a tenth of it or less (*ours*, measured)."""

WHOLE = 640
"""Sizes up to here are not cut for their eigenvalues: a cut would cost what it saves (*ours*, measured)."""


@dataclass(frozen=True)
class NearlyDiagonal:
    """A symmetric matrix close to a diagonal one.

    Attributes:
        diagonal: float64 [n], falling but for what the step moved.
        rest: float32 [n, n], symmetric, its diagonal zero.
    """

    diagonal: Float[Tensor, " n"]
    rest: Float[Tensor, "n n"]

    @classmethod
    def of(cls, diagonal: Tensor, rest: Tensor) -> "NearlyDiagonal":
        """``diag(diagonal) + rest``; takes `rest` over and moves its diagonal to the other, where float64 keeps it."""
        own = rest.diagonal().to(torch.float64)
        rest.diagonal().zero_()
        return cls(diagonal + own, rest)

    def whole(self) -> Tensor:
        """The matrix itself, float64."""
        found = self.rest.to(torch.float64)
        found.diagonal().add_(self.diagonal)
        return found


@dataclass(frozen=True)
class Cut:
    """What was taken apart: the matrix after the turn, and the block below the identity.

    Attributes:
        near: the matrix in the basis where `around` is diagonal.
        block: Z, float32 [n - k, k].
        norm_sq: bound of the squared spectral norm of Z.
        around: the window about the cut.
        turn: float64, the eigenvectors of the window, which are the new basis there.
    """

    near: NearlyDiagonal
    block: Float[Tensor, "below k"]
    norm_sq: float
    around: slice
    turn: Float[Tensor, "window window"]

    def leading(self) -> tuple[Float[Tensor, " k"], Float[Tensor, "n k"]]:
        """The k leading eigenvalues, falling, and eigenvectors in that order; float64.

        With ``1 + Z^T Z = L L^T`` the problem on the span is ``L^T (H11 + R12 Z) L^-T``, symmetric but for rounding.
        """
        block, k = self.block.to(torch.float64), self.block.shape[1]
        metric = block.T @ block
        metric.diagonal().add_(1.0)
        lower = torch.linalg.cholesky(metric)
        inside = (self.near.rest[:k, :k] + self.near.rest[:k, k:] @ self.block).to(torch.float64)
        inside.diagonal().add_(self.near.diagonal[:k])
        inside = torch.linalg.solve_triangular(lower.T, lower.T @ inside, upper=True, left=False)
        values, turn = torch.linalg.eigh(((inside + inside.T) / 2).cpu())
        top = torch.linalg.solve_triangular(lower.T, turn.flip(1).to(block.device), upper=True)
        vectors = torch.cat([top, block @ top])
        vectors[self.around] = self.turn @ vectors[self.around]
        return values.flip(0).to(block.device), vectors

    def above(self) -> tuple[NearlyDiagonal, float]:
        """A matrix with the leading eigenvalues, and a bound of their error."""
        k = self.block.shape[1]
        return self._part(slice(None, k), self.near.rest[:k, k:] @ self.block)

    def below(self) -> tuple[NearlyDiagonal, float]:
        """A matrix with the other eigenvalues, and a bound of their error."""
        k = self.block.shape[1]
        return self._part(slice(k, None), self.block @ self.near.rest[:k, k:].neg())

    def _part(self, at: slice, through: Tensor) -> tuple[NearlyDiagonal, float]:
        """One diagonal block of what `Z` takes apart.

        ``H22 - Z R12`` has the eigenvalues, but is not symmetric. Made so by the root of ``1 + P``, ``P = Z Z^T``, it
        is its symmetric part but for ``[P, A] / 4`` and higher powers of P, A its antisymmetric part; likewise above.
        """
        other = through.T.contiguous()
        twice = float((through - other).norm())
        both = through.add_(other).mul_(0.5).add_(self.near.rest[at, at])
        return NearlyDiagonal.of(self.near.diagonal[at], both), twice * self.norm_sq / 4


def cut(near: NearlyDiagonal, k: int) -> Cut | None:
    """Take a matrix apart after its k leading directions; None where the iteration does not settle.

    >>> H = NearlyDiagonal(torch.tensor([3.0, 1.0]).double(), torch.zeros(2, 2))
    >>> [float(v) for v in cut(H, 1).leading()[0]]
    [3.0]
    """
    size = len(near.diagonal)
    around = slice(max(0, k - WINDOW), min(size, k + WINDOW))
    diagonal, rest = near.diagonal.clone(), near.rest.clone()
    window = (torch.diag(diagonal[around]) + rest[around, around]).cpu()
    values, turn = (each.flip(-1).to(rest.device) for each in torch.linalg.eigh(window))
    diagonal[around], single = values, turn.to(rest.dtype)
    rest[around] = single.T @ rest[around]
    rest[:, around] = rest[:, around] @ single
    rest[around, around] = 0.0
    block = _riccati(rest, diagonal, k)
    if block is None:
        return None
    square = block.T @ block
    return Cut(NearlyDiagonal(diagonal, rest), block, float((square @ square).norm()) ** 0.5, around, turn)


def _riccati(rest: Tensor, diagonal: Tensor, k: int) -> Tensor | None:
    """Z from ``Z = (R21 + R22 Z - Z (R11 + R12 Z)) / (d_j - d_i)``, float32; None unless it settles."""
    first, cross, second = rest[:k, :k], rest[k:, :k], rest[k:, k:]
    inverse = (1.0 / (diagonal[:k] - diagonal[k:, None])).to(torch.float32)
    block = cross * inverse
    outside = float(block.norm())
    for _ in range(ROUNDS):
        following = cross + second @ block - block @ (first + cross.T @ block)
        change = following.mul_(inverse) - block
        block, size, before = following, float(following.norm()), outside
        if not size <= 1.0:  # nan too
            return None
        inside = change[:WINDOW, -WINDOW:].clone()
        change[:WINDOW, -WINDOW:] = 0.0
        outside = float(change.norm())
        soon = outside * outside <= SETTLED / 10 * size * before  # the next one is small where it shrinks as it did
        nearly = outside <= SETTLED * size or soon
        if nearly and _window_settles(block, inside, change, rest, inverse) <= SETTLED * size:
            return block
    return None


def _window_settles(block: Tensor, inside: Tensor, outside: Tensor, rest: Tensor, inverse: Tensor) -> float:
    """Add to Z what follows from its last change for the window's part, then from that for all; returns how much.

    Close neighbours settle last, a round after all others, since nothing couples them directly. The derivative of a
    round takes thin products where only the window's part changes or is asked for, the round itself whole ones.
    """
    k, across, down = block.shape[1], slice(None, WINDOW), slice(-WINDOW, None)
    first, through, second = rest[:k, :k], rest[:k, k:], rest[k:, k:]
    own = second[across] @ outside[:, down] - block[across] @ (through @ outside[:, down])
    own -= outside[across] @ (first[:, down] + through @ block[:, down])
    own *= inverse[across, down]
    block[across, down] += own
    inside = inside + own
    change = torch.zeros_like(block)
    change[:, down] = second[:, across] @ inside - block @ (through[:, across] @ inside)
    change[across] -= inside @ (first[down] + through[down] @ block)
    block.add_(change.mul_(inverse))
    return float(change.norm())


def eigenvalues(near: NearlyDiagonal, allowed: float) -> tuple[Float[Tensor, " n"], float]:
    """All eigenvalues, falling, float64, and a bound of the error of the cuts that were made, a few times `allowed`.

    Args:
        near: the matrix.
        allowed: error that a cut may bring; where it might bring more, the matrix stays whole.

    >>> eigenvalues(NearlyDiagonal(torch.tensor([1.0, 3.0]).double(), torch.zeros(2, 2)), 0.0)[0].tolist()
    [3.0, 1.0]
    """
    size = len(near.diagonal)
    made = cut(near, size // 2) if size > WHOLE else None
    if made is not None:
        parts = (made.above(), made.below())
        if max(error for _, error in parts) <= allowed:
            halves = [eigenvalues(part, allowed) for part, _ in parts]
            values = torch.cat([found for found, _ in halves])
            errors = [error + more for (_, error), (_, more) in zip(parts, halves, strict=True)]
            return values.sort(descending=True).values, max(errors)
    return torch.linalg.eigvalsh(near.whole().cpu()).flip(0).to(near.rest.device), 0.0
