"""Quadratic forms of the loss along directions in weight space: ``v' F v`` and ``v' H v``, summed over scored tokens.

What it is: forward-mode derivatives of the logits along v, first and second order, and a closed form on top of them.
No graph is kept, no product ``H v`` is stored, and logits are met a few positions at a time. What it is not: an
eigenvalue solver, or an approximation (no sampling of labels, no Kronecker factors).

With z(e) the logits at ``W + e v``, p their softmax and y the next token, per position
    Fisher / Gauss-Newton   Var_p(z')                          F = E_p[grad log p grad log p'], PNT F.5
    Hessian                 Var_p(z') + E_p[z''] - z''_y       of the NLL of y
    empirical Fisher        (z'_y - E_p[z'])^2                 labels from the text instead of from p
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap

from offprincipal.probes.divergence import pieces
from offprincipal.probes.models import Model, Parameters
from offprincipal.probes.texts import Batch

ARRAYS = 8
"""Arrays of logits that the forms hold at once, by the budget of `pieces`."""


@dataclass(frozen=True)
class Forms:
    """Sums over the scored tokens of a batch, one per direction, float64.

    Attributes:
        fisher: ``v' F v``, exact over the vocabulary; for a softmax also the Gauss-Newton form.
        hessian: ``v' H v`` of the negative log-likelihood.
    """

    fisher: Tensor
    hessian: Tensor


def slope(function: Callable[[Any], Any], at: Any, along: Any) -> tuple[Any, Any]:
    """A function's value and its derivative along a direction, by forward-mode differentiation.

    >>> slope(lambda x: x * x, torch.tensor(3.0), torch.tensor(1.0))
    (tensor(9.), tensor(6.))
    """
    _load_rules()
    value, derivative = jvp(function, (at,), (along,))[:2]
    return value, derivative


@cache
def _load_rules() -> None:
    """Torch loads its forward-mode rules on first use, and warns of its own deprecated compiler while it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


def curvature(model: Model, batch: Batch, directions: Mapping[str, Tensor]) -> Forms:
    """Both forms along several directions in weights below the head.

    Args:
        model: loaded with ``derivatives=True``.
        batch: text; its scored tokens are the labels.
        directions: parameter name to [direction, *shape of the parameter], in the model's dtype.

    Source: the closed forms of the module's text. Left out: directions in the head itself (`fisher_terms` has them).
    """
    at = batch.scored.flatten().nonzero().flatten()
    own = model.weights()
    point = {name: own[name] for name in directions}

    def body(weights: Parameters) -> Tensor:
        return model.hidden(batch.ids, batch.seen, weights)[:, :-1].flatten(0, 1)[at]

    def twice(along: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        (hidden, first), (_, second) = slope(lambda w: slope(body, w, along), point, along)
        return hidden, first, second

    hidden, first, second = vmap(twice, out_dims=(None, 0, 0))(dict(directions))  # pyright: ignore[reportArgumentType]
    count, following = len(first), batch.following
    fisher, hessian = torch.zeros(2, count, dtype=torch.float64, device=hidden.device)
    for piece in pieces(len(at), ARRAYS * model.vocabulary * count):
        u, bend = _slopes(model, hidden[piece], first[:, piece], second[:, piece])
        p, u, bend = model.logits(hidden[piece]).double().softmax(-1), u.double(), bend.double()
        spread = _variance(p, u)
        bent = (p * bend).sum(-1) - bend.gather(-1, following[piece].expand(count, -1)[..., None])[..., 0]
        fisher += spread.sum(-1)
        hessian += (spread + bent).sum(-1)
    return Forms(fisher, hessian)


def _slopes(model: Model, hidden: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of the logits, [direction, position, vocabulary], along ``hidden + e first + e^2 / 2 second``."""
    if model.linear_head:  # most are: four products with a large matrix less
        u, bend = (model.logits(each.flatten(0, 1)).unflatten(0, each.shape[:2]) for each in (first, second))
        return u, bend
    return vmap(partial(_slopes_along, model, hidden))(first, second)


def _slopes_along(model: Model, hidden: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The same for one direction and any head."""
    nought, one = hidden.new_zeros(()), hidden.new_ones(())

    def path(e: Tensor) -> Tensor:
        return model.logits(hidden + e * first + e * e / 2 * second)

    return slope(lambda e: slope(path, e, one)[1], nought, one)


def _variance(p: Tensor, u: Tensor) -> Tensor:
    centred = u - (p * u).sum(-1, keepdim=True)
    return (p * centred.square()).sum(-1)


def fisher_terms(model: Model, batch: Batch, direction: Parameters) -> tuple[Tensor, Tensor]:
    """``v' F v`` at every scored token along one direction in any weights: exact, and empirical. Float64 [position].

    Args:
        model: loaded with ``derivatives=True``.
        batch: text; its scored tokens are the labels of the empirical form.
        direction: parameter name to tensor, in the model's dtype; tied parameters under one name.
    """
    at = batch.scored.flatten().nonzero().flatten()
    own = model.weights()
    point = {name: own[name] for name in direction}

    def body(weights: Parameters) -> Tensor:
        return model.hidden(batch.ids, batch.seen, weights)[:, :-1].flatten(0, 1)[at]

    hidden, moved = slope(body, point, dict(direction))
    exact, empirical = [], []
    for piece in pieces(len(at), ARRAYS * model.vocabulary):
        start, along = (hidden[piece], point), (moved[piece], dict(direction))
        logits, u = slope(lambda at: model.logits(*at), start, along)
        p, u = logits.double().softmax(-1), u.double()
        exact.append(_variance(p, u))
        score = u.gather(-1, batch.following[piece][:, None])[:, 0] - (p * u).sum(-1)
        empirical.append(score.square())
    return torch.cat(exact), torch.cat(empirical)
