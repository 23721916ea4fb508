"""Exact singular values and leading subspaces of a matrix, how far they moved, and how many directions an update has.

What it is: the Gram matrix on the short side in float64, its eigenvectors, and a second look at the small end. A Gram
matrix squares the condition number: an eigenvalue error of about ``eps s_1^2`` becomes ``eps s_1^2 / (2 s_i)`` in the
singular value, harmless at the top and fatal at the bottom. So values below `TAIL` times the largest are taken again
from ``svdvals(W V)`` with V the eigenvectors of the small end, which does not square anything. Both together stay
within 1e-10 s_1 of a float64 SVD at every shape and rank (tests), at a fraction of its price: for a tall m x n matrix
about ``1.2 m n^2`` flops for half a Gram matrix and ``9 n^3`` for the eigenvectors, against ``6 m n^2 + 20 n^3``.

What it is not: the short way for a tuned side near its base (`carried`), which falls back on this one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from offprincipal.measures._gram import EPS, eigen, gram
from offprincipal.measures._slices import slices, tall

TAIL = 1e-4
"""Singular values below this fraction of the largest are computed without squaring (*ours*). At the switch the Gram
error is ``c eps s_1 / 2e-4``, 1e-12 s_1 times a small constant c: two digits inside the promised 1e-10."""

ACCURACY = 1e-10
"""Promised distance of a singular value from a float64 SVD, in units of the largest."""


@dataclass(frozen=True)
class Factors:
    """All singular values of a matrix and its leading singular subspaces, float64.

    Attributes:
        values: [min(out, in)], falling, within 1e-10 s_1 of a float64 SVD.
        left: [out, k], leading left singular vectors; orthonormal columns.
        right: [in, k], leading right singular vectors.
        frame: float32 [short, short], all singular vectors of the short side where they were asked for, as columns.
    """

    values: Float[Tensor, " short"]
    left: Float[Tensor, "out k"]
    right: Float[Tensor, "in k"]
    frame: Float[Tensor, "short short"] | None = None

    @property
    def rank(self) -> int:
        """How many singular values exceed ``max(out, in) eps s_1``, the rank that numerical software reports."""
        floor = max(len(self.left), len(self.right)) * EPS * float(self.values[0])
        return int((self.values > floor).sum())


def factorise(
    weight: Shaped[Tensor, "out in"],
    keep: int,
    *,
    holes: Bool[Tensor, "out in"] | None = None,
    device: str | torch.device = "cpu",
    frame: bool = False,
) -> Factors:
    """Every singular value, and the leading `keep` left and right singular vectors.

    Args:
        weight: ``[out, in]``, any floating dtype, neither side empty.
        keep: how many vectors, at most min(out, in).
        holes: entries that count as zero (nonfinite ones).
        device: where to compute.
        frame: keep all vectors of the short side too, in float32.

    Returns:
        `Factors` on the device. Vectors that belong to singular values of zero are an arbitrary orthonormal
        completion. Signs are arbitrary.

    Accuracy: values within 1e-10 s_1; subspaces to ``eps s_1^2 / (s_k^2 - s_{k+1}^2)`` radians. Peak memory: five
    short-side squares, two long-by-keep blocks, one slice. Source: ours; see the module's text.

    >>> factorise(torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), 1).values.tolist()
    [3.0, 2.0]
    """
    squares, vectors = eigen(gram(weight, holes=holes, device=device))
    values = squares.clamp(min=0).sqrt()
    head = int((values > TAIL * values[0]).sum())
    short, tail = vectors[:, :keep].clone(), vectors[:, head:].clone()
    every = vectors.to(torch.float32).contiguous() if frame else None
    del vectors
    long, small = images(weight, (short, tail), holes=holes, device=device)
    if small.numel():
        refined = values_of_image(small)
        values[head:] = refined.clamp(max=float(values[head - 1])) if head else refined
    long = orthonormal(long, values[:keep])
    return Factors(values, *((long, short) if tall(weight) is weight else (short, long)), every)


def images(
    weight: Shaped[Tensor, "out in"],
    vectors: Sequence[Float[Tensor, "short _"]],
    *,
    holes: Bool[Tensor, "out in"] | None = None,
    device: str | torch.device = "cpu",
) -> list[Float[Tensor, "long _"]]:
    """``W V`` of the tall view for several V, in one pass over the weights; float64.

    >>> images(torch.tensor([[3.0, 1.0]]), [torch.ones(1, 1).double()])[0].tolist()
    [[3.0], [1.0]]
    """
    found = [torch.empty(max(weight.shape), v.shape[1], dtype=torch.float64, device=device) for v in vectors]
    for start, stop, part in slices(weight, device=device, holes=holes):
        for each, out in zip(vectors, found, strict=True):
            torch.mm(part, each, out=out[start:stop])
    return found


def values_of_image(image: Float[Tensor, "long tail"]) -> Float[Tensor, " tail"]:
    """Singular values of ``W V_tail``; a triangle first, so that a long matrix costs one pass.

    >>> values_of_image(torch.tensor([[3.0], [4.0]]).double()).tolist()
    [5.0]
    """
    if image.shape[0] > 2 * image.shape[1]:
        image = torch.linalg.qr(image, mode="r").R
    return torch.linalg.svdvals(image.cpu()).to(image.device)


def orthonormal(image: Float[Tensor, "long k"], values: Float[Tensor, " k"]) -> Float[Tensor, "long k"]:
    """Orthonormal columns from ``W V``: divided by the singular values and polished once.

    The columns of ``W V / s`` are orthonormal to about ``eps (s_1 / s_k)^2``. Up to 1e-12 that is left alone (an angle
    feels it divided by twice itself, and narrow angles are not taken from cosines), up to 1e-4 one Newton-Schulz step
    squares it, beyond a QR factorisation takes over, which completes null columns too.

    >>> orthonormal(torch.tensor([[2.0], [0.0]]).double(), torch.tensor([2.0]).double()).tolist()
    [[1.0], [0.0]]
    """
    if not len(values) or float(values[-1]) <= 1e-6 * float(values[0]):
        basis, triangle = torch.linalg.qr(image)
        return basis * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    basis = image.div_(values)
    if EPS * float(values[0] / values[-1]) ** 2 < 1e-12 / 4:
        return basis
    excess = basis.T @ basis
    excess.diagonal().sub_(1.0)
    return basis.addmm_(basis.clone(), excess, alpha=-0.5)


def nss(before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> float:
    """Normalised spectral shift ``||s(W) - s(W0)|| / ||s(W0)||`` (PNT section 4.1); nan where W0 is zero.

    >>> nss(torch.tensor([4.0, 3.0]).double(), torch.tensor([4.0, 3.5]).double())
    0.1
    """
    size = float(before.norm())
    return float((after - before).norm()) / size if size else float("nan")


def ky_fan(before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Ky Fan shift ``|sum_{i<=k} (s_i(W) - s_i(W0))|`` for every k (PNT Corollary 3.5).

    >>> ky_fan(torch.tensor([4.0, 3.0]).double(), torch.tensor([5.0, 2.5]).double()).tolist()
    [1.0, 0.5]
    """
    return (after - before).cumsum(0).abs()


def residual(before: Float[Tensor, " n"], after: Float[Tensor, " n"], delta_norm: float) -> float:
    """Spectral residual ``||s(W) - s(W0)|| / ||D||_F``, 0..1 by Mirsky; nan where nothing moved (arXiv 2607.19331).

    >>> residual(torch.tensor([4.0]).double(), torch.tensor([4.5]).double(), 1.0)
    0.5
    """
    return float((after - before).norm()) / delta_norm if delta_norm else float("nan")


def kappa_spec(spectral_residual: float, shape: tuple[int, int]) -> float:
    """Dimension-normalised spectral change, ``residual^2 max(out, in)``: about 1 for small isotropic noise (*ours*).

    >>> kappa_spec(0.5, (8, 2))
    2.0
    """
    return spectral_residual**2 * max(shape)


def stable_rank(values: Float[Tensor, " n"]) -> float:
    """``||.||_F^2 / ||.||_2^2``, 1..n; nan for the zero matrix.

    >>> stable_rank(torch.tensor([2.0, 2.0, 1.0]).double())
    2.25
    """
    return float((values / values[0]).square().sum()) if float(values[0]) else float("nan")


def entropy_rank(values: Float[Tensor, " n"]) -> float:
    """Effective rank ``exp(-sum p log p)`` with ``p = s / sum s`` (Roy and Vetterli 2007); nan for the zero matrix.

    >>> entropy_rank(torch.tensor([2.0, 2.0, 0.0]).double())
    2.0
    """
    if not float(values[0]):
        return float("nan")
    share = values / values.sum()
    return round(float(torch.special.entr(share).sum().exp()), 12)


def rank_at(values: Float[Tensor, " n"], fraction: float = 1e-6) -> int:
    """How many singular values exceed ``fraction s_1``; zero for the zero matrix.

    >>> rank_at(torch.tensor([1.0, 1e-3, 1e-9]).double())
    2
    """
    return int((values > fraction * values[0]).sum())


def rank_of_energy(values: Float[Tensor, " n"], share: float = 0.99) -> int:
    """The least k with ``sum_{i<=k} s_i^2 >= share sum s_i^2``; zero for the zero matrix.

    >>> rank_of_energy(torch.tensor([3.0, 1.0, 0.1]).double())
    2
    """
    energy = values.square().cumsum(0)
    return int((energy < share * energy[-1]).sum()) + 1 if float(energy[-1]) else 0


def gap(values: Float[Tensor, " n"], k: int) -> float:
    """``s_k - s_{k+1}``, in the units of the matrix; ``s_k`` itself when k is the last.

    >>> gap(torch.tensor([3.0, 1.0]).double(), 1)
    2.0
    """
    return float(values[k - 1] - (values[k] if k < len(values) else 0.0))


def broken_bounds(before: Float[Tensor, " n"], after: Float[Tensor, " n"], delta: Float[Tensor, " n"]) -> list[str]:
    """Which of the bounds that must hold do not: Weyl, Mirsky and Ky Fan (DEFINITIONS section 3; PNT Eqs 9 and 10).

    Args:
        before: singular values of the base.
        after: of the tuned side.
        delta: of the difference.

    Returns:
        One sentence per broken bound, with both sides; empty when all hold. The slack is the accuracy of the values,
        1e-10 s_1 each and 1e-6 of D's own. A broken bound is a bug in the numbers, never a finding.

    >>> broken_bounds(torch.tensor([1.0]).double(), torch.tensor([2.0]).double(), torch.tensor([0.5]).double())[0]
    'Weyl: |s_1(W) - s_1(W0)| = 1 exceeds ||D||_2 = 0.5'
    """
    slack = 2 * ACCURACY * float(torch.maximum(before[0], after[0])) + 1e-6 * float(delta[0])
    moved, largest = (after - before).abs(), float(delta[0])
    k = int(moved.argmax()) + 1
    broken = []
    if float(moved[k - 1]) > largest + slack:
        broken.append(f"Weyl: |s_{k}(W) - s_{k}(W0)| = {float(moved[k - 1]):.6g} exceeds ||D||_2 = {largest:.6g}")
    if float(moved.norm()) > float(delta.norm()) + slack * len(before) ** 0.5:
        broken.append(
            f"Mirsky: ||s(W) - s(W0)|| = {float(moved.norm()):.6g} exceeds ||D||_F = {float(delta.norm()):.6g}"
        )
    counts = torch.arange(1, len(before) + 1, dtype=torch.float64, device=before.device)
    over = ky_fan(before, after) - counts * (largest + slack)
    k = int(over.argmax()) + 1
    if float(over[k - 1]) > 0:
        broken.append(f"Ky Fan: the shift of the first {k} exceeds {k} ||D||_2 by {float(over[k - 1]):.6g}")
    return broken
