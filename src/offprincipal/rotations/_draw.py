"""Random rotations and orders, each from a generator of its own."""

import torch
from torch import Tensor

from offprincipal.errors import UsageError


def haar(size: int, generator: torch.Generator) -> Tensor:
    """A Haar-random orthogonal matrix, float64 ``[size, size]``: QR of a Gaussian matrix, signs made unique.

    Without the signs Q would depend on the convention of the QR routine and not be Haar (Mezzadri 2007,
    math-ph/0609050, section 5). The determinant is 1 or -1.

    >>> turn = haar(8, torch.Generator().manual_seed(0))
    >>> bool((turn.T @ turn - torch.eye(8)).abs().max() < 1e-14)
    True
    """
    gaussian = torch.randn(size, size, dtype=torch.float64, generator=generator)
    turned, upper = torch.linalg.qr(gaussian)
    return turned * torch.where(upper.diagonal() < 0, -1.0, 1.0)


def hadamard(size: int, generator: torch.Generator) -> Tensor:
    """A Hadamard matrix over the root of its size, rows given random signs: float64 ``[size, size]``, orthogonal.

    Sylvester's construction, so the size is a power of two. All entries have the same magnitude: it spreads every
    coordinate over all others equally, which a Haar matrix does only on average.

    Raises:
        UsageError: the size is no power of two.

    >>> hadamard(4, torch.Generator().manual_seed(0)).abs().unique().tolist()
    [0.5]
    """
    if size < 1 or size & (size - 1):
        raise UsageError("draw a Hadamard rotation", f"{size} is no power of two", "use --basis haar")
    made = torch.ones(1, 1, dtype=torch.float64)
    while len(made) < size:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    signs = torch.randint(0, 2, (size, 1), generator=generator) * 2 - 1
    return made * signs / size**0.5


def order(size: int, generator: torch.Generator) -> Tensor:
    """A random permutation, int64 ``[size]``: uniform among all but the one that moves nothing (if there are others).

    >>> order(2, torch.Generator().manual_seed(0)).tolist()
    [1, 0]
    """
    drawn = torch.randperm(size, generator=generator)
    while size > 1 and torch.equal(drawn, torch.arange(size)):
        drawn = torch.randperm(size, generator=generator)
    return drawn


def spread(heads: Tensor, size: int) -> Tensor:
    """The order of entries that moves whole blocks of ``size`` entries: int64 ``[len(heads) * size]``.

    >>> spread(torch.tensor([1, 0]), 3).tolist()
    [3, 4, 5, 0, 1, 2]
    """
    return (heads[:, None] * size + torch.arange(size)).reshape(-1)
