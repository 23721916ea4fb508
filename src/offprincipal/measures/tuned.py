"""The tuned side beside its base: singular values and principal angles, by the short way where it is safe."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from offprincipal.measures import angles, masks, spectrum
from offprincipal.measures.carried import Tuned, carry
from offprincipal.measures.spectrum import Factors


def tuned_of(
    before: Shaped[Tensor, "out in"],
    after: Shaped[Tensor, "out in"],
    base: Factors,
    sizes: Sequence[int],
    *,
    holes: Bool[Tensor, "out in"] | None = None,
    device: str | torch.device = "cpu",
) -> Tuned:
    """Singular values of a tuned side and its principal angles with the base.

    Args:
        before: the base, ``[out, in]``.
        after: the tuned side, same shape; the very same weights cost nothing.
        base: factors of `before`.
        sizes: of the subspaces.
        holes: entries that count as zero on both sides.
        device: where to compute.

    >>> w = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> tuned_of(w, 2 * w, spectrum.factorise(w, 1), [1]).values.tolist()
    [6.0, 2.0]
    """
    found = base
    if before.dtype != after.dtype or not torch.equal(before, after):
        carried = carry(before, after, base, sizes, holes=holes, device=device)
        if carried is not None:
            return carried
        rank = masks.principal_rank((after.shape[0], after.shape[1]), max(angles.GRID))
        found = spectrum.factorise(after, rank, holes=holes, device=device)
    turned = {}
    for side in ("left", "right") if sizes else ():
        first = getattr(base, side)
        turned[side] = angles.nested_angles(first, getattr(found, side).to(first.device), sizes)
    return Tuned(found.values.cpu(), turned)
