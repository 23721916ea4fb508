"""The short way for tuned sides near their base: as exact as factorising them, or not taken."""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprincipal.measures import _cut, angles, carried, masks, spectrum
from offprincipal.measures.base import base_of
from offprincipal.measures.carried import carry, serves
from offprincipal.measures.delta import delta_of
from offprincipal.measures.seeds import torch_generator
from offprincipal.measures.tuned import tuned_of


def pair(shape: tuple[int, int], step: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise and a part of low rank, and a dense step on top, bfloat16."""
    generator = torch_generator(seed, "carried", str(shape))
    low = torch.randn(shape[0], 6, generator=generator) @ torch.randn(6, shape[1], generator=generator) * 0.01
    before = (torch.randn(shape, generator=generator) * 0.02 + low).bfloat16()
    return before, (before.float() + step * torch.randn(shape, generator=generator)).bfloat16()


def literal(before: Tensor, after: Tensor) -> tuple[Tensor, Mapping[str, Mapping[int, Tensor]]]:
    """Singular values of the tuned side and angles, from two float64 SVDs."""
    first, second = (torch.linalg.svd(w.double(), full_matrices=False) for w in (before, after))
    bases = {"left": (first.U, second.U), "right": (first.Vh.T, second.Vh.T)}
    sizes = angles.grid((before.shape[0], before.shape[1]))
    k = max(sizes)
    return second.S, {side: angles.nested_angles(a[:, :k], b[:, :k], sizes) for side, (a, b) in bases.items()}


Turned = Mapping[str, Mapping[int, Tensor]]


def distance(found: Turned, expected: Turned) -> float:
    return max(float((found[s][k] - expected[s][k]).abs().max()) for s in expected for k in expected[s])


@pytest.mark.parametrize("shape", [(512, 192), (192, 512), (700, 130), (2048, 256), (160, 160), (200, 256)])
@settings(deadline=None)
@given(step=st.sampled_from([3e-7, 1e-6, 3e-6, 1e-5]), seed=st.integers(0, 3))
def test_values_and_angles_equal_those_of_two_svds(shape, step, seed):
    before, after = pair(shape, step, seed)
    base = base_of(before).factors
    found = carry(before, after, base, angles.grid(shape))
    if found is None:  # a close pair at a cut: `tuned_of` factorises
        return
    values, turned = literal(before, after)
    assert float((found.values - values).abs().max()) <= spectrum.ACCURACY * float(values[0])
    assert distance(found.angles, turned) <= angles.ACCURACY


@pytest.mark.parametrize("shape", [(512, 192), (192, 512), (192, 192)])
def test_small_steps_are_carried(shape):
    before, after = pair(shape, 1e-6)
    found = tuned_of(before, after, base_of(before).factors, angles.grid(shape))
    assert found.products is not None
    values, turned = literal(before, after)
    assert float((found.values - values).abs().max()) <= spectrum.ACCURACY * float(values[0])
    assert 0 < distance(found.angles, turned) <= angles.ACCURACY


def test_products_of_the_step_are_those_of_the_difference():
    before, after = pair((512, 192), 1e-6)
    factors = base_of(before).factors
    found = carry(before, after, factors, angles.grid((512, 192)))
    assert found is not None
    assert found.products is not None
    delta = after.double() - before.double()
    assert torch.allclose(found.products.cross.double(), delta.T @ before.double(), rtol=1e-5, atol=1e-9)
    assert torch.allclose(found.products.square.double(), (delta.T @ delta).tril(), rtol=1e-5, atol=1e-12)
    carried_delta, measured = (delta_of(before, after, factors, each) for each in (found.products, None))
    assert torch.allclose(carried_delta.values, measured.values, rtol=1e-6)
    assert carried_delta.inside == pytest.approx(measured.inside, rel=1e-5)


@pytest.mark.parametrize("case", ["growth", "rank one", "one entry", "few rows", "top direction"])
def test_updates_with_structure_are_exact_too(case):
    before, _ = pair((640, 200), 0.0)
    u, s, v = torch.linalg.svd(before.double(), full_matrices=False)
    generator = torch_generator(0, case)
    noise = [torch.randn(n, 1, generator=generator).double() for n in before.shape]
    lone = torch.zeros(640, 200).double()
    lone[3, 5] = 1e-3
    few = torch.zeros(640, 200).double()
    few[[1, 2, 4]] = 1e-2 * torch.randn(3, 200, generator=generator).double()
    delta = {
        "growth": before.double() / 128, "rank one": 1e-6 * noise[0] @ noise[1].T, "one entry": lone, "few rows": few,
        "top direction": 1e-3 * s[0] * u[:, :1] @ v[:1],
    }[case]  # fmt: skip
    after = (before.double() + delta).bfloat16()
    base, sizes = base_of(before).factors, angles.grid((640, 200))
    values, turned = literal(before, after)
    found = tuned_of(before, after, base, sizes)
    assert float((found.values - values).abs().max()) <= spectrum.ACCURACY * float(values[0])
    assert distance(found.angles, turned) <= angles.ACCURACY


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("least", [1e-3, 1e-5])
def test_small_ends_are_taken_again_from_the_weights(share, least):
    before, _ = pair((300, 300), 0.0)
    u, s, v = torch.linalg.svd(before.double(), full_matrices=False)
    end = round(300 * share)
    s[-end:] = s[0] * torch.linspace(1.1 * least, least, end)
    before = (u * s @ v).bfloat16()
    after = (before.float() + 1e-6 * torch.randn(300, 300, generator=torch_generator(0, "end"))).bfloat16()
    found = tuned_of(before, after, base_of(before).factors, angles.grid((300, 300)))
    values, turned = literal(before, after)
    assert float((found.values - values).abs().max()) <= spectrum.ACCURACY * float(values[0])
    assert distance(found.angles, turned) <= angles.ACCURACY


def test_holes_count_as_zero_on_both_sides():
    before, after = pair((512, 192), 1e-6)
    holes = torch.zeros(512, 192, dtype=torch.bool)
    holes[7, 9] = holes[100, 100] = True
    torn = after.masked_fill(holes, float("nan"))
    base = base_of(before, holes=holes).factors
    found = carry(before, torn, base, angles.grid((512, 192)), holes=holes)
    assert found is not None
    values, turned = literal(before.masked_fill(holes, 0.0), after.masked_fill(holes, 0.0))
    assert float((found.values - values).abs().max()) <= spectrum.ACCURACY * float(values[0])
    assert distance(found.angles, turned) <= angles.ACCURACY


def close_pair() -> Tensor:
    """Equal singular values 16 and 17."""
    u, s, v = torch.linalg.svd(pair((512, 192), 0.0)[0].double(), full_matrices=False)
    s[15:17] = s[15:17].mean()
    return (u * s @ v).bfloat16()


@pytest.mark.parametrize("case", ["large", "small", "deficient", "wide", "close", "no frame"])
def test_where_promises_could_be_missed_the_tuned_side_is_factorised(case):
    shape = (256, 100) if case == "small" else (512, 192)
    before, after = pair(shape, 3e-3 if case == "large" else 1e-6)
    if case == "deficient":
        before[:, 1] = before[:, 0]
    if case == "wide":
        before, after = before.float(), after.float()
    if case == "close":
        before = close_pair()
        after = (before.float() + 2e-4 * torch.randn(shape, generator=torch_generator(0, case))).bfloat16()
    base = base_of(before).factors
    if case == "no frame":
        base = spectrum.factorise(before, masks.principal_rank(shape, 512))
    assert carry(before, after, base, angles.grid(shape)) is None
    found = tuned_of(before, after, base, angles.grid(shape))
    assert torch.equal(found.values, spectrum.factorise(after, masks.principal_rank(shape, 512)).values)


def test_an_iteration_that_does_not_settle_is_given_up(monkeypatch):
    before, after = pair((512, 192), 1e-5)
    base, sizes = base_of(before).factors, angles.grid((512, 192))
    assert carry(before, after, base, sizes) is not None
    monkeypatch.setattr(_cut, "ROUNDS", 1)
    monkeypatch.setattr(_cut, "WINDOW", 1)
    assert carry(before, after, base, sizes) is None


def test_a_step_that_the_sampled_rows_do_not_show_is_factorised():
    before, _ = pair((1024, 192), 0.0)
    after = before.clone()
    after[1:4] += 3.0  # every fifth row is looked at first
    base, sizes = base_of(before).factors, angles.grid((1024, 192))
    assert carried._worth(before, after, base, sizes)
    assert carry(before, after, base, sizes) is None


@pytest.mark.parametrize(("shape", "seed", "k"), [((1024, 512), 1, 128), ((1024, 512), 6, 64), ((512, 1024), 5, 64)])
def test_entries_about_a_close_pair_are_taken_again_from_the_weights(shape, seed, k, monkeypatch):
    """The values beside these cuts lie too close for float32 products; the angle is as wide as .44 rad."""
    before, after = pair(shape, 1e-4, seed)
    base, sizes, seen = base_of(before).factors, angles.grid(shape), []
    own = carried._take_again
    monkeypatch.setattr(carried, "_take_again", lambda *a: (seen.append(a[2]), own(*a)))
    found = carry(before, after, base, sizes)
    assert found is not None
    assert seen == [[k]]
    values, turned = literal(before, after)
    assert float((found.values - values).abs().max()) <= spectrum.ACCURACY * float(values[0])
    assert distance(found.angles, turned) <= angles.ACCURACY
    monkeypatch.setattr(carried, "CLOSE", 1)
    assert carry(before, after, base, sizes) is None


def test_a_cut_that_may_err_too_much_gives_no_values(monkeypatch):
    before, after = pair((512, 192), 1e-5)
    base, sizes = base_of(before).factors, angles.grid((512, 192))
    own = _cut.Cut.below
    monkeypatch.setattr(_cut.Cut, "below", lambda self: (own(self)[0], 1.0))
    monkeypatch.setattr(carried, "eigenvalues", None)
    found = carry(before, after, base, sizes)
    assert found is not None
    values, _ = literal(before, after)
    assert float((found.values - values).abs().max()) <= spectrum.ACCURACY * float(values[0])


def test_directions_that_are_not_the_leading_ones_are_not_believed():
    """A value far behind the cut is the largest of all, and the iteration settles all the same."""
    squares = torch.linspace(4.0, 1.0, 200, dtype=torch.float64)
    matrix = _cut.NearlyDiagonal(squares, torch.zeros(200, 200))
    made = _cut.cut(matrix, 100)
    assert made is not None
    assert carried._eigen(matrix, made, 0.0) is not None
    squares[190] = 5.0
    made = _cut.cut(matrix, 100)
    assert made is not None
    assert carried._eigen(matrix, made, 0.0) is None


def test_angles_that_are_too_wide_for_float32_are_not_believed(monkeypatch):
    before, after = pair((512, 192), 1e-5)
    base, sizes = base_of(before).factors, angles.grid((512, 192))
    monkeypatch.setattr(carried, "WIDE", 1e-6)
    assert carry(before, after, base, sizes) is None


def test_only_bases_that_can_use_a_frame_keep_one():
    assert serves((512, 192))
    assert base_of(pair((512, 192), 0.0)[0]).factors.frame is not None
    assert not serves((256, 100))
    assert base_of(pair((256, 100), 0.0)[0]).factors.frame is None


def test_an_end_of_many_small_values_is_left_to_the_long_way():
    near = _cut.NearlyDiagonal(torch.linspace(2.0, 1.0, 40).double(), torch.zeros(40, 40))
    assert carried._end(near, 11) is None
    for few in (0, 3):
        found = carried._end(near, few)
        assert found is not None
        assert found.abs().sum(0).tolist() == pytest.approx([1.0] * few)
