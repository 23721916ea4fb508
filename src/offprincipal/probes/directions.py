"""Directions in weight space: the update of each matrix, its parts on and off what is principal, and random ones.

What it is: matrices in canonical layout (``[out, in]``, experts one by one, fused projections apart) cut out of a
model's own parameters, and parts of a direction that add up to it. What it is not: weighted by size; every matrix
keeps the norm of its update, whatever the part.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offprincipal.measures import masks
from offprincipal.measures.seeds import torch_generator
from offprincipal.measures.spectrum import factorise
from offprincipal.names import Piece, locate
from offprincipal.probes.models import Model

PARTS = {
    "whole": "the direction itself",
    "on": "projected on the principal subspaces, U U' v V V'",
    "off": "what the projection leaves, v - U U' v V V'",
    "principal": "restricted to the principal entries (largest of the rank-k part)",
    "other": "restricted to the other entries",
}


@dataclass(frozen=True)
class Region:
    """What is principal in a base matrix.

    Attributes:
        left: [out, k], leading left singular vectors, float64.
        right: [in, k], leading right ones.
        mask: [out, in], true on the principal entries.
    """

    left: Float[Tensor, "out k"]
    right: Float[Tensor, "in k"]
    mask: Bool[Tensor, "out in"]

    @classmethod
    def of(cls, weight: Float[Tensor, "out in"], rank: int = masks.RANK) -> "Region":
        """Of a base weight: rank capped at half the short side and at its numerical rank, half of the entries."""
        factors = factorise(weight, masks.principal_rank((weight.shape[0], weight.shape[1]), rank))
        kept = max(1, min(factors.left.shape[1], factors.rank))
        return cls(factors.left[:, :kept], factors.right[:, :kept], masks.principal(factors, kept))

    def part(self, name: str, direction: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """One of `PARTS` of a direction, in its dtype.

        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> region = Region(eye[:, :1], eye[:, :1], eye.bool())
        >>> region.part("off", torch.tensor([[3.0, 1.0], [2.0, 0.0]])).tolist()
        [[0.0, 1.0], [2.0, 0.0]]
        """
        if name == "whole":
            return direction
        if name in ("principal", "other"):
            return direction * (self.mask if name == "principal" else ~self.mask)
        inner = self.left.T @ direction.to(self.left.dtype) @ self.right
        on = (self.left @ inner @ self.right.T).to(direction.dtype)
        return on if name == "on" else direction - on


@dataclass(frozen=True)
class Matrix:
    """One linear matrix inside a block of a model.

    Attributes:
        parameter: the model's name of the parameter that holds it.
        piece: its canonical name, place, and rows in that parameter.
    """

    parameter: str
    piece: Piece

    def take(self, value: Tensor) -> Tensor:
        """The matrix ``[out, in]`` out of the parameter."""
        cut = self.piece.cut
        if cut.transposed:
            return value.T[cut.start : cut.start + cut.length]
        rows = value.reshape(-1, value.shape[-1])
        return torch.cat([rows[start:stop] for start, stop in cut.runs()]).view(self.piece.shape)

    def put(self, matrix: Tensor, into: Tensor) -> None:
        """Write a matrix to its place in a tensor of the parameter's shape."""
        cut = self.piece.cut
        if cut.transposed:
            into.T[cut.start : cut.start + cut.length] = matrix
            return
        rows, done = into.view(-1, into.shape[-1]), 0
        for start, stop in cut.runs():
            rows[start:stop] = matrix[done : done + stop - start]
            done += stop - start


def matrices_of(model: Model) -> list[Matrix]:
    """Every linear matrix inside the blocks of a model, in its order."""
    config = model.module.config.to_dict()
    return [
        Matrix(name, piece)
        for name, value in model.weights().items()
        for piece in locate(name, value.shape, config)
        if piece.place.linear and len(piece.shape) == 2
    ]


@dataclass(frozen=True)
class Direction:
    """Which direction: a part of the update, or the same part of a random draw.

    Attributes:
        part: one of `PARTS`.
        draw: -1 for the update, else the number of the draw.
    """

    part: str
    draw: int

    @property
    def random(self) -> bool:
        """Whether it was drawn."""
        return self.draw >= 0


def wanted(draws: int) -> list[Direction]:
    """Every part of the update and of so many draws."""
    return [Direction(part, draw) for draw in range(-1, draws) for part in PARTS]


def unit(direction: Direction, delta: Tensor, region: Region, seed: int, name: str) -> Tensor | None:
    """The direction in one matrix with Frobenius norm 1, in the dtype of `delta`; None where that part is empty.

    A draw is Gaussian, from a stream named by seed, matrix and number, so that its parts add up to it.
    """
    whole = delta
    if direction.random:
        generator = torch_generator(seed, name, "curvature", str(direction.draw))
        whole = torch.randn(delta.shape, generator=generator, dtype=torch.float64).to(delta)
    found = region.part(direction.part, whole)
    size = float(found.double().norm())
    return found / size if size > 1e-12 * float(whole.double().norm()) else None


def joined(
    direction: Direction, deltas: Mapping[Matrix, Tensor], regions: Mapping[Matrix, Region], seed: int, model: Model
) -> dict[str, Tensor]:
    """One direction through these matrices, norm 1, each with the share of the norm that the update gives it.

    Parameter name to tensor of its shape, in the model's dtype; zero where a part is empty.
    """
    total = sum(float(delta.double().square().sum()) for delta in deltas.values()) ** 0.5
    weights = model.weights()
    found: dict[str, Tensor] = {}
    for matrix, delta in deltas.items():
        piece = unit(direction, delta, regions[matrix], seed, matrix.piece.name)
        into = found.setdefault(matrix.parameter, torch.zeros_like(weights[matrix.parameter]))
        if piece is not None:
            matrix.put(piece.to(into) * (float(delta.double().norm()) / total), into)
    return found
