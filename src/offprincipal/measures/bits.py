"""The bfloat16 grid: codes, spacing, what changed, what is visible.

What it is: elementwise statements about stored bits, in torch, for any device. What it is not: fast. The fused pass
over a whole pair is in ``sweep``; the functions here are its vocabulary and, in the tests, its literal twin.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

MAGNITUDE_CODES = 32_768
"""Number of bfloat16 magnitude codes: 15 bits, ordered like the magnitudes themselves."""

FIRST_NONFINITE_CODE = 0x7F80
"""Magnitude code of infinity; every larger code is a NaN."""

ETA = 1e-3
"""Relative tolerance of PNT Definition 2.1; any value below 2^-8 gives the same answer on bfloat16."""

ATOL = 1e-5
"""Absolute tolerance of the older literature (arXiv 2505.11711)."""


def code(weight: Shaped[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The 16 stored bits of each weight, after rounding to bfloat16 (to nearest, ties to even).

    Any shape and any floating dtype in; int32 in 0..65535 out. Source: PNT Definition 2.1 speaks of stored values.

    >>> code(torch.tensor([1.0, -1.0])).tolist()
    [16256, 49024]
    """
    return _stored(weight).to(torch.int32) & 0xFFFF


def _stored(weight: Tensor) -> Tensor:
    """The bits as int16: half the bytes of a code, enough to compare and to mask."""
    return weight.to(torch.bfloat16).view(torch.int16)


def magnitude_code(weight: Shaped[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The 15 magnitude bits of each weight, 0..32767, ordered like ``|weight|`` (int32).

    >>> magnitude_code(torch.tensor([0.0, -1.0, 2.0])).tolist()
    [0, 16256, 16384]
    """
    return (_stored(weight) & 0x7FFF).to(torch.int32)


def flat_codes(weight: Tensor) -> np.ndarray:
    """The stored codes as flat uint16 in host memory, for compiled loops.

    Any shape and floating dtype (rounded to bfloat16); no copy where the weight is contiguous bfloat16 on the CPU.

    >>> flat_codes(torch.ones(1, 2)).tolist()
    [16256, 16256]
    """
    return weight.to(torch.bfloat16).cpu().contiguous().view(torch.uint16).numpy().reshape(-1)


def value(magnitude: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The magnitude that each code stands for (float64); inverse of `magnitude_code`.

    >>> value(torch.tensor([16256, 16384])).tolist()
    [1.0, 2.0]
    """
    return magnitude.to(torch.int16).view(torch.bfloat16).to(torch.float64)


def ulp(weight: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The gap from each ``|weight|`` to the next larger bfloat16 (float32, in the units of the weight).

    The definition is the code: magnitudes are ordered like their codes, so the next one is the code plus one.
    Infinite at the largest finite value. The relative gap lies in (2^-8, 2^-7] for normal numbers (PNT Lemma E.2).

    >>> ulp(torch.tensor([1.0, 0.0], dtype=torch.bfloat16)).tolist()
    [0.0078125, 9.183549615799121e-41]
    """
    here = magnitude_code(weight)
    return (value(here + 1) - value(here)).to(torch.float32)


def changed(before: Shaped[Tensor, "*shape"], after: Shaped[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Where the stored bfloat16 codes differ; +0 and -0 are equal, a NaN equals only a NaN of the same code.

    Both sides are rounded to bfloat16 first. On finite nonzero values this is PNT Definition 2.1 with eta = 1e-3
    (PNT Proposition E.3); zero, NaN and infinity are ours.

    >>> changed(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.001, -0.0, 1.01])).tolist()
    [False, False, True]
    """
    left, right = _stored(before), _stored(after)
    return (left != right) & (((left | right) & 0x7FFF) != 0)


def changed_bitwise(before: Shaped[Tensor, "*shape"], after: Shaped[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Where the bfloat16 codes differ at all, the sign of zero included.

    >>> changed_bitwise(torch.tensor([0.0]), torch.tensor([-0.0])).tolist()
    [True]
    """
    return code(before) != code(after)


def changed_native(before: Shaped[Tensor, "*shape"], after: Shaped[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Where the values differ in the dtype they are stored in.

    Equal dtypes: stored values differ (+0 equals -0, a NaN only its own bits). Different dtypes: the eta rule of PNT
    Definition 2.1 in float64, ``|after - before| > 1e-3 max(|before|, |after|)``; nonfinite entries then count as
    changed unless they are equal.

    >>> changed_native(torch.tensor([1.0]), torch.tensor([1.0001])).tolist()
    [True]
    """
    if before.dtype == after.dtype:
        width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[before.element_size()]
        same_bits = before.view(width) == after.view(width)
        left, right = before.to(torch.float64), after.to(torch.float64)
        return ~(same_bits | (left == right))
    left, right = before.to(torch.float64), after.to(torch.float64)
    near = (right - left).abs() <= ETA * torch.maximum(left.abs(), right.abs())
    return ~torch.where(torch.isfinite(left) & torch.isfinite(right), near, left == right)


def changed_atol(before: Shaped[Tensor, "*shape"], after: Shaped[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Where ``|after - before| > 1e-5``, subtracted in the stored dtype (the wider of the two where they differ).

    Source: arXiv 2505.11711, whose code subtracts bfloat16 from bfloat16. Nonfinite entries count as changed when
    their bfloat16 codes differ. Left out: the rounding of the tolerance itself to bfloat16 in ``torch.isclose``.

    >>> changed_atol(torch.tensor([1e-6]), torch.tensor([2e-6])).tolist()
    [False]
    """
    # fp8 has no arithmetic, and promotes to nothing: it takes part as float32, in which it is exact
    left, right = (torch.float32 if t.dtype.itemsize == 1 else t.dtype for t in (before, after))
    wide = torch.promote_types(left, right)
    step = (after.to(wide) - before.to(wide)).to(torch.float64)
    finite = torch.isfinite(before.to(torch.float32)) & torch.isfinite(after.to(torch.float32))
    return torch.where(finite, ~(step.abs() <= ATOL), changed(before, after))


def visible(weight: Float[Tensor, "*shape"], step: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Where a step survives rounding: ``round_bf16(weight + step) != weight`` for a bf16-exact weight.

    The sum is taken in float64 and rounded once. The threshold is ulp/2 upward (ties to even) and ulp/4 downward at
    powers of two (PNT Corollary 3.6 with the erratum of its boundary case).

    >>> visible(torch.tensor([1.0, 1.0]), torch.tensor([0.003, 0.005])).tolist()
    [False, True]
    """
    return changed(weight, round_to_bf16(weight.to(torch.float64) + step.to(torch.float64)))


def round_to_bf16(exact: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Round float64 to bfloat16 once, to nearest with ties to even.

    torch goes through float32, which rounds twice; here float32 is first rounded to odd, which makes the second
    rounding right (Boldo and Melquiond 2008). Any shape; bfloat16 out.

    >>> round_to_bf16(torch.tensor([1.00390625000001], dtype=torch.float64)).item()
    1.0078125
    """
    near = exact.to(torch.float32)
    bits = near.view(torch.int32)
    beyond = (near.to(torch.float64).abs() > exact.abs()).to(torch.int32)
    inexact = (near.to(torch.float64) != exact) & torch.isfinite(near)
    toward_zero = bits - beyond  # the magnitude bits count up with |value|, so one less is the next value toward zero
    return torch.where(inexact, toward_zero | 1, bits).view(torch.float32).to(torch.bfloat16)
