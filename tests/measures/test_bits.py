"""The bfloat16 grid, tested on its whole domain: 65,536 codes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offprincipal.measures import bits

ALL_CODES = torch.arange(65_536, dtype=torch.int32)
ALL_VALUES = ALL_CODES.to(torch.int16).view(torch.bfloat16)
FINITE = (ALL_CODES & 0x7FFF) < bits.FIRST_NONFINITE_CODE


def test_code_returns_the_stored_bits_of_every_value():
    assert torch.equal(bits.code(ALL_VALUES), ALL_CODES)
    assert torch.equal(bits.magnitude_code(ALL_VALUES), ALL_CODES & 0x7FFF)


def test_value_inverts_magnitude_code_everywhere_finite():
    magnitudes = ALL_VALUES[FINITE].abs().double()
    assert torch.equal(bits.value(bits.magnitude_code(ALL_VALUES[FINITE])), magnitudes)


def test_ulp_is_two_to_the_exponent_minus_seven():
    positive = ALL_VALUES[FINITE & (ALL_CODES < 0x7F7F)]
    exponent = torch.floor(torch.log2(positive.double().clamp(min=2.0**-126)))
    assert torch.equal(bits.ulp(positive).double(), torch.exp2(exponent - 7))


def test_relative_ulp_lies_in_the_interval_of_lemma_e2():
    normal = ALL_VALUES[FINITE & ((ALL_CODES & 0x7FFF) >= 0x0080) & ((ALL_CODES & 0x7FFF) < 0x7F7F)]
    ratio = bits.ulp(normal).double() / normal.double().abs()
    assert ratio.min() > 2.0**-8
    assert ratio.max() == 2.0**-7


def test_smallest_relative_gap_is_exactly_two_to_minus_eight_at_binade_boundaries():
    """The erratum of PNT Lemma E.1: the gap is >= 2^-8, with equality across a boundary."""
    below, above = (ALL_VALUES[c : c + 0x7F7F - 0x80].double() for c in (0x80, 0x81))
    gap = (above - below) / above
    assert gap.min() == 2.0**-8
    assert int((gap == 2.0**-8).sum()) == 253


@pytest.mark.parametrize("step", [1, -1, 2, 0])
def test_changed_equals_definition_2_1_on_every_pair_of_neighbours(step):
    """PNT Definition 2.1 with eta = 1e-3, literally in float64, on each code and its neighbour."""
    codes = ALL_CODES[FINITE & ((ALL_CODES & 0x7FFF) > 2) & ((ALL_CODES & 0x7FFF) < 0x7F7D)]
    before, after = (c.to(torch.int16).view(torch.bfloat16) for c in (codes, codes + step))
    left, right = before.double(), after.double()
    literal = (right - left).abs() > bits.ETA * torch.maximum(left.abs(), right.abs())
    assert torch.equal(bits.changed(before, after), literal)


def test_changed_against_every_code_from_a_few_anchors():
    for anchor in (0x0000, 0x8000, 0x0001, 0x3F80, 0xBF80, 0x7F7F):
        before = ALL_VALUES[anchor].expand(65_536)
        left, right = before.double(), ALL_VALUES.double()
        literal = (right - left).abs() > bits.ETA * torch.maximum(left.abs(), right.abs())
        assert torch.equal(bits.changed(before, ALL_VALUES)[FINITE], literal[FINITE])


def test_zero_and_nan_rules():
    zeros, nan_a, nan_b = ALL_VALUES[[0x0000, 0x8000]], ALL_VALUES[0x7FC0:0x7FC1], ALL_VALUES[0x7FC1:0x7FC2]
    assert not bits.changed(zeros[:1], zeros[1:]).any()
    assert bits.changed_bitwise(zeros[:1], zeros[1:]).all()
    assert not bits.changed(nan_a, nan_a).any()
    assert bits.changed(nan_a, nan_b).all()
    assert not bits.changed_native(nan_a, nan_a).any()


def test_the_examples_of_the_paper_against_the_absolute_tolerance():
    """PNT Appendix E.1: 1e-5 calls a change what storage cannot see, and misses one of 134 ulps."""
    large = torch.tensor([1024.001]), torch.tensor([1024.002])
    small = torch.tensor([1e-6]), torch.tensor([2e-6])
    assert not bits.changed(*large).any()
    assert bits.changed_atol(*large).all()
    assert bits.changed(*small).all()
    assert not bits.changed_atol(*small).any()


def test_native_uses_eta_only_across_dtypes():
    before = torch.tensor([1.0, 1.0, float("inf")])
    after = torch.tensor([1.0004, 1.002, float("inf")])
    assert bits.changed_native(before, after).tolist() == [True, True, False]
    assert bits.changed_native(before, after.double()).tolist() == [False, True, False]


def test_round_to_bf16_is_the_nearest_code_with_ties_to_even():
    """All midpoints between neighbours and their float64 neighbours, where double rounding goes wrong."""
    grid = bits.value(torch.arange(0x7F7F))
    middle = (grid[1:] + grid[:-1]) / 2
    even = torch.where(torch.arange(0x7F7E) % 2 == 0, grid[:-1], grid[1:])
    inf = torch.tensor(float("inf"), dtype=torch.float64)
    for exact, expected in (
        (middle, even),
        (torch.nextafter(middle, inf), grid[1:]),
        (torch.nextafter(middle, -inf), grid[:-1]),
    ):
        assert torch.equal(bits.round_to_bf16(exact).double(), expected)
        assert torch.equal(bits.round_to_bf16(-exact).double(), -expected)


@given(st.integers(0x80, 0x7F00), st.floats(-1.5, 1.5), st.booleans())
def test_visible_thresholds_are_half_an_ulp_out_and_a_quarter_in(code, fraction, negative):
    weight = torch.tensor([code], dtype=torch.int16).view(torch.bfloat16)
    outward, inward = (
        bits.ulp(weight).double() / 2,
        (bits.value(bits.magnitude_code(weight)) - bits.value(bits.magnitude_code(weight) - 1)) / 2,
    )
    step = fraction * bits.ulp(weight).double()
    sign = -1.0 if negative else 1.0
    even = code % 2 == 0
    beyond = step > outward if even else step >= outward
    beyond = beyond | ((-step > inward) if even else (-step >= inward))
    assert bits.visible(sign * weight, sign * step).tolist() == beyond.tolist()
