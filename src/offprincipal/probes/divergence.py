"""How far two next-token distributions are apart, exact over the vocabulary. Logits in, a row of numbers per position.

What it is: both Kullback-Leibler divergences and the total variation, in float64, whatever the logits come in. What it
is not: an estimate; nothing is sampled and no token is left out.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

NAMES = ("kl_tuned_base", "kl_base_tuned", "tv")
"""The columns of `divergences` when the first logits are the tuned model's."""

BUDGET = 1 << 24
"""Bytes of one float64 array of logits: positions are taken so many at a time that this holds (*ours*, measured)."""


def divergences(
    first: Float[Tensor, "position vocabulary"], second: Float[Tensor, "position vocabulary"]
) -> Float[Tensor, "position 3"]:
    """``KL(p||q)``, ``KL(q||p)`` and total variation ``sum |p - q| / 2`` at each position, float64.

    Args:
        first: logits of p, any floating dtype, finite.
        second: logits of q, the same shape.

    Returns:
        Nats, nats, and a share of 0..1. Equal logits give exactly zero. Absolute accuracy is a few 1e-16 times the
        largest ``|log p|``, so a divergence below about 1e-14 is rounding and may come out negative.

    Source: DEFINITIONS section 4, PNT section 5.1. Left out: the forms that estimate a KL from samples.

    >>> p, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986122886681098]])  # (1/2, 1/2) and (1/4, 3/4)
    >>> [round(x, 4) for x in divergences(p, q)[0].tolist()]
    [0.1438, 0.1308, 0.25]
    """
    log_p, log_q = first.double().log_softmax(-1), second.double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_p -= log_q  # from here on the log ratio
    forward, backward = torch.linalg.vecdot(p, log_p), -torch.linalg.vecdot(q, log_p)
    return torch.stack([forward, backward, (p - q).abs().sum(-1) / 2], -1)


def pieces(positions: int, vocabulary: int) -> Iterator[slice]:
    """Positions so many at a time that a float64 array of their logits stays within `BUDGET`, at least one.

    >>> [(piece.start, piece.stop) for piece in pieces(5, 1 << 20)]
    [(0, 2), (2, 4), (4, 6)]
    """
    step = max(1, BUDGET // (8 * vocabulary))
    for start in range(0, positions, step):
        yield slice(start, start + step)
