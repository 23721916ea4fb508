"""Edits of a tuned checkpoint beside its base: the pure function of a pair, applied where the two pair up."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from offprincipal.checkpoint import Checkpoint
from offprincipal.errors import InputError
from offprincipal.names import Piece, is_tied
from offprincipal.pairs import Pair, pair
from offprincipal.rewrite._anatomy import Anatomy
from offprincipal.rewrite._stream import Edit
from offprincipal.rotations import round_to

PairEdit = Callable[[Tensor, Tensor], Tensor]
"""Base and tuned matrix to what is written instead of the tuned one, float64."""


def paired(base: Checkpoint, anatomy: Anatomy) -> dict[str, Pair]:
    """Canonical name of the tuned side to its pair; a head tied on both sides is paired as the embedding is.

    Raises:
        InputError: a weight of the tuned side has no partner of its own shape.
    """
    plan = pair(base, anatomy.checkpoint)
    found = {each.name: each for each in plan.pairs}
    if is_tied(anatomy.config) and anatomy.head in anatomy.named and anatomy.embedding in found:
        found.setdefault(anatomy.head, found[anatomy.embedding])
    for name, piece in anatomy.named.items():
        if name not in found or found[name].shape != piece.shape:
            reasons = [item.reason for item in plan.unpaired if item.tensor == anatomy.stored[name]]
            raise InputError(
                anatomy.asked,
                f"{anatomy.stored[name]} has no partner in {base.ref}: {'; '.join(reasons) or 'none of its shape'}",
                "give the base that the second checkpoint was tuned from",
            )
    return found


def pair_edit(
    function: PairEdit, base: Checkpoint, anatomy: Anatomy, layers: Sequence[int] | None, every: bool
) -> Edit:
    """Apply ``function`` to the linear weights of the chosen layers, or with ``every`` to all their weights.

    Without ``layers`` and with ``every`` the embedding, the head and the last norm are edited, too.

    Raises:
        InputError: see `paired`.
        UsageError: no such layer.
    """
    pairs = paired(base, anatomy)
    chosen = set(anatomy.chosen(layers)) if layers is not None or not every else None

    def edit(piece: Piece, tuned: Tensor, dtype: torch.dtype) -> Tensor | None:
        wanted = chosen is None or piece.place.layer in chosen
        if not wanted or not (every or piece.place.linear):
            return None
        try:
            return round_to(function(pairs[piece.name].base.load(), tuned), dtype)
        except InputError as problem:
            raise InputError(f"edit {piece.name}", problem.found, problem.do_next) from problem

    return edit
