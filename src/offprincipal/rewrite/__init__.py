"""A checkpoint through a change of coordinates, or an edit of its update, into a new checkpoint.

What it is: six transforms and a way back, each from a folder or Hub name to a folder: `rotate`, `permute`,
`rotate_residual` keep the function; `restore_spectrum`, `swap_spectrum`, `keep_rank`, `scale` edit what tuning did;
`round_weights` changes the type; `map_back` undoes the first three. All stream, and may be stopped and run again.
What it is not: a claim. That overlap collapses after a rotation says nothing until the run is mapped back.

Read on in `_plan.py` (which axes change together), `_residual.py`, `_edits.py`, `_mapback.py`, `_verify.py`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from offprincipal import rotations
from offprincipal.errors import UsageError
from offprincipal.rewrite._plan import permutation, rotation
from offprincipal.rewrite._residual import residual_rotation
from offprincipal.rewrite._run import Choices, edit_pair, keep_function, undo_transform
from offprincipal.rewrite._transform import Transform, read_record

__all__ = [
    "Choices", "Transform", "keep_rank", "map_back", "permute", "read_record", "restore_spectrum", "rotate",
    "rotate_residual", "round_weights", "scale", "swap_spectrum",
]  # fmt: skip

Ref = str | Path


def rotate(
    base: Ref,
    out: Ref,
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    basis: str = "haar",
    per_group: bool = False,
    **choices: Any,
) -> dict[str, Any]:
    """Rotate the value path: v by R^T, o by R, head by head (PNT section 4.3, Eq. 11). The function is preserved.

    Attention mixes values with weights that do not see R, and o undoes it. Only v and o of the chosen layers change;
    their singular values stay. Computed in float64, rounded once to the stored type.

    Args:
        base: a folder, ``.safetensors`` file or Hub name.
        out: folder of the new checkpoint.
        layers: which; None for all.
        seed: of the rotations; each layer draws from a stream of its own.
        basis: ``"haar"``, or ``"hadamard"`` where the head size is a power of two.
        per_group: one R for each key/value head and its queries, not one for the layer (as PNT has it).
        choices: see `Choices`.

    Returns:
        The record that ``out/transform.json`` holds.

    Raises:
        InputError: the model cannot be read, or its family, heads or biases do not allow it.
        UsageError: no such layer or basis.
        CheckFailed: ``verify``, and the function was not preserved.

    >>> from offprincipal.rewrite import rotate
    >>> record = rotate("runs/base", "runs/rotated", layers=[20, 25], verify=True)  # doctest: +SKIP
    >>> record["verify"]["float64"]["max_relative"] <= 1e-10  # doctest: +SKIP
    True
    """
    plan = partial(rotation, layers=layers, seed=seed, basis=basis, per_group=per_group)
    options = {"basis": basis, "per_group": per_group}
    return keep_function(base, Path(out), plan, options, layers, seed, Choices(**choices))


def permute(
    base: Ref,
    out: Ref,
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    heads: bool = True,
    neurons: bool = True,
    **choices: Any,
) -> dict[str, Any]:
    """Reorder key/value heads with their query heads, and MLP neurons. Exact: every number is kept, bit for bit.

    PNT's Permute is ``heads=True, neurons=False``. Arguments, result and errors otherwise as for `rotate`.

    Args:
        base: a folder, ``.safetensors`` file or Hub name.
        out: folder of the new checkpoint.
        layers: which; None for all.
        seed: of the orders.
        heads: rows of q, k, v (biases and full-width norms with them), columns of o.
        neurons: rows of gate and up, columns of down, in every expert its own order.
        choices: see `Choices`.
    """
    if not heads and not neurons:
        raise UsageError(f"permute {str(base)!r}", "neither heads nor neurons are wanted", "choose at least one")
    plan = partial(permutation, layers=layers, seed=seed, heads=heads, neurons=neurons)
    options = {"heads": heads, "neurons": neurons}
    return keep_function(base, Path(out), plan, options, layers, seed, Choices(**choices))


def rotate_residual(base: Ref, out: Ref, *, seed: int = 0, basis: str = "haar", **choices: Any) -> dict[str, Any]:
    """Rotate the residual stream of the whole model: norms folded into what reads them, tied embeddings untied.

    Only where RMSNorm stands directly before the matrices that read the stream: not Gemma, OLMo 2, GPT. Arguments,
    result and errors otherwise as for `rotate`.
    """
    plan = partial(residual_rotation, seed=seed, basis=basis)
    return keep_function(base, Path(out), plan, {"basis": basis}, None, seed, Choices(**choices))


def restore_spectrum(
    base: Ref, tuned: Ref, out: Ref, *, strength: float = 1.0, layers: Sequence[int] | None = None, **choices: Any
) -> dict[str, Any]:
    """The tuned checkpoint with the base's singular values in every linear weight: frames kept, spectrum restored.

    Args:
        base: the base.
        tuned: its tune; everything that is not a linear weight of the chosen layers is taken from it as it is.
        out: folder of the new checkpoint.
        strength: 1 restores, 0 leaves, between them the singular values are interpolated.
        layers: which; None for all.
        choices: see `Choices`.

    Returns:
        The record that ``out/transform.json`` holds.

    Raises:
        InputError: a checkpoint cannot be read, or a weight has no partner of its shape.
        UsageError: no such layer.
    """
    function = partial(rotations.restore_spectrum, strength=strength)
    what = ("restore-spectrum", {"strength": strength})
    return edit_pair(base, tuned, Path(out), function, what, layers, Choices(**choices))


def swap_spectrum(
    base: Ref, tuned: Ref, out: Ref, *, layers: Sequence[int] | None = None, **choices: Any
) -> dict[str, Any]:
    """The base's frames with the tuned singular values: what the spectrum alone does. As `restore_spectrum`."""
    return edit_pair(
        base, tuned, Path(out), rotations.swap_spectrum, ("swap-spectrum", {}), layers, Choices(**choices)
    )


def keep_rank(
    base: Ref, tuned: Ref, out: Ref, rank: int, *, layers: Sequence[int] | None = None, **choices: Any
) -> dict[str, Any]:
    """Cut the update of every linear weight to its ``rank`` largest singular directions. As `restore_spectrum`."""
    if rank < 0:
        raise UsageError(f"keep rank {rank} of an update", "it is negative", "give 0 or more")
    function = partial(rotations.keep_rank, rank=rank)
    return edit_pair(base, tuned, Path(out), function, ("keep-rank", {"rank": rank}), layers, Choices(**choices))


def scale(
    base: Ref, tuned: Ref, out: Ref, factor: float, *, layers: Sequence[int] | None = None, **choices: Any
) -> dict[str, Any]:
    """W0 + c D in every weight, rounded again: how far sparsity is a matter of step size. As `restore_spectrum`.

    Unlike the spectral edits it reaches norms, biases, embedding and head; with ``layers`` only those blocks.
    """
    function = partial(rotations.scale, factor=factor)
    what = ("scale", {"factor": factor})
    return edit_pair(base, tuned, Path(out), function, what, layers, Choices(**choices), every=True)


def round_weights(ref: Ref, out: Ref, dtype: torch.dtype, **choices: Any) -> dict[str, Any]:
    """The checkpoint in another type, each weight rounded to the nearest. Constants keep theirs.

    Raises:
        InputError: it cannot be read, or a weight is too large for the type.
    """
    return keep_function(ref, Path(out), None, {}, None, None, Choices(**choices, dtype=dtype))


def map_back(transformed: Ref, tuned: Ref, out: Ref, *, base: Ref | None = None, **choices: Any) -> dict[str, Any]:
    """A tune of a transformed base in the original coordinates: W0 + undo(D), so that it can be compared with BASE.

    Permuted tensors come back bit for bit in their own type; rotated ones in float32 unless ``dtype`` is given, for D
    is dense then and bfloat16 would hide most of it. Tensors that the transform left alone are copied.

    Args:
        transformed: the folder that `rotate`, `permute` or `rotate_residual` wrote.
        tuned: a checkpoint trained from it.
        out: folder of the mapped checkpoint.
        base: the original base; None for the one that was recorded.
        choices: see `Choices`; ``verify`` does not apply.

    Returns:
        The record that ``out/transform.json`` holds.

    Raises:
        InputError: the three do not belong together, or norms were trained under a rotated residual stream.
    """
    return undo_transform(transformed, tuned, Path(out), base, Choices(**choices))
