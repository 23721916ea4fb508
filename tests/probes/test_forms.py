"""Quadratic forms against the explicit Hessian and Fisher matrix of a tiny model."""

import pytest
import torch
from torch.func import functional_call, hessian, jacrev

from offprincipal.probes import forms
from offprincipal.probes.texts import Text, padded
from offprincipal.probes.wide import Wide
from tests.probes.conftest import loaded

NAME = "model.layers.1.self_attn.k_proj.weight"  # 8 x 16
TEXTS = [Text((3, 4, 5, 6), 1, 0), Text((7, 8, 9), 2, 1)]


@pytest.fixture(scope="module", params=["qwen3", "gemma2"])
def tiny(request, tmp_path_factory):
    from tests.probes.conftest import make_model

    folder = tmp_path_factory.mktemp("forms") / request.param
    extra = {"final_logit_softcapping": 3.0} if request.param == "gemma2" else {}
    return loaded(make_model(folder, family=request.param, **extra), dtype=torch.float64, derivatives=True)


def logits(model, weights, text):
    ids = torch.tensor([text.ids])
    return functional_call(model.module, weights, (), {"input_ids": ids, "use_cache": False}).logits[0]


def nll(model, weights):
    total = 0.0
    for text in TEXTS:
        log_p = logits(model, weights, text).log_softmax(-1)
        total = total - sum(log_p[i - 1, text.ids[i]] for i in range(text.first, len(text.ids)))
    return total


def explicit_fisher(model, name):
    """sum over positions of J' (diag p - p p') J, from the whole Jacobian of the logits."""
    weight = model.weights()[name]
    total, empirical = 0.0, 0.0
    for text in TEXTS:
        jacobian = jacrev(lambda w, text=text: logits(model, {name: w}, text))(weight).flatten(2)
        p = logits(model, {}, text).softmax(-1)
        for i in range(text.first, len(text.ids)):
            j, q = jacobian[i - 1], p[i - 1]
            total = total + j.T @ (torch.diag(q) - torch.outer(q, q)) @ j
            score = j[text.ids[i]] - q @ j
            empirical = empirical + torch.outer(score, score)
    return total, empirical


def test_both_forms_equal_the_explicit_matrices(tiny):
    directions = torch.randn(3, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with Wide():
        found = forms.curvature(tiny, padded(TEXTS), {NAME: directions})
        matrix = hessian(lambda w: nll(tiny, {NAME: w}))(tiny.weights()[NAME]).reshape(128, 128)
        fisher, _ = explicit_fisher(tiny, NAME)
    for i, v in enumerate(directions.flatten(1)):
        assert float(found.hessian[i]) == pytest.approx(float(v @ matrix @ v), rel=1e-9)
        assert float(found.fisher[i]) == pytest.approx(float(v @ fisher @ v), rel=1e-9)


def test_a_linear_head_and_any_head_give_the_same(folders, monkeypatch):
    v = {NAME: torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(4))}
    model = loaded(folders["base"], derivatives=True)
    short = forms.curvature(model, padded(TEXTS), v)
    monkeypatch.setattr(model, "linear_head", False)
    whole = forms.curvature(model, padded(TEXTS), v)
    assert torch.allclose(short.fisher, whole.fisher, rtol=1e-5)
    assert torch.allclose(short.hessian, whole.hessian, rtol=1e-4)


def test_directions_through_several_matrices_at_once(tiny):
    other = "model.layers.0.mlp.up_proj.weight"
    both = {
        name: torch.randn(
            2, *tiny.weights()[name].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        for name in (NAME, other)
    }
    step = 1e-4
    with Wide():
        found = forms.curvature(tiny, padded(TEXTS), both)

        def moved(e):
            return float(nll(tiny, {name: tiny.weights()[name] + e * v[0] for name, v in both.items()}))

        second = (moved(step) - 2 * moved(0.0) + moved(-step)) / step**2
    assert float(found.hessian[0]) == pytest.approx(second, rel=1e-4)


def test_the_fisher_terms_of_any_weight_exact_and_empirical(tiny):
    for name in (NAME, "model.norm.weight", "lm_head.weight" if "lm_head.weight" in tiny.weights() else NAME):
        weight = tiny.weights()[name]
        v = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        with Wide():
            exact, empirical = forms.fisher_terms(tiny, padded(TEXTS), {name: v})
            fisher, scores = explicit_fisher(tiny, name)
        assert float(exact.sum()) == pytest.approx(float(v.flatten() @ fisher @ v.flatten()), rel=1e-9)
        assert float(empirical.sum()) == pytest.approx(float(v.flatten() @ scores @ v.flatten()), rel=1e-9)
        assert len(exact) == 4


def test_pieces_and_precision_change_nothing_that_matters(folders, monkeypatch):
    v = {NAME: torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(3))}
    model = loaded(folders["base"], derivatives=True)
    whole = forms.curvature(model, padded(TEXTS), v)
    monkeypatch.setattr("offprincipal.probes.divergence.BUDGET", 1)  # one position at a time
    pieces = forms.curvature(model, padded(TEXTS), v)
    assert torch.allclose(whole.fisher, pieces.fisher, rtol=1e-5)
    assert torch.allclose(whole.hessian, pieces.hessian, rtol=1e-4)
    wide = loaded(folders["base"], derivatives=True, dtype=torch.float64)
    with Wide():
        exact = forms.curvature(wide, padded(TEXTS), {NAME: v[NAME].double()})
    assert torch.allclose(whole.fisher, exact.fisher, rtol=1e-4)
    assert torch.allclose(whole.hessian, exact.hessian, rtol=1e-3)
