"""A tuned checkpoint, trained from a transformed base, in the coordinates of the original base: W0 + undo(D).

The control of the intervention: if two runs agree again once one of them is mapped back, their disagreement was a
change of names, not of geometry.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from offprincipal.checkpoint import Checkpoint, Source
from offprincipal.errors import InputError
from offprincipal.names import Piece, is_tied
from offprincipal.pairs import Part
from offprincipal.rewrite._anatomy import Anatomy
from offprincipal.rewrite._stream import Edit
from offprincipal.rewrite._transform import Transform
from offprincipal.rotations import round_to


@dataclass(frozen=True)
class _Sides:
    """Canonical name to where it lies in the original base and in the transformed one."""

    base: Mapping[str, Part]
    transformed: Mapping[str, Part]


def map_back_edit(
    transform: Transform, base: Checkpoint, transformed: Checkpoint, tuned: Anatomy, dtype: torch.dtype | None
) -> Edit:
    """The edit that carries each tensor of the tuned checkpoint back.

    A tensor whose entries were only moved comes back bit for bit in its own type. One that was rotated comes back as
    W0 + undo(D), D in float64 from the stored values, in float32 unless ``dtype`` is given: undone, D is dense, and
    rounding it to bfloat16 would hide most of it.

    Raises:
        InputError: a tensor is missing on one side or has another shape.
    """
    sides = _Sides(_parts(base, tuned.asked), _parts(transformed, tuned.asked))
    for name, piece in tuned.named.items():
        for label, parts in (("original base", sides.base), ("transformed base", sides.transformed)):
            if name not in parts or parts[name].shape != piece.shape:
                raise tuned.refuse(
                    f"the {label} has no {name} of shape {list(piece.shape)}",
                    "give the checkpoint that was trained from this transformed base",
                )

    def edit(piece: Piece, after: Tensor, wanted: torch.dtype) -> Tensor | None:
        if piece.name not in transform.actions:
            return None
        origin, start = sides.base[piece.name].load(), sides.transformed[piece.name].load()
        _check_origin(transform, piece.name, origin, start, tuned.asked)
        if transform.exact(piece.name):
            return transform.undo(piece.name, after, wanted)
        step = after.double() - start.double()
        if piece.place.kind == "norm" and bool(step.any()):
            raise InputError(
                tuned.asked,
                f"{piece.name} was trained: a scale in rotated coordinates is none in the original ones",
                "freeze the norms when you train from a rotated residual stream",
            )
        back = origin.double() + transform.undo(piece.name, step, torch.float64)
        return round_to(back, dtype or (torch.float64 if wanted == torch.float64 else torch.float32))

    return edit


def _check_origin(transform: Transform, name: str, origin: Tensor, start: Tensor, asked: str) -> None:
    """The transformed base must be what this transform makes of this base, up to the rounding of its type."""
    made = transform.apply(name, origin, torch.float64)
    rounding = torch.finfo(start.dtype).eps  # twice the largest relative error of rounding to nearest
    far = (made - start.double()).abs() > rounding * made.abs() + torch.finfo(start.dtype).tiny
    if bool((far & ~(made.isnan() & start.double().isnan())).any()):
        raise InputError(
            asked,
            f"{name} of the transformed base is not what the transform makes of this base",
            "give the original base with --base",
        )


def _parts(checkpoint: Checkpoint, asked: str) -> dict[str, Part]:
    """Every canonical tensor of a checkpoint; a tied head is the embedding."""
    anatomy = Anatomy(checkpoint, asked)

    def part(source: Source, piece: Piece) -> Part:
        return Part(source, piece.cut, piece.shape)

    found = {p.name: part(checkpoint.sources[name], p) for name, ps in anatomy.pieces.items() for p in ps}
    if anatomy.head not in found and is_tied(checkpoint.config) and anatomy.embedding in found:
        found[anatomy.head] = found[anatomy.embedding]
    return found
