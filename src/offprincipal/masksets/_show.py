"""Where in the model a mask is dense: per kind and per layer."""

from collections.abc import Callable
from typing import Any

from offprincipal.masksets._files import count_of
from offprincipal.masksets._maskset import MaskSet
from offprincipal.names import Place
from offprincipal.tables import KINDS


def densities(masks: MaskSet) -> dict[str, list[dict[str, Any]]]:
    """Matrices, weights, ones and density ``by_kind`` and ``by_layer``; None is the layer of what is outside blocks.

    From the header alone, except for a fused weight, whose mask is read to tell its matrices apart.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from offprincipal.masksets import save_masks
    >>> with TemporaryDirectory() as folder:
    ...     masks = save_masks(folder, {"model.layers.3.mlp.up_proj.weight": torch.tensor([[True, False]])})
    ...     densities(masks)["by_layer"]
    [{'layer': 3, 'matrices': 1, 'weights': 2, 'ones': 1, 'density': 0.5}]
    """
    found = []
    for name in masks:
        pieces = masks.pieces(name)
        if len(pieces) == 1:
            found.append((pieces[0].place, count_of(masks.shape(name)), masks.ones(name)))
        else:
            found += [(piece.place, part.numel(), int(part.sum())) for piece, part in masks.matrices(name)]
    kinds, layers = {place.kind for place, _, _ in found}, {place.layer for place, _, _ in found}
    outside_last = sorted(layers, key=lambda layer: (layer is None, layer))
    return {
        "by_kind": [_total("kind", kind, found, lambda place: place.kind) for kind in sorted(kinds, key=KINDS.index)],
        "by_layer": [_total("layer", layer, found, lambda place: place.layer) for layer in outside_last],
    }


def _total(
    title: str, value: object, found: list[tuple[Place, int, int]], key: Callable[[Place], object]
) -> dict[str, Any]:
    own = [(weights, ones) for place, weights, ones in found if key(place) == value]
    weights, ones = (sum(column) for column in zip(*own, strict=True))
    counts = {"matrices": len(own), "weights": weights, "ones": ones}
    return {title: value, **counts, "density": ones / weights if weights else 0.0}
