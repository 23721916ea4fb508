"""Half a Gram matrix, slice by slice, and checked eigenvectors: what `spectrum` stands on."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from offprincipal.measures._slices import slices

EPS = torch.finfo(torch.float64).eps

Update = Callable[[int, int, Tensor], None]


def gram(
    weight: Shaped[Tensor, "out in"],
    minus: Shaped[Tensor, "out in"] | None = None,
    *,
    holes: Bool[Tensor, "out in"] | None = None,
    device: str | torch.device = "cpu",
    also: Update | None = None,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "short short"]:
    """The lower triangle of the Gram matrix on the short side: of ``W^T W`` when out >= in, else of ``W W^T``.

    Args:
        weight: ``[out, in]``, any floating dtype.
        minus: subtracted in float64 where given: the Gram matrix of ``weight - minus``.
        holes: entries that count as zero.
        device: where to compute.
        also: called with ``(start, stop, rows)`` for every slice of the long side, to share the conversion.
        dtype: of the slices and of the result.

    Only blocks on and below the diagonal are multiplied (.56 of the flops; torch has no syrk on the CPU). Peak
    memory: the result and a slice of 4 M entries or 256 rows (two of a difference).

    >>> gram(torch.tensor([[3.0, 0.0], [4.0, 0.0]])).tolist()
    [[25.0, 0.0], [0.0, 0.0]]
    """
    short = min(weight.shape)
    total = torch.zeros(short, short, dtype=dtype, device=device)
    for start, stop, part in slices(weight, minus, device=device, holes=holes, dtype=dtype):
        add_lower(total, part, part)
        if also is not None:
            also(start, stop, part)
    return total.tril_()


def add_lower(
    total: Float[Tensor, "n n"], left: Float[Tensor, "rows n"], right: Float[Tensor, "rows n"]
) -> Float[Tensor, "n n"]:
    """Add ``left^T right`` to the blocks of `total` on and below the diagonal; above it, anything. Returns `total`.

    >>> add_lower(torch.zeros(1, 1), torch.ones(2, 1), torch.ones(2, 1)).item()
    2.0
    """
    size = len(total)
    width = max(192, -(-size // 8))
    for start in range(0, size, width):
        stop = min(start + width, size)
        total[start:stop, :stop].addmm_(left[:, start:stop].T, right[:, :stop])
    return total


def mirrored(square: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Overwrite what lies above the diagonal by what lies below, in place and a few rows at a time; returns `square`.

    Adding a transposed triangle to the other would take four times as long, most of it on a transposed read.

    >>> mirrored(torch.tensor([[1.0, 9.0], [2.0, 3.0]])).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    for start in range(0, len(square), 128):
        stop = start + 128
        square[start:stop, stop:] = square[stop:, start:stop].T
        block = square[start:stop, start:stop]
        block.copy_(block.tril() + block.tril(-1).T)
    return square


def eigen(square: Float[Tensor, "n n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Eigenvalues (falling) and eigenvectors (columns) of a symmetric matrix, checked where a GPU made them.

    Only the lower triangle of the float64 matrix is read.

    On a GPU the residual ``|G V - V L|`` and ``|V^T V - 1|`` must stay within ``64 n eps`` of the largest eigenvalue;
    where they do not, or the driver gives up, the CPU does it again.

    >>> eigen(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))[0].tolist()
    [4.0, 1.0]
    """
    found = None if square.device.type == "cpu" else checked(square)
    values, vectors = torch.linalg.eigh(square.cpu()) if found is None else found
    return values.flip(0).to(square.device), vectors.flip(1).to(square.device)


def checked(square: Float[Tensor, "n n"]) -> tuple[Tensor, Tensor] | None:
    """Rising eigenvalues and eigenvectors where they were computed; None where they do not fit the matrix.

    >>> checked(torch.eye(2, dtype=torch.float64))[0].tolist()
    [1.0, 1.0]
    """
    try:
        values, vectors = torch.linalg.eigh(square)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        return None
    tolerance = 64 * len(values) * EPS
    whole = mirrored(square.clone())
    residual = float((whole @ vectors - vectors * values).abs().max())
    products = vectors.T @ vectors
    products.diagonal().sub_(1.0)
    fits = residual <= tolerance * float(values.abs().max()) and float(products.abs().max()) <= tolerance
    return (values, vectors) if fits else None
