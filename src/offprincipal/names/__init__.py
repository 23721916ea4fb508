"""Tensor name to place: layer, kind, expert. By tables per family (``_families.py``), never inferred from shapes."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offprincipal.names._families import BUFFERS, FAMILIES, MOVED, OUTER, UNKNOWN, WRAPPERS, Family
from offprincipal.names._layouts import Cut, Heads, cuts, heads_of

__all__ = [
    "FAMILIES",
    "WRAPPERS",
    "Cut",
    "Family",
    "Piece",
    "Place",
    "canonical",
    "family_of",
    "flat",
    "is_buffer",
    "is_tied",
    "locate",
]

_BUFFER = re.compile("|".join(BUFFERS))
_NOT_LINEAR = frozenset({"embed", "position", "head", "norm", "bias", "other"})
_NUMBERED = re.compile(r"(\w+)\.([0-9]{1,9})\.(.+)")  # nine digits: an int32
_EXPERT = re.compile(r"\.experts\.([0-9]{1,9})\.")
_LEAVES = ("weight", "bias")


@dataclass(frozen=True)
class Place:
    """Where in a model a tensor stands.

    ``kind`` is one of embed, position, head, q, k, v, o, q_a, q_b, kv_a, kv_b, gate, up, down, router, norm, bias,
    other. ``linear`` marks the linear scope of our definitions: 2-D weights inside blocks, so no embedding, head, norm
    or bias. A router is such a weight. A tensor of kind other never is, for nothing declares what it does.
    """

    layer: int | None
    kind: str
    expert: int | None
    linear: bool


@dataclass(frozen=True)
class Piece:
    """One canonical tensor and where it lies in the stored one.

    Attributes:
        name: canonical name, the same for every layout of the family.
        place: layer, kind, expert.
        shape: canonical: ``[out, in]``, or ``[n]``.
        cut: the rows of the stored tensor.
        heads: attention heads along ``head_axis``, where config.json tells.
        head_axis: 0 for queries, keys and values, 1 for the output projection.
    """

    name: str
    place: Place
    shape: tuple[int, ...]
    cut: Cut
    heads: int | None = None
    head_axis: int | None = None


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the language model: of a multimodal one, its ``text_config`` over the rest.

    >>> flat({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})["model_type"]
    'gemma3_text'
    """
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else dict(config)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that config.json declares; the table of common names if it declares none that we know."""
    return FAMILIES.get(str(flat(config).get("model_type")), UNKNOWN)


def is_tied(config: Mapping[str, Any]) -> bool | None:
    """Whether the output head is the embedding; None where nothing says so (no configuration, family unknown).

    >>> is_tied({"model_type": "llama"}), is_tied({"model_type": "gemma2"}), is_tied({})
    (False, True, None)
    """
    declared = flat(config).get("tie_word_embeddings")
    if isinstance(declared, bool):
        return declared
    family = family_of(config)
    return family.tied if family.known else None


def canonical(name: str, family: Family = UNKNOWN) -> str:
    """The name without what wrappers add, and with the root that some checkpoints leave out.

    >>> canonical("module._orig_mod.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> canonical("model.language_model.norm.weight")
    'model.norm.weight'
    """
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    while name.startswith(OUTER):
        name = name.removeprefix(OUTER[0]).removeprefix(OUTER[1])
    for old, new in MOVED:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    first = name.split(".", 1)[0]
    return family.root + name if first == family.block or first in family.outside else name


def is_buffer(name: str) -> bool:
    """Whether a canonical name is a constant stored beside the weights (rotary frequencies, causal masks).

    >>> is_buffer("transformer.h.0.attn.bias"), is_buffer("transformer.h.0.attn.c_attn.bias")
    (True, False)
    """
    return _BUFFER.search(name) is not None


def locate(name: str, shape: Sequence[int], config: Mapping[str, Any]) -> tuple[Piece, ...]:
    """The canonical tensors that one stored tensor holds.

    Args:
        name: as stored.
        shape: as stored.
        config: config.json of the checkpoint; an empty one means family unknown.

    Raises:
        InputError: the family declares the tensor as fused and its shape does not fit.

    >>> [piece] = locate("model.layers.3.self_attn.q_proj.weight", (64, 64), {"model_type": "qwen3"})
    >>> piece.place
    Place(layer=3, kind='q', expert=None, linear=True)
    >>> [piece.name for piece in locate("h.0.attn.c_attn.bias", (12,), {"model_type": "gpt2"})]
    ['transformer.h.0.attn.query.bias', 'transformer.h.0.attn.key.bias', 'transformer.h.0.attn.value.bias']
    """
    family = family_of(config)
    name = canonical(name, family)
    inner = name.removeprefix(family.root)
    numbered = _NUMBERED.fullmatch(inner) if inner != name else None
    if numbered and numbered[1] == family.block:
        return _in_block(name, int(numbered[2]), numbered[3], shape, family, config)
    module, _, leaf = inner.rpartition(".")
    kind = family.outside.get(module, "") if inner != name else "head" if module == family.head else ""
    return (_whole(name, None, kind if kind and leaf in _LEAVES else "other", None, shape, leaf),)


def _in_block(
    name: str, layer: int, rest: str, shape: Sequence[int], family: Family, config: Mapping[str, Any]
) -> tuple[Piece, ...]:
    """The pieces of a tensor of a numbered block."""
    module, leaf = rest, ""
    if rest.rpartition(".")[2] in _LEAVES:
        module, _, leaf = rest.rpartition(".")
    match = _EXPERT.search("." + module + ".")
    expert = int(match[1]) if match else None
    role = family.inside.get(_EXPERT.sub(".experts.*.", module + ".").rstrip("."))
    if role is None:
        correction = leaf == "bias" or rest.endswith("_bias")
        return (_whole(name, layer, "bias" if correction else "other", expert, shape, leaf),)
    heads = heads_of(flat(config))
    stem = f"{family.root}{family.block}.{layer}."
    tail = f".{leaf}" if leaf else ".weight"  # fused experts are parameters without a leaf
    parts = role.parts or ((role.module or module, role.kind),)
    pieces = []
    for index, (found, cut) in enumerate(cuts(role.layout, len(parts), shape, heads, name)):
        part, kind = parts[index % len(parts)]
        number = expert if found is None else found
        title = stem + part.replace("*", str(number)) + tail
        pieces.append(_piece(title, layer, "bias" if leaf == "bias" else kind, number, cut, shape, heads))
    return tuple(pieces)


def _whole(name: str, layer: int | None, kind: str, expert: int | None, shape: Sequence[int], leaf: str) -> Piece:
    """A tensor that is canonical as it lies; more than two axes are folded into ``[first, rest]``."""
    if leaf == "bias" and kind != "other":
        kind = "bias"
    return _piece(name, layer, kind, expert, cuts("plain", 1, shape, Heads(None, None, None), name)[0][1], shape, None)


def _piece(
    name: str, layer: int | None, kind: str, expert: int | None, cut: Cut, stored: Sequence[int], heads: Heads | None
) -> Piece:
    """Shape and heads of a canonical tensor from its cut."""
    if len(stored) < 2:
        shape: tuple[int, ...] = (cut.rows,)
    elif cut.transposed:
        shape = (cut.rows, stored[0])
    elif len(stored) > 2 and kind == "other":
        shape = (stored[0], math.prod(stored[1:]))
    else:
        shape = (cut.rows, stored[-1])
    linear = layer is not None and len(shape) == 2 and kind not in _NOT_LINEAR
    place = Place(layer, kind, expert, linear)
    count, axis = _heads(kind, heads, shape) if heads and len(shape) == 2 else (None, None)
    return Piece(name, place, shape, cut, count, axis)


def _heads(kind: str, heads: Heads, shape: tuple[int, ...]) -> tuple[int | None, int | None]:
    """How many attention heads lie along which axis; nothing if the axis does not divide by them."""
    axis = 1 if kind == "o" else 0
    count = heads.key_value if kind in ("k", "v") else heads.query if kind in ("q", "o", "q_b", "kv_b") else None
    if count is None or shape[axis] % count:
        return None, None
    return count, axis
