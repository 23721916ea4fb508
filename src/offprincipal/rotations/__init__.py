"""PURE: changes of coordinates that leave a model's function alone, and edits of a change's spectrum.

What it is: tensors in, tensors out. `_axes.py` holds the three changes that one axis of a weight can undergo (rotated
in blocks, reordered, stretched), each with its inverse; `_draw.py` draws them; `_spectra.py` edits D = W - W0.
What it is not: it does not know which axis of which tensor must change together with which: that is `rewrite`.
"""

from offprincipal.rotations._axes import AxisChange, Order, Stretch, Turn
from offprincipal.rotations._draw import haar, hadamard, order, spread
from offprincipal.rotations._spectra import keep_rank, restore_spectrum, round_to, scale, swap_spectrum

__all__ = [
    "AxisChange",
    "Order",
    "Stretch",
    "Turn",
    "haar",
    "hadamard",
    "keep_rank",
    "order",
    "restore_spectrum",
    "round_to",
    "scale",
    "spread",
    "swap_spectrum",
]
