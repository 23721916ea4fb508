"""Slow literal twins that several tests share."""

import torch

from offprincipal.measures import bits


def joint(before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """int64 [4, 32768]: per magnitude code all entries, changed ones, those in the mask, those in both."""
    code, moved = bits.magnitude_code(before), bits.changed(before, after)
    chosen = (torch.ones_like(mask), moved, mask, mask & moved)
    return torch.stack([torch.bincount(code[pick], minlength=bits.MAGNITUDE_CODES) for pick in chosen])
