"""The precision ladder against rounding by torch: every bfloat16 code in every format, edges, both starts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.measures import bits, ladder, nulls
from offprincipal.measures.ladder import FORMATS, Format
from offprincipal.measures.steps import Constant, Gaussian, Sampled, Step

NAMES = [form.name for form in FORMATS]
CODES = torch.arange(65_536, dtype=torch.int32)
VALUES = CODES.to(torch.int16).view(torch.bfloat16).double()
FINITE = VALUES[torch.isfinite(VALUES)]
MAGNITUDES = bits.value(torch.arange(bits.FIRST_NONFINITE_CODE))
FP32, FP16, BF16, E4M3, E5M2, SCALED = FORMATS


def rounded(exact: torch.Tensor, form: Format, scale: float = 1.0) -> torch.Tensor:
    """The literal twin: round float64 once to the format with torch's own casts; float64 out.

    torch rounds float64 to a narrow type through float32, that is twice; float32 rounded to odd first makes it once.
    """
    scaled = exact / scale
    if form.saturates:
        scaled = scaled.clamp(-form.largest, form.largest)
    near = scaled.float()
    if form.dtype != torch.float32:
        toward_zero = torch.where(near.double().abs() > scaled.abs(), torch.nextafter(near, torch.zeros(())), near)
        odd = (toward_zero.view(torch.int32) | 1).view(torch.float32)
        near = torch.where(near.double() == scaled, near, odd)
    return near.to(form.dtype).double()


def literal(before: torch.Tensor, after: torch.Tensor, form: Format, scale: float = 1.0) -> torch.Tensor:
    """Where ``round(before) != round(after)``."""
    return rounded(before.double(), form, scale) != rounded(after.double(), form, scale)


def scale_of(form: Format, weights: torch.Tensor) -> float:
    return form.scale(float(weights.abs().max()))


def step_beside(edge: torch.Tensor, magnitude: torch.Tensor, nudge: float) -> torch.Tensor:
    """The distance to an edge, one float64 more or less."""
    distance = edge - magnitude
    return distance if not nudge else torch.nextafter(distance, distance + nudge * distance.abs().clamp(min=1e-300))


@pytest.mark.parametrize("form", FORMATS[:5], ids=NAMES[:5])
@pytest.mark.parametrize("nudge", [-1.0, 0.0, 1.0])
def test_the_closed_form_is_the_count_on_every_code_at_its_own_edges(form, nudge):
    """Each finite magnitude steps exactly onto both edges of its cell, and one float64 to either side."""
    outward, inward, odd = ladder._cells(form)
    for edge in (outward, inward):
        use = torch.isfinite(edge) & (edge != MAGNITUDES)
        step = step_beside(edge, MAGNITUDES, nudge)[use]
        weight, beyond = MAGNITUDES[use], edge[use] > MAGNITUDES[use]
        end = weight + step
        exact = (end - weight == step) if nudge else torch.ones_like(beyond)
        past = torch.where(beyond, end > edge[use], end < edge[use]) | ((end == edge[use]) & odd[use])
        seen = literal(weight, end, form)
        assert torch.equal(seen[exact], past[exact])
        for sign in (1.0, -1.0):
            found = ladder.count(sign * weight, sign * end, formats=[form])
            assert torch.equal(found.code_visible[0][use.nonzero().flatten()], seen.long())


@pytest.mark.parametrize("form", FORMATS[:5], ids=NAMES[:5])
@pytest.mark.parametrize("size", [1e-45, 1e-30, 2.0**-24, 1e-6, 2.0**-10, 0.003, 0.5, 16.0, 1e4, 1e38])
def test_a_constant_step_on_all_65536_codes(form, size):
    """P(visible) is the mean over the two signs of the step, on each weight of either sign."""
    seen = torch.stack([literal(FINITE, FINITE + sign * size, form) for sign in (1, -1)]).double().mean(0)
    expected = ladder.visible(form, Constant(size))[bits.magnitude_code(FINITE)]
    exactly = (FINITE + size - FINITE == size) & (FINITE - (FINITE - size) == size)  # the sum itself must not round
    assert torch.equal(seen[exactly], expected[exactly])
    for sign in (1, -1):
        found = ladder.count(FINITE, FINITE + sign * size, formats=[form])
        assert int(found.code_visible.sum()) == int(literal(FINITE, FINITE + sign * size, form).sum())
        assert int(found.code_total.sum()) == FINITE.numel()


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
@given(
    seed=st.integers(0, 1000),
    spread=st.floats(1e-12, 1e3),
    relative=st.floats(1e-9, 10.0),
    factor=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 7.0, 1e4]),
)
@settings(max_examples=25, deadline=None)
def test_count_is_rounding_by_torch(form, seed, spread, relative, factor):
    random = torch.Generator().manual_seed(seed)
    before = torch.randn(300, generator=random) * spread
    before[::7] = before[::7].bfloat16().float()
    before[:3] = torch.tensor([0.0, -0.0, spread])
    after = before + torch.randn(300, generator=random) * spread * relative
    after[5] = before[5]
    found, scale = ladder.count(before, after, [factor], [form]), scale_of(form, before)
    assert int(found.code_visible.sum()) == int(literal(before, after, form, scale).sum())
    along = before.double() + factor * (after.double() - before.double())
    assert found.scaled.tolist() == [[int(literal(before, along, form, scale).sum())]]
    assert torch.equal(found.code_total, torch.bincount(bits.magnitude_code(before), minlength=32_768))


def test_thresholds_in_words():
    """Half an ulp outward, a quarter inward at powers of two, ties to even, nothing beyond saturation."""
    share = {form.name: ladder.visible(form, Constant(2.0**-8)) for form in FORMATS}
    one, above = (int(bits.magnitude_code(torch.tensor(v))) for v in (1.0, 1.0078125))
    assert float(share["bf16"][one]) == 0.5  # a tie outward stays with the even 1.0; inward it is past ulp/4
    assert float(share["bf16"][above]) == 1.0  # the odd neighbour loses both ties
    assert float(share["fp16"][one]) == float(share["fp32"][one]) == 1.0
    assert float(share["fp8_e4m3"][one]) == 0.0
    zero = ladder.visible(FP16, Constant(2.0**-25))[0], ladder.visible(FP16, Constant(2.0**-25 * 1.01))[0]
    assert [float(p) for p in zero] == [0.0, 1.0]  # half the smallest subnormal: the tie goes to zero
    top = int(bits.magnitude_code(torch.tensor(448.0)))
    assert float(ladder.visible(E4M3, Constant(1e30))[top]) == 0.5  # outward it saturates
    assert float(ladder.visible(E5M2, Constant(1e30))[int(bits.magnitude_code(torch.tensor(57344.0)))]) == 1.0
    assert float(ladder.visible(BF16, Constant(1e30))[bits.FIRST_NONFINITE_CODE :].sum()) == 0.0


@pytest.mark.parametrize("form", FORMATS[:5], ids=NAMES[:5])
def test_formats_are_torchs(form):
    info = torch.finfo(form.dtype)
    assert (form.largest, 2.0**form.lowest, 2.0 ** (1 - form.digits)) == (info.max, info.tiny, info.eps)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.3])
def test_gaussian_steps_on_the_bfloat16_grid_are_the_rounding_null(scale):
    torch.testing.assert_close(
        ladder.visible(BF16, Gaussian(scale)), nulls.visible_probability(scale), rtol=1e-9, atol=1e-15
    )


@pytest.mark.parametrize("form", FORMATS[1:], ids=NAMES[1:])
@pytest.mark.parametrize("start", ["stored", "within"])
def test_sampled_steps_are_the_mean_of_their_constants(form, start):
    sizes = torch.tensor([0.0, 1e-6, 2.0**-12, 2.0**-8, 0.003, 0.003, 0.1]).bfloat16()
    counts = torch.bincount(bits.magnitude_code(sizes), minlength=bits.MAGNITUDE_CODES)
    alone = [ladder.visible(form, Constant(float(size)), start, form.scale(0.2)) for size in sizes]
    mixed = ladder.visible(form, Sampled(counts), start, form.scale(0.2))
    torch.testing.assert_close(mixed, torch.stack(alone).mean(0), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("step", [Constant(0.0), Gaussian(0.0), Sampled(torch.zeros(32_768, dtype=torch.int64))])
@pytest.mark.parametrize("start", ["stored", "within"])
def test_no_step_is_never_visible(step, start):
    assert float(ladder.visible(BF16, step, start).sum()) == 0.0


@pytest.mark.parametrize("form", [FP16, BF16, E4M3, E5M2], ids=lambda form: form.name)
@pytest.mark.parametrize("share", [0.003, 0.3, 0.9, 2.0])
def test_within_a_cell_a_step_is_seen_as_often_as_it_is_wide(form, share):
    """Weights laid evenly over the cell of one value; the step is a share of the cell's width."""
    for value in (0.0173, 0.25, 1.9):
        at = float(rounded(torch.tensor([value]).double(), form)[0])
        code = int(bits.magnitude_code(torch.tensor(at)))
        outward, inward, _ = (float(each[code]) for each in ladder._cells(form))
        width, points = outward - inward, 20_001
        cell = torch.linspace(inward, outward, points).double()[1:-1]
        for sign in (1, -1):
            seen = literal(cell, cell + sign * share * width, form).double().mean()
            assert abs(float(seen) - min(share, 1.0)) < 2e-3
        assert abs(float(ladder.visible(form, Constant(share * width), "within")[code]) - min(share, 1.0)) < 1e-12


def test_gaussian_steps_within_a_cell_are_the_integral():
    width, sd = 0.01, 0.004
    grid = (torch.arange(400_000).double() + 0.5) * (12 * sd / 400_000)
    density = 2 * torch.exp(-grid.square() / (2 * sd**2)) / (sd * math.sqrt(2 * math.pi))
    integral = float(((grid / width).clamp(max=1) * density).sum() * (12 * sd / 400_000))
    assert abs(float(Gaussian(sd).across(torch.tensor([width]).double())[0]) - integral) < 1e-8


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
def test_the_closed_form_foretells_the_count_of_independent_steps(form):
    """Both starts, on Gaussian weights of the size of a language model's, within five standard deviations."""
    random = torch.Generator().manual_seed(1)
    master = torch.randn(200_000, generator=random) * 0.02
    step = torch.randn(200_000, generator=random).double() * 3e-5
    for start, before in (("stored", master.bfloat16().float()), ("within", master)):
        found = ladder.count(before, before.double() + step, formats=[form])
        p = ladder.visible(form, Gaussian(3e-5), start, scale_of(form, before))
        expected = float((found.code_total * p).sum())
        spread = float((found.code_total * p * (1 - p)).sum()) ** 0.5
        assert abs(int(found.code_visible.sum()) - expected) < 5 * spread + 1


def test_threads_and_blocks_change_nothing(monkeypatch):
    random = torch.Generator().manual_seed(2)
    before = (torch.randn(10_000, generator=random) * 0.02).bfloat16()
    after = before.float() + torch.randn(10_000, generator=random) * 1e-4
    whole = ladder.count(before, after, [0.5])
    monkeypatch.setattr(ladder, "BLOCK", 999)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    parts = ladder.count(before, after, [0.5])
    for name, value in vars(whole).items():
        assert np.array_equal(np.asarray(value), np.asarray(vars(parts)[name])), name


def test_nonfinite_entries_are_left_out_and_counted():
    before = torch.tensor([1.0, float("nan"), 1.0, float("inf"), 2.0])
    after = torch.tensor([2.0, 1.0, float("inf"), float("inf"), 2.0])
    found = ladder.count(before, after, [1.0])
    assert (found.nonfinite, int(found.code_total.sum())) == (3, 2)
    assert found.code_visible.sum(1).tolist() == found.scaled.flatten().tolist() == [1] * len(FORMATS)
    assert ladder.count(torch.zeros(0), torch.zeros(0)).nonfinite == 0


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        ladder.count(torch.zeros(2), torch.zeros(3))


PUBLISHED = {"fp32": 0.995, "fp16": 0.0243, "bf16": 0.00614, "fp8": 0.000655}
"""Changed by one GRPO step of Qwen3-30B-A3B (arXiv 2605.07330); the kind of fp8 is not said."""


def share_visible(step: Step, start: ladder.Start) -> dict[str, float]:
    """Of Gaussian weights of sd .02, per format."""
    weights = torch.randn(400_000, generator=torch.Generator().manual_seed(3)).double() * 0.02
    total, top = torch.bincount(bits.magnitude_code(weights), minlength=32_768), float(weights.abs().max())
    chance = {form.name: ladder.visible(form, step, start, form.scale(top)) for form in FORMATS}
    return {name: float((total * p).sum() / total.sum()) for name, p in chance.items()}


def test_a_step_of_1e_6_has_the_published_order_of_magnitude():
    stored, within = share_visible(Constant(1e-6), "stored"), share_visible(Constant(1e-6), "within")
    assert stored["fp32"] == within["fp32"] == 1.0
    for name, found in (("fp16", stored["fp16"]), ("bf16", stored["bf16"]), ("fp8", within["fp8_e4m3"])):
        assert 0.1 < found / PUBLISHED[name] < 10
    assert 1 < stored["fp8_e4m3_scaled"] / PUBLISHED["fp8"] < 10
    assert stored["fp8_e4m3"] / PUBLISHED["fp8"] > 20  # bf16 weights lie on the ties of fp8: any step moves them


def test_a_tenth_of_it_agrees_with_the_published_ladder_on_every_rung():
    """Gaussian steps of 1e-7, from anywhere in the cell; of the kinds of fp8, e4m3 with a scale."""
    found = share_visible(Gaussian(1e-7), "within")
    assert abs(found["fp32"] - PUBLISHED["fp32"]) < 0.001
    for name, rung in (("fp16", "fp16"), ("bf16", "bf16"), ("fp8_e4m3_scaled", "fp8")):
        assert 0.5 < found[name] / PUBLISHED[rung] < 2
