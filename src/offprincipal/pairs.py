"""Base and tuned checkpoint to a plan of named pairs, from headers alone.

Every tensor of either side ends as paired, as unpaired with a reason, or in an error. Nothing is dropped silently.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from offprincipal.checkpoint import Checkpoint, Source
from offprincipal.errors import InputError
from offprincipal.names import Cut, Piece, Place, canonical, family_of, is_buffer, is_tied, locate

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One side of a pair: the rows of a stored tensor that make a canonical one."""

    source: Source
    cut: Cut
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the part in its stored dtype."""
        return math.prod(self.shape) * self.source.info.itemsize

    def load(self) -> Tensor:
        """The canonical tensor, contiguous, in the stored dtype."""
        if self.cut.transposed:
            rows, columns = self.source.info.shape
            stored = self.source.rows([(0, rows)]).view(rows, columns)
            return stored.T[self.cut.start : self.cut.start + self.cut.length].contiguous()
        return self.source.rows(self.cut.runs()).view(self.shape)


@dataclass(frozen=True)
class Pair:
    """One tensor of the base and its partner in the tuned checkpoint. Small and picklable.

    Attributes:
        name: canonical and unique in the plan.
        place: layer, kind, expert, scope.
        shape: ``[out, in]`` or ``[n]``.
        base: where the base's values lie.
        tuned: where the tuned values lie.
        heads: attention heads along ``head_axis``, where the configuration tells.
        head_axis: 0 for queries, keys and values, 1 for the output projection.
    """

    name: str
    place: Place
    shape: tuple[int, ...]
    base: Part
    tuned: Part
    heads: int | None = None
    head_axis: int | None = None

    @property
    def base_dtype(self) -> str:
        """Torch's name of the base's stored dtype, ``"bfloat16"``."""
        return self.base.source.info.torch_name

    @property
    def tuned_dtype(self) -> str:
        """Torch's name of the tuned side's stored dtype."""
        return self.tuned.source.info.torch_name

    @property
    def count(self) -> int:
        """Elements of one side."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Stored bytes of both sides together."""
        return self.base.nbytes + self.tuned.nbytes

    def load(self) -> tuple[Tensor, Tensor]:
        """Base and tuned values: canonical layout, contiguous, each in its stored dtype.

        Raises:
            InputError: a file has gone or changed since the plan was made.
        """
        return self.base.load(), self.tuned.load()


@dataclass(frozen=True)
class Unpaired:
    """A tensor, or some rows of one, that is not compared.

    Attributes:
        side: ``"base"`` or ``"tuned"``.
        tensor: the stored name on that side.
        shape: what is left out, in the stored layout.
        reason: why.
        harmless: nothing that training could change is missed: a constant, or a tied tensor counted once already.
    """

    side: str
    tensor: str
    shape: tuple[int, ...]
    reason: str
    harmless: bool = False


@dataclass(frozen=True)
class Plan:
    """What is compared with what, and what is not."""

    base: Checkpoint
    tuned: Checkpoint
    pairs: tuple[Pair, ...]
    unpaired: tuple[Unpaired, ...]

    def largest_first(self) -> list[Pair]:
        """The pairs by falling size, so that no worker is left with the largest at the end."""
        return sorted(self.pairs, key=lambda pair: (-pair.nbytes, pair.name))


@dataclass(frozen=True)
class _Candidate:
    """A canonical tensor of one side, before its partner is known."""

    piece: Piece
    part: Part
    stored: str


def pair(base: Checkpoint, tuned: Checkpoint) -> Plan:
    """Pair every tensor of two checkpoints by canonical name, from their headers.

    Wrapper prefixes, missing roots, fused projections, transposed weights and fused experts are seen through, as the
    tables of :mod:`offprincipal.names` declare. A side without config.json borrows the other's. A vocabulary padded on
    one side is compared on its common rows. A tied head is counted once, as the embedding; where only one side has it
    untied, its head is compared with the other side's embedding.

    Raises:
        InputError: the two have no tensor in common, or a fused tensor does not fit its config.json.
    """
    base_config, tuned_config = base.config or tuned.config, tuned.config or base.config
    unpaired: list[Unpaired] = []
    before = _candidates("base", base, base_config, unpaired)
    after = _candidates("tuned", tuned, tuned_config, unpaired)
    _settle_heads(before, after, base_config, tuned_config, unpaired)
    pairs = [
        made
        for name in sorted(before.keys() & after.keys(), key=_natural)
        for made in _match(before[name], after[name], unpaired)
    ]
    for side, own, other in (("base", before, after), ("tuned", after, before)):
        for name in sorted(own.keys() - other.keys(), key=_natural):
            reason = f"the {'tuned' if side == 'base' else 'base'} checkpoint has no {name}"
            unpaired.append(Unpaired(side, own[name].stored, own[name].piece.shape, reason))
    if not pairs:
        raise InputError(
            f"compare {base.ref!r} with {tuned.ref!r}",
            f"no tensor of one fits one of the other (first names: {_first(before)} and {_first(after)})",
            "check that the second is a tune of the first",
        )
    return Plan(base, tuned, tuple(pairs), tuple(unpaired))


def _candidates(
    side: str, checkpoint: Checkpoint, config: Mapping[str, Any], unpaired: list[Unpaired]
) -> dict[str, _Candidate]:
    """Canonical name to candidate; what cannot be compared at all is noted."""
    found: dict[str, _Candidate] = {}
    family = family_of(config)
    for name, source in checkpoint.sources.items():
        info = source.info
        if is_buffer(canonical(name, family)):
            unpaired.append(Unpaired(side, name, info.shape, "a constant stored beside the weights", harmless=True))
            continue
        if not info.is_float:
            reason = f"{info.dtype} values are not weights"
            unpaired.append(Unpaired(side, name, info.shape, reason, harmless=True))
            continue
        for piece in locate(name, info.shape, config):
            if piece.name in found:
                reason = f"{found[piece.name].stored} is {piece.name} already"
                unpaired.append(Unpaired(side, name, piece.shape, reason))
                continue
            found[piece.name] = _Candidate(piece, Part(source, piece.cut, piece.shape), name)
    return found


def _settle_heads(
    before: dict[str, _Candidate],
    after: dict[str, _Candidate],
    base_config: Mapping[str, Any],
    tuned_config: Mapping[str, Any],
    unpaired: list[Unpaired],
) -> None:
    """Count a tied head once. Takes heads out of the candidates, or lends an embedding as a head."""
    family = family_of(base_config)
    head, embedding = f"{family.head}.weight", f"{family.root}{family.embed}.weight"
    tied = [
        is_tied(config) if head in side else embedding in side and is_tied(config) is not False
        for side, config in ((before, base_config), (after, tuned_config))
    ]
    for tie, label, side, other_has in (
        (tied[0], "base", before, head in after and not tied[1]),
        (tied[1], "tuned", after, head in before and not tied[0]),
    ):
        if not tie or embedding not in side:
            continue
        if head in side:
            reason = f"tied to {side[embedding].stored}, which is compared: counted once"
            shape = side[head].piece.shape
            unpaired.append(Unpaired(label, side.pop(head).stored, shape, reason, harmless=True))
        if other_has:
            lent = side[embedding]
            place = Place(None, "head", None, linear=False)
            side[head] = replace(lent, piece=replace(lent.piece, name=head, place=place))


def _match(before: _Candidate, after: _Candidate, unpaired: list[Unpaired]) -> Iterator[Pair]:
    """The pair of two candidates of one name, if their shapes allow it."""
    base, tuned, piece = before.part, after.part, before.piece
    if base.shape != tuned.shape:
        padded = piece.place.kind in ("embed", "head") and base.shape[1:] == tuned.shape[1:] and len(base.shape) == 2
        common = min(base.shape[0], tuned.shape[0])
        if not padded or not common:
            for side, own, other in (("base", before, tuned), ("tuned", after, base)):
                reason = f"shapes differ: {list(own.part.shape)} here, {list(other.shape)} on the other side"
                unpaired.append(Unpaired(side, own.stored, own.part.shape, reason))
            return
        for side, own in (("base", before), ("tuned", after)):
            rows = own.part.shape[0]
            if rows > common:
                reason = (
                    f"rows {common} to {rows - 1} of the vocabulary have no partner; the first {common} are compared"
                )
                unpaired.append(Unpaired(side, own.stored, (rows - common, own.part.shape[1]), reason))
        base, tuned = _first_rows(base, common), _first_rows(tuned, common)
    heads, axis = (piece.heads, piece.head_axis) if piece.heads else (after.piece.heads, after.piece.head_axis)
    yield Pair(piece.name, piece.place, base.shape, base, tuned, heads, axis)


def _first_rows(part: Part, rows: int) -> Part:
    """The first rows of an embedding or head, which lies in one piece."""
    return replace(part, cut=replace(part.cut, length=rows), shape=(rows, *part.shape[1:]))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key that puts layer 2 before layer 10: numbers by their length, then by their digits."""
    pieces = re.split(r"([0-9]+)", name)
    return [(0, len(piece.lstrip("0")), piece) if piece.isdigit() else (1, 0, piece) for piece in pieces]


def _first(candidates: Mapping[str, _Candidate]) -> str:
    return repr(next(iter(sorted(candidates)), "none that could be compared"))
