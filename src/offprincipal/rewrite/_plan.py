"""Rotate and permute: which axes change together (PNT section 4.3 and App. D), drawn layer by layer from a seed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from offprincipal import rotations
from offprincipal.errors import UsageError
from offprincipal.measures.seeds import torch_generator
from offprincipal.names import Piece
from offprincipal.rewrite._anatomy import Anatomy
from offprincipal.rewrite._transform import Action, Transform
from offprincipal.rotations import AxisChange, Order, Turn

BASES: dict[str, Callable[[int, torch.Generator], Tensor]] = {"haar": rotations.haar, "hadamard": rotations.hadamard}
"""Ways to draw a rotation, by name."""


def basis_of(name: str, asked: str) -> Callable[[int, torch.Generator], Tensor]:
    """The function that draws such rotations.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in BASES:
        raise UsageError(asked, f"there is no basis {name!r}", f"choose one of {', '.join(BASES)}")
    return BASES[name]


def rotation(anatomy: Anatomy, layers: Sequence[int] | None, seed: int, basis: str, per_group: bool) -> Transform:
    """V/O rotation: rows of v (and its bias) by R^T, columns of o by R, head by head.

    One R for all heads of a layer, as PNT has it, or one for each key/value head and its group of queries.

    Raises:
        InputError: the family, its heads or its biases do not allow it.
        UsageError: no such layer or basis.
    """
    draw = basis_of(basis, anatomy.asked)
    anatomy.check_known()
    changes: dict[str, AxisChange] = {}
    actions: dict[str, Action] = {}
    for layer in anatomy.chosen(layers):
        anatomy.check_block(layer)
        value, output, size = _value_and_output(anatomy, layer)
        count = (value.heads or 1) if per_group else 1
        key = f"turn.layers.{layer}.values"
        drawn = [draw(size, torch_generator(seed, "rotate", str(layer), str(group))) for group in range(count)]
        changes[key] = Turn(torch.stack(drawn))
        actions |= {name: Action(rows=(key,)) for name in _with_bias(anatomy, value)}
        actions[output.name] = Action(columns=(key,))
    return Transform("rotate", changes, actions)


def permutation(anatomy: Anatomy, layers: Sequence[int] | None, seed: int, heads: bool, neurons: bool) -> Transform:
    """Reorder key/value heads with their groups of query heads, and the hidden neurons of every MLP and expert.

    Raises:
        InputError: the family, its heads, widths or biases do not allow it.
        UsageError: no such layer.
    """
    anatomy.check_known()
    changes: dict[str, AxisChange] = {}
    actions: dict[str, Action] = {}
    for layer in anatomy.chosen(layers):
        anatomy.check_block(layer)
        for wanted, plan in ((heads, _heads), (neurons, _neurons)):
            if wanted:
                more_changes, more_actions = plan(anatomy, layer, seed)
                changes |= more_changes
                actions |= more_actions
    return Transform("permute", changes, actions)


def _value_and_output(anatomy: Anatomy, layer: int) -> tuple[Piece, Piece, int]:
    """The two ends of the value path of a layer, and the size of a head."""
    if any(piece.place.kind == "kv_b" for piece in anatomy.block(layer)):
        raise anatomy.refuse(
            f"layer {layer} has latent attention: its values come from one projection together with the keys",
            "no head axis of its own can be changed; permute --only neurons works",
        )
    value, output = anatomy.one(layer, "v"), anatomy.one(layer, "o")
    size = anatomy.head_size(value)
    if size != anatomy.head_size(output) or (output.heads or 1) % (value.heads or 1):
        raise anatomy.refuse(
            f"layer {layer} has {value.heads} value heads of {size} and {output.heads} output heads of "
            f"{anatomy.head_size(output)}: they do not group",
            "check that config.json belongs to these weights",
        )
    return value, output, size


def _heads(anatomy: Anatomy, layer: int, seed: int) -> tuple[dict[str, AxisChange], dict[str, Action]]:
    """Rows of k and v in the new order of heads, rows of q and columns of o in the grouped one; norms with them."""
    value, output, size = _value_and_output(anatomy, layer)
    query, key = anatomy.one(layer, "q"), anatomy.one(layer, "k")
    groups, heads = value.heads or 1, output.heads or 1
    order = rotations.order(groups, torch_generator(seed, "permute", str(layer), "heads"))
    names = {"k": f"order.layers.{layer}.key_heads", "q": f"order.layers.{layer}.query_heads"}
    changes: dict[str, AxisChange] = {
        names["k"]: Order(rotations.spread(order, size)),
        names["q"]: Order(rotations.spread(rotations.spread(order, heads // groups), size)),
    }
    actions = {output.name: Action(columns=(names["q"],))}
    for piece, which in ((query, "q"), (key, "k"), (value, "k")):
        actions |= {name: Action(rows=(names[which],)) for name in _with_bias(anatomy, piece)}
    for piece in anatomy.block(layer):
        for which, projection in (("q", query), ("k", key)):
            if piece.name.endswith(f".{which}_norm.weight"):
                if piece.shape == projection.shape[:1]:  # over the whole width, as in OLMo 2
                    actions[piece.name] = Action(rows=(names[which],))
                elif piece.shape != (size,):  # else one for all heads, as in Qwen3: nothing to move
                    raise anatomy.refuse(f"{piece.name} fits neither one head nor all", "check config.json")
    return changes, actions


def _neurons(anatomy: Anatomy, layer: int, seed: int) -> tuple[dict[str, AxisChange], dict[str, Action]]:
    """Rows of gate and up and columns of down, MLP by MLP and expert by expert."""
    changes: dict[str, AxisChange] = {}
    actions: dict[str, Action] = {}
    for down in anatomy.block(layer):
        if down.place.kind != "down":
            continue
        module = down.name.rsplit(".", 2)[0]
        key = f"order.{module.removeprefix(anatomy.family.root)}.neurons"
        width = down.shape[1]
        changes[key] = Order(rotations.order(width, torch_generator(seed, "permute", str(layer), module)))
        actions[down.name] = Action(columns=(key,))
        for piece in anatomy.block(layer):
            if piece.name.rsplit(".", 2)[0] == module and anatomy.role(piece) in ("gate", "up"):
                if piece.shape[0] != width:
                    raise anatomy.refuse(
                        f"{piece.name} has {piece.shape[0]} rows and {down.name} {width} columns",
                        "give a whole checkpoint whose config.json belongs to it",
                    )
                actions[piece.name] = Action(rows=(key,))
    return changes, actions


def _with_bias(anatomy: Anatomy, weight: Piece) -> list[str]:
    """The weight's name, and that of its bias if it has one."""
    bias = weight.name.removesuffix("weight") + "bias"
    return [weight.name, *([bias] if bias in anatomy.named else [])]
