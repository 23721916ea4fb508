"""How many steps a 16-bit weight would not show: counted, code by code, before training starts."""

import numpy as np
import torch
from torch import Tensor

from offprincipal.measures import bits
from offprincipal.measures.masks import count_codes
from offprincipal.train._region import Region


def lost_count(weight: Tensor, region: Region, lr: float) -> float:
    """Expected number of allowed entries in which a step of size lr, up or down alike, leaves bfloat16 as it was.

    AdamW's first step has size lr, later ones seldom more. Closed form on all 32,768 magnitude codes
    (`measures.bits.visible`), times how many allowed entries have each. Flat bfloat16 ``[entries]`` in; a count, so
    that several parameters can be added.

    >>> from offprincipal.train._region import whole
    >>> lost_count(torch.tensor([1.0, 1e-4]).bfloat16(), whole(2, (2,), 0), 1e-5)
    1.0
    """
    counted = np.zeros(bits.MAGNITUDE_CODES, np.int64)
    for part, _, mask in region.chunks():
        counted += count_codes(weight[part] if mask is None else weight[part][mask])
    finite = torch.arange(bits.FIRST_NONFINITE_CODE, dtype=torch.int32)
    magnitude = bits.value(finite).to(torch.bfloat16)
    step = torch.full(magnitude.shape, lr, dtype=torch.float64)
    shown = bits.visible(magnitude, step).double() + bits.visible(magnitude, -step).double()
    return float(counted[: len(finite)] @ (1 - shown / 2).numpy())
