"""The fused pass against its literal twin: torch statements, one number at a time."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from offprincipal.measures import _bf16_pass, bits
from offprincipal.measures.sweep import Sweep, _torch_pass, low_changed, sweep, ulp_gap

CODES = hnp.arrays(np.uint16, hnp.array_shapes(min_dims=1, max_dims=2, max_side=40))


def literal(before: torch.Tensor, after: torch.Tensor) -> dict:
    """Every count by its own statement of DEFINITIONS 1, in Python numbers."""
    left, right = before.flatten().tolist(), after.flatten().tolist()
    codes = list(zip(bits.code(before).flatten().tolist(), bits.code(after).flatten().tolist(), strict=True))
    changed = [a != b and {a, b} != {0, 0x8000} for a, b in codes]
    finite = [np.isfinite(x) and np.isfinite(y) for x, y in zip(left, right, strict=True)]
    steps = [y - x if ok else 0.0 for x, y, ok in zip(left, right, finite, strict=True)]
    signed = [(-(c & 0x7FFF) if c > 0x7FFF else c, -(d & 0x7FFF) if d > 0x7FFF else d) for c, d in codes]
    return {
        "counted": len(left),
        "changed": sum(changed),
        "changed_bitwise": sum(a != b for a, b in codes),
        "nonfinite_base": sum(not np.isfinite(x) for x in left),
        "nonfinite_tuned": sum(not np.isfinite(y) for y in right),
        "delta_sq": float(np.sum([s * s for s in steps])),
        "delta_abs_sum": float(np.sum(np.abs(steps))),
        "ulps": [sum(abs(d - c) >= edge for c, d in signed) for edge in (1, 2, 4, 8, 16, 32, 64)],
        "code_changed": dict(Counter(a & 0x7FFF for (a, _), m in zip(codes, changed, strict=True) if m)),
    }  # fmt: skip


def as_bf16(codes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(codes.view(np.int16).copy()).view(torch.bfloat16)


def assert_integers_equal(left: Sweep, right: Sweep) -> None:
    for name, value in vars(left).items():
        other = getattr(right, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other), name
        elif isinstance(value, int):
            assert value == other, name
        else:
            assert value == pytest.approx(other, rel=1e-7 if name == "delta_abs_max" else 1e-12), name


@given(CODES, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_compiled_pass_equals_the_literal_twin_on_arbitrary_codes(codes, random):
    other = codes.copy()
    for position in np.ndindex(codes.shape):
        draw = random.random()
        if draw < 0.3:
            other[position] = (int(codes[position]) + random.choice([1, 2, 65535, 0x8000, 77])) % 65536
    # squares of D overflow float64 for no bfloat16, but their sum may: keep the exponents in a wide, finite range
    before, after = as_bf16(codes), as_bf16(other)
    found, expected = sweep(before, after), literal(before, after)
    assert [found.counted, found.changed, found.changed_bitwise] == [
        expected["counted"], expected["changed"], expected["changed_bitwise"]]  # fmt: skip
    assert [found.nonfinite_base, found.nonfinite_tuned] == [expected["nonfinite_base"], expected["nonfinite_tuned"]]
    assert found.ulps.tolist() == expected["ulps"]
    assert {int(c): int(found.code_changed[c]) for c in found.code_changed.nonzero().flatten()} == expected[
        "code_changed"
    ]
    assert found.delta_sq == pytest.approx(expected["delta_sq"], rel=1e-12)
    assert found.delta_abs_sum == pytest.approx(expected["delta_abs_sum"], rel=1e-12)
    assert found.changed_atol == int(bits.changed_atol(before, after).sum())
    assert found.changed_native == int(bits.changed_native(before, after).sum())
    assert_integers_equal(found, Sweep(counted=before.numel(), **_torch_pass(
        *(t.reshape(1, -1) if t.ndim == 1 else t for t in (before, after)), 7)))  # fmt: skip


def test_every_code_against_a_shifted_copy_of_itself():
    codes = np.arange(65_536, dtype=np.uint16)
    for shift in (0, 1, 0x8000, 12_345):
        before, after = as_bf16(codes).reshape(256, 256), as_bf16(np.roll(codes, shift)).reshape(256, 256)
        assert_integers_equal(sweep(before, after), Sweep(counted=65_536, **_torch_pass(before, after, 64)))


def test_atol_limit_is_the_largest_step_that_bf16_rounds_to_within_1e_5():
    """All float32 steps near the limit: bf16(d) <= 1e-5 exactly when d < ATOL_LIMIT."""
    centre = int(np.float32(1e-5).view(np.uint32))
    steps = torch.from_numpy(np.arange(centre - 70_000, centre + 70_000, dtype=np.uint32).view(np.float32).copy())
    assert torch.equal(steps.bfloat16().double() <= 1e-5, steps < float(_bf16_pass.ATOL_LIMIT))


def trained_pair(shape: tuple[int, ...], seed: int = 0, scale: float = 1e-4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    before = (torch.randn(shape, generator=generator) * 0.02).bfloat16()
    return before, (before.float() + torch.randn(shape, generator=generator) * scale).bfloat16()


def test_threads_do_not_change_a_bit():
    before, after = trained_pair((1500, 3001))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = sweep(before, after)
        torch.set_num_threads(4)
        four = sweep(before, after)
    finally:
        torch.set_num_threads(threads)
    for name, value in vars(one).items():
        same = (
            torch.equal(value, getattr(four, name))
            if isinstance(value, torch.Tensor)
            else value == getattr(four, name)
        )
        assert same, name


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_other_dtypes_count_like_their_bf16_casts(dtype):
    before, after = trained_pair((70, 33))
    found = sweep(before.to(dtype), after.to(dtype))
    as_cast = sweep(before.to(dtype).bfloat16(), after.to(dtype).bfloat16())
    assert (found.changed, found.code_total.tolist()) == (as_cast.changed, as_cast.code_total.tolist())
    delta = after.to(dtype).double() - before.to(dtype).double()
    assert found.delta_sq == pytest.approx(float(delta.square().sum()), rel=1e-12)
    assert found.base_sq == pytest.approx(float(before.to(dtype).double().square().sum()), rel=1e-12)


def test_mixed_dtypes_use_the_eta_rule_natively():
    before, after = trained_pair((64, 64))
    found = sweep(before, after.float() * 1.0005)
    assert found.changed_native < found.counted
    assert found.changed_native == int(bits.changed_native(before, after.float() * 1.0005).sum())


@pytest.mark.parametrize("narrow", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_pair_with_one_fp8_side_is_counted(narrow):
    before, after = trained_pair((20, 16))
    for left, right in ((before, after.to(narrow)), (before.to(narrow), after.float())):
        found, exact = sweep(left, right), (right.double() - left.double()).abs()
        assert found.changed_atol == int((exact > 1e-5).sum())
        assert found.changed == sweep(left.bfloat16(), right.bfloat16()).changed


def test_empty_and_scalar_like_shapes():
    for shape in ((0,), (0, 4), (4, 0), (1, 1), (1,)):
        found = sweep(torch.zeros(shape).bfloat16(), torch.zeros(shape).bfloat16())
        assert (found.counted, found.changed, found.delta_sq) == (int(np.prod(shape)), 0, 0.0)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="one shape with 1 or 2 axes"):
        sweep(torch.zeros(2, 3), torch.zeros(3, 2))


def test_profiles_are_the_marginals_of_the_mask():
    before, after = trained_pair((130, 700))
    mask = bits.changed(before, after)
    found = sweep(before, after)
    assert torch.equal(found.row_changed, mask.sum(dim=1))
    assert torch.equal(found.col_changed, mask.sum(dim=0))


@given(st.integers(0, 10_000), st.lists(st.integers(0, 600), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_low_changed_equals_a_stable_sort(seed, ones):
    before, after = trained_pair((20, 30), seed)
    before[:5] = before[5:10]  # ties
    order = torch.sort(bits.magnitude_code(before).flatten(), stable=True).indices
    mask = bits.changed(before, after).flatten()
    expected = [int(mask[order[:k]].sum()) for k in ones]
    assert low_changed(before, after, sweep(before, after), ones) == expected


def test_ulp_gap_counts_values_in_between():
    grid = torch.arange(-200, 200)
    values = torch.where(grid < 0, grid.abs() | 0x8000, grid).to(torch.int16).view(torch.bfloat16)
    assert torch.equal(
        ulp_gap(values[:, None].expand(400, 400), values[None].expand(400, 400)), (grid[:, None] - grid).abs().int()
    )
