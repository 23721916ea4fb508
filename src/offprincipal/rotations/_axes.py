"""What one axis of a weight can undergo without a change of the model's function, and how it is undone.

A weight is ``[out, in]``, a bias or norm ``[n]``; ``rows`` acts on the first axis, ``columns`` on a matrix's last.
Every change is linear, so it carries a difference of two weights as it carries a weight.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from offprincipal.errors import UsageError


class AxisChange(Protocol):
    """A change of the coordinates of one axis."""

    exact: bool
    """Whether it only moves numbers, so that any dtype and a mask can be carried."""

    def rows(self, weight: Tensor) -> Tensor:
        """Change the first axis."""
        ...

    def columns(self, weight: Tensor) -> Tensor:
        """Change the last axis of a matrix."""
        ...

    def inverse(self) -> "AxisChange":
        """The change that undoes this one."""
        ...


@dataclass(frozen=True)
class Turn:
    """Rotate an axis in equal blocks, usually attention heads (PNT Eq. 11 in ``[out, in]`` layout).

    Block h of the rows becomes R_h^T W_h, block h of the columns W_h R_h. With fewer matrices than blocks each serves
    that many neighbouring blocks: one for all heads, or one per key/value head and so for its group of query heads.

    Attributes:
        blocks: float64 ``[count, size, size]``, each orthogonal.

    >>> import torch
    >>> turn = Turn(torch.tensor([[[0.0, -1.0], [1.0, 0.0]]], dtype=torch.float64))
    >>> value, output = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]])
    >>> (turn.columns(output) @ turn.rows(value) == output @ value).item()
    True
    """

    blocks: Tensor
    exact = False

    def rows(self, weight: Tensor) -> Tensor:
        """R^T W, float64, in the shape of the weight."""
        blocks = self._for(weight.shape[0])
        folded = weight.double().reshape(blocks.shape[0], blocks.shape[1], -1)
        return (blocks.mT @ folded).reshape(weight.shape)

    def columns(self, weight: Tensor) -> Tensor:
        """W R, float64, in the shape of the weight."""
        blocks = self._for(weight.shape[-1])
        folded = weight.double().reshape(-1, blocks.shape[0], blocks.shape[1]).transpose(0, 1)
        return (folded @ blocks).transpose(0, 1).reshape(weight.shape)

    def inverse(self) -> "Turn":
        """The transposed blocks."""
        return Turn(self.blocks.mT.contiguous())

    def _for(self, length: int) -> Tensor:
        """One matrix for each block of an axis of this length."""
        count, size = self.blocks.shape[:2]
        if length % (count * size):
            raise UsageError(
                "rotate an axis",
                f"its length {length} is no multiple of {count} blocks of {size}",
                "check that config.json gives the heads of these weights",
            )
        return self.blocks.repeat_interleave(length // (count * size), 0)


@dataclass(frozen=True)
class Order:
    """Put an axis into another order: entry i of the result is entry ``index[i]``. Any dtype, exact.

    Attributes:
        index: int64 ``[n]``, a permutation.

    >>> import torch
    >>> Order(torch.tensor([2, 0, 1])).rows(torch.tensor([10, 11, 12])).tolist()
    [12, 10, 11]
    """

    index: Tensor
    exact = True

    def rows(self, weight: Tensor) -> Tensor:
        """The rows in the new order."""
        return self._moved(weight, 0)

    def columns(self, weight: Tensor) -> Tensor:
        """The columns in the new order."""
        return self._moved(weight, weight.dim() - 1)

    def inverse(self) -> "Order":
        """The order that puts everything back."""
        return Order(self.index.argsort())

    def _moved(self, weight: Tensor, axis: int) -> Tensor:
        if weight.shape[axis] != len(self.index):
            raise UsageError(
                "reorder an axis",
                f"it has {weight.shape[axis]} entries and the order {len(self.index)}",
                "check that config.json gives the heads and widths of these weights",
            )
        if weight.dtype.itemsize == 1:  # torch does not index fp8
            return weight.view(torch.uint8).index_select(axis, self.index).view(weight.dtype)
        return weight.index_select(axis, self.index)


@dataclass(frozen=True)
class Stretch:
    """Multiply each entry of an axis by a factor of its own: a norm's scale moved into what reads it.

    Attributes:
        factors: float64 ``[n]``, none of them zero if it is to be undone.
        divided: divide instead, so that a scale divided by itself is exactly 1.

    >>> import torch
    >>> Stretch(torch.tensor([2.0, 3.0])).columns(torch.ones(1, 2)).tolist()
    [[2.0, 3.0]]
    """

    factors: Tensor
    divided: bool = False
    exact = False

    def rows(self, weight: Tensor) -> Tensor:
        """diag(f) W, float64."""
        factors = self.factors.view(-1, *[1] * (weight.dim() - 1))
        return weight.double() / factors if self.divided else weight.double() * factors

    def columns(self, weight: Tensor) -> Tensor:
        """W diag(f), float64."""
        return weight.double() / self.factors if self.divided else weight.double() * self.factors

    def inverse(self) -> "Stretch":
        """The change that divides where this one multiplies."""
        if not bool((self.factors != 0).all()):
            raise UsageError("undo a folded norm", "some of its scales are zero", "leave that norm where it was")
        return Stretch(self.factors, not self.divided)
