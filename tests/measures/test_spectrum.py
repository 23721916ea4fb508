"""Exact singular values and subspaces against float64 torch.linalg.svd, degenerate matrices included."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.measures import _gram, angles, spectrum
from offprincipal.measures.delta import difference
from offprincipal.measures.seeds import torch_generator


def matrix(shape: tuple[int, int], kind: str = "noise", seed: int = 0) -> torch.Tensor:
    generator = torch_generator(seed, kind, str(shape))
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "zero":
        return torch.zeros(shape, dtype=torch.float64)
    if kind == "constant":
        return torch.full(shape, 0.25, dtype=torch.float64)
    if kind == "deficient":
        return torch.outer(noise[:, 0], noise[0]) + torch.outer(noise[:, -1], noise[-1])
    if kind == "graded":
        u, _, v = torch.linalg.svd(noise, full_matrices=False)
        return u * torch.logspace(0, -14, min(shape), dtype=torch.float64) @ v
    if kind == "repeated":
        u, _, v = torch.linalg.svd(noise, full_matrices=False)
        return 3 * u @ v
    return noise


KINDS = ("noise", "zero", "constant", "deficient", "graded", "repeated")
SHAPES = ((1, 1), (1, 9), (9, 1), (7, 7), (40, 12), (12, 40), (130, 90))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_factors_equal_a_float64_svd(kind, shape):
    weight = matrix(shape, kind)
    keep = max(1, min(shape) // 2)
    found, values = spectrum.factorise(weight, keep), torch.linalg.svdvals(weight)
    scale = float(values[0]) or 1.0
    assert float((found.values - values).abs().max()) <= 1e-10 * scale
    for basis in (found.left, found.right):
        eye = torch.eye(basis.shape[1], dtype=torch.float64)
        assert float((basis.T @ basis - eye).abs().max()) < 1e-10
    kept = min(found.left.shape[1], found.rank)
    product = found.left[:, :kept].T @ weight @ found.right[:, :kept]
    assert torch.allclose(product, torch.diag(values[:kept]), atol=1e-8 * scale)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_gram_is_the_lower_triangle_of_the_short_side(out, into, seed):
    weight = torch.randn(out, into, generator=torch_generator(seed, "gram"), dtype=torch.float64)
    literal = weight.T @ weight if out >= into else weight @ weight.T
    assert torch.allclose(spectrum.gram(weight).tril(), literal.tril())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (64, 64)])
@pytest.mark.parametrize("scale", [1e-4, 0.0])
def test_difference_has_the_singular_values_of_the_step(dtype, shape, scale):
    before = (matrix(shape) * 0.02).to(dtype)
    after = (before.double() + scale * matrix(shape, seed=1)).to(dtype)
    literal = torch.linalg.svdvals(after.double() - before.double())
    found, _ = difference(after, before)
    assert torch.allclose(found, literal, atol=1e-6 * (float(literal[0]) or 1.0), rtol=1e-5)


def test_difference_with_a_tail_that_float32_would_drown():
    before = torch.zeros(200, 20).bfloat16()
    after = torch.zeros(200, 20).bfloat16()
    after[torch.arange(20), torch.arange(20)] = torch.logspace(0, -5, 20).bfloat16()
    found, _ = difference(after, before)
    literal = torch.linalg.svdvals(after.double())
    assert torch.allclose(found, literal, rtol=1e-5)


def test_numbers_of_a_spectrum_by_hand():
    before, after = (
        torch.tensor([3.0, 4.0, 0.0]).double().sort(descending=True).values,
        torch.tensor([5.0, 3.0, 0.0]).double(),
    )
    assert spectrum.nss(before, after) == pytest.approx(1 / 5)
    assert spectrum.ky_fan(before, after).tolist() == [1.0, 1.0, 1.0]
    assert spectrum.residual(before, after, 2.0) == 0.5
    assert spectrum.kappa_spec(0.5, (8, 4)) == 2.0
    assert spectrum.stable_rank(before) == pytest.approx(25 / 16)
    assert spectrum.rank_at(before) == 2
    assert spectrum.rank_of_energy(before, 0.6) == 1
    assert spectrum.gap(before, 1) == 1.0
    even = torch.ones(4).double()
    assert spectrum.entropy_rank(even) == pytest.approx(4.0)


def test_kappa_of_small_isotropic_noise_is_about_one():
    weight, step = matrix((384, 256)), matrix((384, 256), seed=1) * 1e-3
    before, after = (torch.linalg.svdvals(w) for w in (weight, weight + step))
    kappa = spectrum.kappa_spec(spectrum.residual(before, after, float(step.norm())), (384, 256))
    assert 0.8 < kappa < 1.25


@given(st.integers(2, 12), st.integers(2, 12), st.floats(1e-6, 10.0), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_bounds_of_definitions_3_hold_and_a_lie_is_found(out, into, scale, seed):
    weight, step = matrix((out, into), seed=seed), scale * matrix((out, into), seed=seed + 1)
    before, after, delta = (torch.linalg.svdvals(w) for w in (weight, weight + step, step))
    assert spectrum.broken_bounds(before, after, delta) == []
    assert spectrum.broken_bounds(before, before + 3 * float(delta.norm()) + 1, delta) != []


def test_eigenvectors_that_do_not_fit_are_refused(monkeypatch):
    """What an accelerator may do: nonsense, vectors that are not orthonormal, or giving up. Then the CPU does it."""
    square = spectrum.gram(matrix((30, 20)))
    values, vectors = torch.linalg.eigh(square)
    assert _gram.checked(square) is not None
    for wrong in ((values + 1e-3, vectors), (values, vectors * 1.001), (values, vectors.flip(1))):
        monkeypatch.setattr(torch.linalg, "eigh", lambda _, wrong=wrong: wrong)
        assert _gram.checked(square) is None

    def fails(_):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    assert _gram.checked(square) is None
    monkeypatch.undo()
    monkeypatch.setattr(_gram, "checked", lambda _: None)
    assert torch.equal(spectrum.eigen(square)[0], values.flip(0))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1536, 1536), (2304, 768), (768, 2304)])
@pytest.mark.parametrize("kind", ["noise", "graded"])
def test_accuracy_at_the_size_of_a_real_matrix(shape, kind):
    """Values within 1e-10 s_1, angles within 1e-7 rad of those between the twin's bases, with outliers at the top."""
    before = (matrix(shape, kind) + 0.3 * torch.outer(matrix((shape[0], 1)).flatten(), torch.ones(shape[1]))) * 0.02
    before = before.bfloat16()
    after = (before.float() + 1e-4 * matrix(shape, seed=1).float()).bfloat16()
    found, twins = [], []
    for weight in (before, after):
        found.append(spectrum.factorise(weight, 384))
        u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
        twins.append((u[:, :384], v[:384].T))
        assert float((found[-1].values - s).abs().max()) <= 1e-10 * float(s[0])
    sizes = [k for k in (16, 64, 128, 384) if not angles.gap_closed(found[0].values, found[1].values, k)]
    assert len(sizes) >= (4 if kind == "noise" else 1)
    for side, name in enumerate(("left", "right")):
        ours = angles.nested_angles(getattr(found[0], name), getattr(found[1], name), sizes)
        for k in sizes:
            literal = np.sort(scipy.linalg.subspace_angles(*(t[side][:, :k].numpy() for t in twins)))
            assert float(np.abs(ours[k].sort().values.numpy() - literal).max()) <= 1e-7
