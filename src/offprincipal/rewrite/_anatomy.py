"""Which tensors of a block belong together: the axis of one is the axis of another. Refuses what it does not know."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from offprincipal.checkpoint import Checkpoint, Source
from offprincipal.errors import InputError, UsageError
from offprincipal.names import Family, Piece, canonical, family_of, flat, is_buffer, locate

ALWAYS_BIASED = ("qwen2", "qwen2_moe")
"""Model types whose queries, keys and values have biases though no entry of config.json says so."""

_NO_SUCH_PART = {"v": "value projection", "o": "output projection", "q": "query projection", "k": "key projection"}


@dataclass(frozen=True)
class Anatomy:
    """The canonical tensors of a checkpoint, by stored name and by role.

    Attributes:
        checkpoint: whose.
        asked: what the user wanted, for the message of an error.
    """

    checkpoint: Checkpoint
    asked: str

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json as it is."""
        return self.checkpoint.config

    @cached_property
    def family(self) -> Family:
        """The table of names that config.json declares."""
        return family_of(self.config)

    @cached_property
    def pieces(self) -> dict[str, tuple[Piece, ...]]:
        """Stored name to the canonical tensors in it; none for constants and for what is not floating point."""
        return {name: self.pieces_of(source) for name, source in self.checkpoint.sources.items()}

    def pieces_of(self, source: Source) -> tuple[Piece, ...]:
        """The canonical tensors in one stored tensor."""
        info = source.info
        if not info.is_float or is_buffer(canonical(info.name, self.family)):
            return ()
        return locate(info.name, info.shape, self.config)

    @cached_property
    def named(self) -> dict[str, Piece]:
        """Canonical name to piece."""
        return {piece.name: piece for pieces in self.pieces.values() for piece in pieces}

    @cached_property
    def stored(self) -> dict[str, str]:
        """Canonical name to the stored tensor that holds it."""
        return {piece.name: name for name, pieces in self.pieces.items() for piece in pieces}

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The numbers of the blocks."""
        return tuple(sorted({piece.place.layer for piece in self.named.values() if piece.place.layer is not None}))

    @property
    def embedding(self) -> str:
        """The canonical name of the token embedding."""
        return f"{self.family.root}{self.family.embed}.weight"

    @property
    def head(self) -> str:
        """The canonical name of the output head."""
        return f"{self.family.head}.weight"

    def role(self, piece: Piece) -> str:
        """The kind of a weight; of a bias, the kind of its weight."""
        if piece.place.kind != "bias":
            return piece.place.kind
        weight = self.named.get(piece.name.removesuffix("bias") + "weight")
        return weight.place.kind if weight else "bias"

    def block(self, layer: int) -> tuple[Piece, ...]:
        """The tensors of one block."""
        return self._blocks[layer]

    @cached_property
    def _blocks(self) -> dict[int, tuple[Piece, ...]]:
        found: dict[int, list[Piece]] = {layer: [] for layer in self.layers}
        for piece in self.named.values():
            if piece.place.layer is not None:
                found[piece.place.layer].append(piece)
        return {layer: tuple(pieces) for layer, pieces in found.items()}

    def one(self, layer: int, kind: str) -> Piece:
        """The one weight of this kind in a block.

        Raises:
            InputError: there is none.
        """
        for piece in self.block(layer):
            if piece.place.kind == kind:
                return piece
        raise self.refuse(f"layer {layer} has no {_NO_SUCH_PART[kind]}", "give a whole checkpoint of a decoder")

    def head_size(self, piece: Piece) -> int:
        """Entries of one attention head along the head axis of a projection.

        Raises:
            InputError: the axis does not divide by the heads of config.json.
        """
        heads, length = piece.heads, piece.shape[1 if piece.place.kind == "o" else 0]
        declared = flat(self.config).get("head_dim")
        if not heads or (isinstance(declared, int) and length != heads * declared):
            query, other = (flat(self.config).get(f"num_{name}_heads") for name in ("attention", "key_value"))
            raise self.refuse(
                f"{piece.name} has {length} entries along its heads, which config.json does not divide into heads "
                f"({query} query heads, {other or query} key/value heads, head_dim {declared})",
                "check that config.json belongs to these weights",
            )
        return length // heads

    def check_known(self) -> None:
        """Refuse a model whose parts no table describes.

        Raises:
            InputError: model_type is missing or unknown.
        """
        if not self.family.known:
            raise self.refuse(
                f"config.json declares model_type {flat(self.config).get('model_type')!r}, which no table describes",
                "nothing says which of its axes belong together: use a family of docs/checkpoints.md",
            )

    def check_block(self, layer: int) -> None:
        """Refuse a block with a part of unknown purpose, or with some of its biases missing.

        Raises:
            InputError: with the tensor's name.
        """
        block = self.block(layer)
        for piece in block:
            if piece.place.kind == "other":
                raise self.refuse(
                    f"layer {layer} holds {piece.name}, and no table says what it does", "leave out that layer"
                )
        for kinds in (("q", "k", "v"), ("gate", "up")):
            self._check_biases(layer, block, kinds)

    def _check_biases(self, layer: int, block: Iterable[Piece], kinds: Sequence[str]) -> None:
        """All of these projections have a bias, or none."""
        weights = {p.name.removesuffix("weight") for p in block if p.place.kind in kinds}
        biases = {p.name.removesuffix("bias") for p in block if p.place.kind == "bias"} & weights
        config = flat(self.config)
        wanted = config.get("attention_bias") is True or config.get("model_type") in ALWAYS_BIASED
        missing = sorted(weights - biases)
        if missing and (biases or (wanted and "q" in kinds)):
            raise self.refuse(
                f"layer {layer} has no {missing[0]}bias, though this model has such biases",
                "give a whole checkpoint, with the biases",
            )

    def chosen(self, layers: Sequence[int] | None) -> tuple[int, ...]:
        """The wanted layers, all of them for None.

        Raises:
            UsageError: there is no such layer.
            InputError: the checkpoint has no numbered blocks at all.
        """
        if not self.layers:
            raise self.refuse("it has no numbered blocks", "give a checkpoint of a decoder")
        wrong = sorted(set(layers or ()) - set(self.layers))
        if wrong:
            found = f"there is no layer {wrong[0]}: the model has layers {self.layers[0]} to {self.layers[-1]}"
            raise UsageError(self.asked, found, "count from 0, as in --layers 0,5-7")
        return self.layers if layers is None else tuple(sorted(set(layers)))

    def refuse(self, found: str, do_next: str) -> InputError:
        """An error about this checkpoint."""
        return InputError(self.asked, found, do_next)
