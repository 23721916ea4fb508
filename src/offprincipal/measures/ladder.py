"""The precision ladder (Gate III): which share of the steps is visible in fp32, fp16, bf16 and fp8.

What it is: for a number format, the cell of values that round to one stored value; from it the share of weights that a
step carries into another cell, in closed form per magnitude code, or counted. What it is not: a statement about what
a step is good for, or the update mask of stored checkpoints (``sweep``).

Two starts. *Stored*: the weight lies on the bfloat16 grid, as after loading, and a step shows beyond the edge of its
cell, half a gap away. *Within*: a float32 master lies anywhere in its cell, as in the middle of a run, and a step of
size s crosses an edge with probability s / width, however small it is.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from offprincipal.measures import _ladder_pass, bits
from offprincipal.measures.bits import flat_codes
from offprincipal.measures.steps import Step

BLOCK = 1 << 20
"""Weights per block: what one thread holds in float64 at once."""

Start = Literal["stored", "within"]
Counts = Int[Tensor, " codes"]


@dataclass(frozen=True)
class Format:
    """A binary number format, as far as rounding to it goes (to nearest, ties to even).

    Attributes:
        name: as it is reported.
        dtype: torch's.
        digits: of the significand, the hidden one included.
        lowest: exponent of the smallest normal number; below it the spacing stays.
        largest: largest finite value.
        saturates: what is beyond `largest` becomes `largest`; otherwise infinity.
        scaled: weights are divided by ``largest |W0| / largest`` of their tensor first, and the scale is held fixed.
    """

    name: str
    dtype: torch.dtype
    digits: int
    lowest: int
    largest: float
    saturates: bool = False
    scaled: bool = False

    def scale(self, base_abs_max: float) -> float:
        """What weights are divided by before rounding, given the largest magnitude of their tensor.

        >>> FORMATS[3].scale(0.5), FORMATS[5].scale(0.5)
        (1.0, 0.0011160714285714285)
        """
        return base_abs_max / self.largest if self.scaled and base_abs_max > 0 else 1.0


FORMATS = (
    Format("fp32", torch.float32, 24, -126, float(torch.finfo(torch.float32).max)),
    Format("fp16", torch.float16, 11, -14, 65504.0),
    Format("bf16", torch.bfloat16, 8, -126, float(torch.finfo(torch.bfloat16).max)),
    Format("fp8_e4m3", torch.float8_e4m3fn, 4, -6, 448.0, saturates=True),
    Format("fp8_e5m2", torch.float8_e5m2, 3, -14, 57344.0),
    Format("fp8_e4m3_scaled", torch.float8_e4m3fn, 4, -6, 448.0, saturates=True, scaled=True),
)
"""The rungs. e4m3fn has no infinity and saturates, as inference kernels do; the last has one scale per tensor."""


@cache
def _cells(form: Format) -> tuple[Tensor, Tensor, Tensor]:
    """Outward edge, inward edge, whether ties leave, of the cell of each finite bfloat16 magnitude (scale 1)."""
    return _edges(bits.value(torch.arange(bits.FIRST_NONFINITE_CODE)).numpy(), form)


def _edges(magnitudes: np.ndarray, form: Format) -> tuple[Tensor, Tensor, Tensor]:
    outward, inward, odd = np.empty_like(magnitudes), np.empty_like(magnitudes), np.empty(magnitudes.size, np.bool_)
    _ladder_pass.cells(magnitudes, form.digits, form.lowest, form.largest, form.saturates, outward, inward, odd)
    return torch.from_numpy(outward), torch.from_numpy(inward), torch.from_numpy(odd)


def visible(
    form: Format, step: Step, start: Start = "stored", scale: float = 1.0, codes: Int[Tensor, " codes"] | None = None
) -> Float[Tensor, " chances"]:
    """P(a step is visible in the format), per bfloat16 magnitude code of the weight.

    Args:
        form: the number format that stores the weight.
        step: how large the steps are, in the units of the weights; the sign is random and independent.
        start: "stored", the weight is exactly the bfloat16 value of the code; "within", it lies anywhere in its cell
            of the format, uniformly.
        scale: what weights are divided by before rounding (`Format.scale`).
        codes: the magnitude codes that are asked for; all 32,768 when None.

    Returns:
        float64, one per code, zero for nonfinite codes. Stored: half of P(beyond the outward edge) and half of
        P(beyond the inward edge): ulp/2, at powers of two ulp/4 inward, and other distances where the format is
        coarser than bfloat16 (PNT Corollary 3.6 for any format). Within: ``E[min(1, |d| / width of the cell)]``, ours.

    >>> from offprincipal.measures.steps import Constant
    >>> codes = bits.magnitude_code(torch.tensor([1.0, 1.5]))
    >>> visible(FORMATS[2], Constant(0.003), codes=codes).tolist()
    [0.5, 0.0]
    >>> visible(FORMATS[2], Constant(0.003), "within", codes=codes).tolist()
    [0.512, 0.384]
    """
    codes = torch.arange(bits.MAGNITUDE_CODES) if codes is None else codes
    finite = codes < bits.FIRST_NONFINITE_CODE
    magnitudes = bits.value(codes[finite]) / scale
    if scale == 1.0:
        outward, inward, odd = (each[codes[finite]] for each in _cells(form))
    else:
        outward, inward, odd = _edges(magnitudes.numpy(), form)
    result = torch.zeros(len(codes), dtype=torch.float64)
    if start == "within":
        result[finite] = step.across((outward - inward) * scale)
    else:
        sides = [step.beyond((edge - magnitudes).abs() * scale, odd) for edge in (outward, inward)]
        result[finite] = 0.5 * (sides[0] + sides[1])
    return result


@dataclass(frozen=True)
class Ladder:
    """What one pass over weights and their steps counted; exact integers, whatever the number of threads.

    Attributes:
        nonfinite: entries left out because one side is NaN or infinite.
        code_total: int64 [32768], finite entries per bfloat16 magnitude code of the base.
        step_total: int64 [32768], entries per bfloat16 magnitude code of ``|D|``.
        code_visible: int64 [formats, 32768], entries whose whole step is visible.
        scaled: int64 [formats, factors], entries that are visible when every step is multiplied by the factor.
    """

    nonfinite: int
    code_total: Counts
    step_total: Counts
    code_visible: Int[Tensor, "formats codes"]
    scaled: Int[Tensor, "formats factors"]


def count(
    before: Shaped[Tensor, "..."],
    after: Shaped[Tensor, "..."],
    factors: Sequence[float] = (),
    formats: Sequence[Format] = FORMATS,
) -> Ladder:
    """Count which steps are visible in each format: ``round(before) != round(after)``, +0 equal to -0.

    Args:
        before: the weights, any shape and floating dtype; rounded to each format first.
        after: the weights after the step, unrounded (float32 or float64), same shape.
        factors: also count ``round(before) != round(before + factor D)``, D and the sum in float64.
        formats: the rungs.

    Returns:
        Counts. Memory: a few blocks of a million weights in float64 per thread. Source: DEFINITIONS section 4, ours;
        the literal twin, rounding by torch, is in the tests.

    >>> found = count(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.003]), [2.0])
    >>> [int(row.sum()) for row in found.code_visible], found.scaled.flatten().tolist()
    ([1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0])
    """
    if before.shape != after.shape:
        raise ValueError(f"count needs two tensors of one shape, not {before.shape} and {after.shape}")
    left, right = before.detach().cpu().reshape(-1), after.detach().cpu().reshape(-1)
    top = largest(left)
    grid = (
        np.array([[form.digits, form.lowest] for form in formats], np.int64),
        np.array([form.largest for form in formats], np.float64),
        np.array([form.saturates for form in formats], np.bool_),
        np.array([form.scale(top) for form in formats], np.float64),
        np.array(factors, np.float64),
    )
    starts = [*range(0, left.numel(), BLOCK), left.numel()]
    threads = max(min(torch.get_num_threads(), len(starts) - 1), 1)
    spans = [
        starts[(len(starts) - 1) * i // threads : (len(starts) - 1) * (i + 1) // threads + 1] for i in range(threads)
    ]
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(lambda span: _span(left, right, span, grid), spans))
    whole = [sum(each) for each in zip(*parts, strict=True)]
    return Ladder(int(whole[0]), *(torch.from_numpy(np.asarray(each)) for each in whole[1:]))


def largest(weight: Shaped[Tensor, "..."]) -> float:
    """The largest finite magnitude, to float32; block by block.

    >>> largest(torch.tensor([1.0, -2.0, float("nan")]))
    2.0
    """
    weight = weight.detach().reshape(-1)
    top = 0.0
    for start in range(0, weight.numel(), BLOCK):
        block = weight[start : start + BLOCK].to(torch.float32)
        ends = block.aminmax()
        if not torch.isfinite(ends.min + ends.max):
            block = block[torch.isfinite(block)]
            ends = block.aminmax() if block.numel() else ends
        top = max(top, -float(ends.min), float(ends.max))
    return top


def _span(
    left: Tensor, right: Tensor, starts: Sequence[int], grid: tuple[np.ndarray, ...]
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The counts over consecutive blocks, by one thread."""
    *_, scales, factors = grid
    nonfinite, total, steps = 0, np.zeros(bits.MAGNITUDE_CODES, np.int64), np.zeros(bits.MAGNITUDE_CODES, np.int64)
    seen = np.zeros((scales.size, bits.MAGNITUDE_CODES), np.int64)
    scaled = np.zeros((scales.size, factors.size), np.int64)
    for start, stop in pairwise(starts):
        block, end = left[start:stop], right[start:stop].to(torch.float64)
        exact = block.to(torch.float64)
        nonfinite += _ladder_pass.count(total, seen, scaled, exact.numpy(), end.numpy(), flat_codes(block), *grid)
        steps += np.bincount(flat_codes(end - exact) & 0x7FFF, minlength=bits.MAGNITUDE_CODES)
    return nonfinite, total, steps, seen, scaled
