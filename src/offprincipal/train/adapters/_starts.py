"""Where the two factors of an adapter start, method by method. PURE: tensors in, tensors out.

What it is: literal constructions in float64 on exact factors. What it is not: files, names or training. Every weight
is ``[out, in]``, A is ``[rank, in]``, B is ``[out, rank]``; the adapter adds ``scaling B A``.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from offprincipal.measures._gram import EPS, eigen, gram
from offprincipal.measures._slices import slices, tall, widened
from offprincipal.measures.masks import count, low_rank
from offprincipal.measures.spectrum import Factors, factorise

RHO = 0.2
"""GeoRA's quantile (arXiv 2601.09361)."""

SPARE = 16
"""Columns of the trailing block beyond those wanted: they keep its edge away from the wanted ones (*ours*)."""


@dataclass(frozen=True)
class Start:
    """The factors at the first step.

    Attributes:
        a: ``[rank, in]``, float64.
        b: ``[out, rank]``, float64; None stands for B = 0.
    """

    a: Float[Tensor, "rank in"]
    b: Float[Tensor, "out rank"] | None = None


def kaiming(width: int, rank: int, generator: torch.Generator) -> Start:
    """PEFT's default: A uniform within 1/sqrt(in) (He et al. 2015 with a = sqrt 5), B = 0.

    >>> bool(kaiming(4, 2, torch.Generator().manual_seed(0)).a.abs().max() <= 0.5)
    True
    """
    a = torch.empty(rank, width)  # drawn in float32, as PEFT does
    return Start(torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator).double())


def right_rows(factors: Factors, rank: int, *, trailing: bool = False) -> Start:
    """A = the first (or last) `rank` right singular vectors as orthonormal rows, B = 0 (RLPO, RLMO; arXiv 2606.31813).

    No singular value enters, so the first step is as long as that of any other orthonormal A.

    >>> right_rows(Factors(torch.ones(1), torch.eye(2)[:, :1], torch.eye(3)[:, :1]), 1).a.tolist()
    [[1.0, 0.0, 0.0]]
    """
    right = factors.right[:, -rank:] if trailing else factors.right[:, :rank]
    return Start(right.T.double())


def scaled_triplets(factors: Factors, values: Float[Tensor, " rank"], scaling: float) -> Start:
    """``B = U sqrt(S / scaling), A = sqrt(S / scaling) V^T``, so that ``scaling B A = U S V^T``.

    With the leading triplets that is PiSSA (arXiv 2404.02948, as PEFT divides by the scaling), with the trailing ones
    MiLoRA (arXiv 2406.09044), with those of the masked matrix and scaling 1 GeoRA (arXiv 2601.09361).

    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> start = scaled_triplets(Factors(4 * one[0], one, one), 4 * one[0], 1.0)
    >>> start.a.item(), start.b.item()
    (2.0, 2.0)
    """
    root = (values / scaling).sqrt()
    return Start(root[:, None] * factors.right.T, factors.left * root)


def first(factors: Factors, rank: int) -> Factors:
    """The leading `rank` triplets alone."""
    return Factors(factors.values[:rank], factors.left[:, :rank], factors.right[:, :rank])


def last(weight: Shaped[Tensor, "out in"], rank: int) -> Factors:
    """The trailing `rank` triplets of the thin SVD, values falling, float64.

    The Gram matrix gives a block a little larger than wanted, and the SVD of W times it, which squares nothing, sorts
    it: values and vectors are as good as a float64 SVD's wherever the block's edge is apart from its inside.
    Where wanted values are zero to rounding, the long side's vectors are not determined by W; then LAPACK's SVD of the
    whole matrix completes them orthogonally to all others.

    >>> last(torch.diag(torch.tensor([3.0, 1.0, 2.0])), 1).values.tolist()
    [1.0]
    """
    squares, vectors = eigen(gram(weight))
    block = vectors[:, -min(len(squares), rank + SPARE) :].clone()
    del vectors
    image = torch.empty(max(weight.shape), block.shape[1], dtype=torch.float64)
    for start, stop, part in slices(weight):
        torch.mm(part, block, out=image[start:stop])
    long, values, turn = torch.linalg.svd(image, full_matrices=False)
    if float(values[-1]) <= max(weight.shape) * EPS * math.sqrt(float(squares[0].clamp(min=0))):
        left, values, right = torch.linalg.svd(widened(weight, weight.device), full_matrices=False)
        return Factors(values[-rank:], left[:, -rank:], right[-rank:].T)
    short = block @ turn.T[:, -rank:]
    long = long[:, -rank:]
    sides = (long, short) if tall(weight) is weight else (short, long)
    return Factors(values[-rank:], *sides)


def geora_mask(weight: Shaped[Tensor, "out in"], factors: Factors, rank: int, rho: float) -> Bool[Tensor, "out in"]:
    """``|W^(r)| <= its rho-quantile, or |W| <= its rho-quantile`` (arXiv 2601.09361): spectral or Euclidean low part.

    The quantile is the ``round(rho n)``-th smallest magnitude, exact at any size; equal values are all inside.

    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> geora_mask(torch.tensor([[1.0]]), Factors(one[0], one, one), 1, 1.0).tolist()
    [[True]]
    """
    spectral = _low(low_rank(factors, rank), rho)
    return spectral | _low(widened(weight, weight.device), rho)


def _low(scores: Float[Tensor, "out in"], rho: float) -> Bool[Tensor, "out in"]:
    sizes = scores.abs()
    ones = count(rho, sizes.numel())
    if not ones:
        return torch.zeros_like(sizes, dtype=torch.bool)
    threshold = np.partition(sizes.numpy().reshape(-1), ones - 1)[ones - 1]
    return sizes <= float(threshold)


def geora(weight: Shaped[Tensor, "out in"], factors: Factors, rank: int, rho: float = RHO) -> Start:
    """GeoRA (arXiv 2601.09361, from the paper): the SVD of W on its mask, ``A = S^1/2 V^T, B = U S^1/2``.

    >>> w = torch.diag(torch.tensor([4.0, 1.0]))
    >>> geora(w, factorise(w, 1), 1, 1.0).b.abs().flatten().tolist()
    [2.0, 0.0]
    """
    inside = geora_mask(weight, factors, rank, rho)
    found = factorise(weight.masked_fill(~inside, 0.0), rank)
    return scaled_triplets(found, found.values[:rank], 1.0)


def off_principal(right: Float[Tensor, "in k"], rank: int, generator: torch.Generator) -> Start:
    """Random orthonormal rows in the orthogonal complement of the leading right singular vectors, B = 0 (*ours*).

    Gaussian directions projected off the k vectors twice (once is not enough in floating point), then QR: uniform
    over the complement. Needs ``k + rank <= in``.

    >>> basis = torch.eye(4, dtype=torch.float64)[:, :2]
    >>> bool((off_principal(basis, 2, torch.Generator().manual_seed(0)).a @ basis).abs().max() < 1e-15)
    True
    """
    draw = torch.randn(right.shape[0], rank, generator=generator, dtype=torch.float64)
    for _ in range(2):
        draw = draw - right @ (right.T @ draw)
    return Start(torch.linalg.qr(draw).Q.T)


def doubled(start: Start) -> tuple[Float[Tensor, "twice in"], Float[Tensor, "out twice"]]:
    """``D = B A - B0 A0`` as one product of twice the rank that is exactly zero at the start (*ours*).

    With ``A = A0 + dA`` and ``B = B0 + dB``, ``B A - B0 A0 = dB (A0 + dA) + B0 dA = [dB, B0] [A0 + dA; dA]``. At the
    start dA = dB = 0, and every product has a zero in it: no rounding, order or fused multiply-add can leave a rest,
    as it does in the textbook form ``[B, -B0] [A; A0]``.

    >>> a, b = doubled(Start(torch.ones(1, 2), torch.ones(2, 1)))
    >>> (b @ a).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    assert start.b is not None  # methods with B = 0 are plain LoRA already
    return torch.cat([start.a, torch.zeros_like(start.a)]), torch.cat([torch.zeros_like(start.b), start.b], dim=1)
