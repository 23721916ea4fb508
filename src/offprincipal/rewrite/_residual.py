"""Rotate the residual stream of a whole model: every norm's scale folded into what reads it, then one rotation.

RMSNorm without a scale commutes with a rotation, x R / rms(x R) = (x / rms(x)) R, since R keeps the length. With a
scale it does not; so the scales move into the matrices behind the norms, and the norms become ones. Well known from
quantisers (SliceGPT, arXiv 2401.15024, section 3; QuaRot, arXiv 2404.00456).
"""

from offprincipal.measures.seeds import torch_generator
from offprincipal.names import Piece, flat, is_tied
from offprincipal.rewrite._anatomy import Anatomy
from offprincipal.rewrite._plan import basis_of
from offprincipal.rewrite._transform import Action, Transform
from offprincipal.rotations import AxisChange, Stretch, Turn

FOLDABLE = ("llama", "mistral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "mixtral", "phi3", "deepseek_v3")
"""Model types whose every norm on the stream is an RMSNorm directly before the matrices that read it."""

_REASONS = {
    "gemma2": "its post-norms scale what a block writes, after a norm that a fold cannot pass",
    "gemma3": "its post-norms scale what a block writes, after a norm that a fold cannot pass",
    "gemma3_text": "its post-norms scale what a block writes, after a norm that a fold cannot pass",
    "olmo2": "its norms scale what a block writes, after a norm that a fold cannot pass",
    "gpt2": "LayerNorm subtracts the mean, which a rotation does not keep",
    "gpt_neox": "LayerNorm subtracts the mean, which a rotation does not keep",
}
_UNDECLARED = "no table says how its norms are placed"
_READS = {
    **dict.fromkeys(("q", "k", "v", "q_a", "kv_a"), "input_layernorm"),
    **dict.fromkeys(("gate", "up", "router"), "post_attention_layernorm"),
}
_WRITES = ("o", "down")
TURN = "turn.residual"


def residual_rotation(anatomy: Anatomy, seed: int, basis: str) -> Transform:
    """Embedding and readers by R on their columns, writers by R^T on their rows, norms folded, a tied head untied.

    Raises:
        InputError: the family's norms cannot be folded, a norm has a scale of zero, or a part is unknown.
        UsageError: no such basis.
    """
    draw = basis_of(basis, anatomy.asked)
    _check(anatomy)
    embedding = anatomy.named[anatomy.embedding]
    changes: dict[str, AxisChange] = {TURN: Turn(draw(embedding.shape[1], torch_generator(seed, "residual"))[None])}
    actions = {embedding.name: Action(columns=(TURN,))}
    for piece in anatomy.named.values():
        role = anatomy.role(piece)
        if role in _WRITES:
            actions[piece.name] = Action(rows=(TURN,))
        elif role in _READS and piece.place.kind != "bias":
            norm = f"{anatomy.family.root}{anatomy.family.block}.{piece.place.layer}.{_READS[role]}.weight"
            actions[piece.name] = Action(columns=(_fold(anatomy, norm, changes, actions), TURN))
    final = _fold(anatomy, f"{anatomy.family.root}norm.weight", changes, actions)
    actions[anatomy.head] = Action(columns=(final, TURN))
    return Transform("rotate-residual", changes, actions, untied=is_tied(anatomy.config) is True)


def _fold(anatomy: Anatomy, norm: str, changes: dict[str, AxisChange], actions: dict[str, Action]) -> str:
    """The key of a norm's scales; the norm itself is divided by them and becomes ones."""
    key = f"stretch.{norm.removeprefix(anatomy.family.root).removesuffix('.weight')}"
    if key not in changes:
        if norm not in anatomy.stored:
            raise anatomy.refuse(f"there is no {norm}", "give a whole checkpoint")
        scales = anatomy.checkpoint.read(anatomy.stored[norm]).double()
        if not bool((scales != 0).all()):
            raise anatomy.refuse(
                f"{norm} has scales of zero: folded away, they could not be told from what reads them",
                "rotate values only (without --residual)",
            )
        changes[key] = Stretch(scales)
        actions[norm] = Action(rows=(f"-{key}",))
    return key


def _check(anatomy: Anatomy) -> None:
    """Refuse what is not known to keep its function."""
    anatomy.check_known()
    model_type = str(flat(anatomy.config).get("model_type"))
    if model_type not in FOLDABLE:
        raise anatomy.refuse(
            f"the residual stream of {model_type} cannot be rotated: {_REASONS.get(model_type, _UNDECLARED)}",
            "rotate values only (without --residual)",
        )
    for layer in anatomy.chosen(None):
        anatomy.check_block(layer)
    for piece in anatomy.named.values():
        if piece.place.layer is None and not _is_outer(anatomy, piece):
            raise anatomy.refuse(
                f"{piece.name} may write into the residual stream, and no table says how", "give a text-only model"
            )
    if anatomy.embedding not in anatomy.named:
        raise anatomy.refuse(f"there is no {anatomy.embedding}", "give a whole checkpoint")
    if anatomy.head not in anatomy.named and is_tied(anatomy.config) is not True:
        raise anatomy.refuse(f"there is no {anatomy.head}", "give a whole checkpoint")


def _is_outer(anatomy: Anatomy, piece: Piece) -> bool:
    return piece.name in (anatomy.embedding, anatomy.head, f"{anatomy.family.root}norm.weight")
