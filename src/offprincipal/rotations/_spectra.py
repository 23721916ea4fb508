"""Edits of a tuned matrix beside its base: its spectrum, its frames, the rank and size of its change, its rounding.

All in float64; ``[out, in]``. Not function-preserving: they ask what a part of the change is worth.
"""

import torch
from torch import Tensor

from offprincipal.errors import InputError, UsageError


def restore_spectrum(base: Tensor, tuned: Tensor, strength: float = 1.0) -> Tensor:
    """The tuned frames with the base's singular values: U diag((1 - t) s(W) + t s(W0)) V^T.

    Args:
        base: W0, ``[out, in]``.
        tuned: W, the same shape.
        strength: t; 0 gives the tuned matrix, 1 the base's spectrum entirely.

    Returns:
        float64 ``[out, in]``. Where singular values of W coincide its frames are not unique, nor is the result.
        The intervention is that of ISO (arXiv 2607.19331), re-derived.

    >>> base, tuned = torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([4.0, 2.0]))
    >>> restore_spectrum(base, tuned, 0.5).round(decimals=12).tolist()
    [[3.5, 0.0], [0.0, 1.5]]
    """
    left, values, right = _svd(tuned)
    wanted = torch.lerp(values, torch.linalg.svdvals(_checked(base)), strength)
    return (left * wanted) @ right


def swap_spectrum(base: Tensor, tuned: Tensor) -> Tensor:
    """The base's frames with the tuned singular values: U0 diag(s(W)) V0^T, float64. The counterpart of restore.

    >>> base, tuned = torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([4.0, 2.0]))
    >>> swap_spectrum(base, tuned).round(decimals=12).tolist()
    [[4.0, 0.0], [0.0, 2.0]]
    """
    left, _, right = _svd(base)
    return (left * torch.linalg.svdvals(_checked(tuned))) @ right


def keep_rank(base: Tensor, tuned: Tensor, rank: int) -> Tensor:
    """W0 + D_k: the change cut to its ``rank`` largest singular directions, the best in Frobenius norm. float64.

    >>> base, tuned = torch.zeros(2, 2), torch.diag(torch.tensor([4.0, 2.0]))
    >>> keep_rank(base, tuned, 1).round(decimals=12).tolist()
    [[4.0, 0.0], [0.0, 0.0]]
    """
    if rank < 0:
        raise UsageError("keep a rank of the change", f"{rank} is negative", "give 0 or more")
    left, values, right = _svd(tuned.double() - base.double())
    return base.double() + (left[:, :rank] * values[:rank]) @ right[:rank]


def scale(base: Tensor, tuned: Tensor, factor: float) -> Tensor:
    """W0 + c D, float64, any shape: what a larger or smaller step in the same direction would have left.

    >>> scale(torch.tensor([1.0]), torch.tensor([1.5]), 2.0).tolist()
    [2.0]
    """
    return base.double() + factor * (tuned.double() - base.double())


def round_to(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest values of another type, ties to even. NaN and infinities stay what they are.

    From float64 to a type below float32 torch goes through float32, so a value within 2^-24 of a tie may fall to
    either side of it.

    Raises:
        InputError: a finite weight lies beyond the type's largest value (fp8 and fp16 are narrow; torch would saturate
            some of them and make infinities of others).

    >>> round_to(torch.tensor([1.003]), torch.bfloat16).item()
    1.0
    """
    largest = torch.finfo(dtype).max
    if largest < torch.finfo(weight.dtype).max:
        size = weight.float().abs() if weight.dtype.itemsize < 4 else weight.abs()
        lost = int(((size > largest) & torch.isfinite(size)).sum())
        if lost:
            found = f"{lost:,} weights are larger than its largest value {largest:g}"
            raise InputError(
                f"round to {str(dtype).removeprefix('torch.')}", found, "choose a wider type, such as bfloat16"
            )
    return weight.to(dtype)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = torch.linalg.svd(_checked(matrix), full_matrices=False)
    return left, values, right


def _checked(matrix: Tensor) -> Tensor:
    """The matrix in float64, if every entry is finite."""
    if not bool(torch.isfinite(matrix).all()):
        raise InputError("factorise a matrix", "it has NaN or infinite entries", "leave its layer out with --layers")
    return matrix.double()
