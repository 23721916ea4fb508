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

BUDGET = 1 << 25
"""Logits that exist at once, 128 MB in float32: positions are taken so many at a time (*ours*, measured: at a
vocabulary of 51,200 the whole costs 1.18 times two bare passes, with half the budget 1.25 times)."""

TILE = 1 << 21
"""Bytes of each of three float64 arrays of `divergences` (*ours*): they stay in the cache and are never fresh memory,
whose first touch costs more than the arithmetic (measured: 3 to 4 times)."""


def divergences(
    first: Float[Tensor, "position vocabulary"], second: Float[Tensor, "position vocabulary"]
) -> Float[Tensor, "position 3"]:
    """``KL(p||q)``, ``KL(q||p)`` and total variation ``sum |p - q| / 2`` at each position, float64.

    Args:
        first: logits of p, any floating dtype, finite.
        second: logits of q, the same shape.

    Returns:
        Nats, nats, and a share of 0..1. Equal logits give exactly zero. Absolute accuracy is a few 1e-16 times the
        largest difference of logits, so a divergence below about 1e-14 is rounding and may come out negative.

    Source: DEFINITIONS section 4, PNT section 5.1. Left out: the forms that estimate a KL from samples.

    >>> p, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986122886681098]])  # (1/2, 1/2) and (1/4, 3/4)
    >>> [round(x, 4) for x in divergences(p, q)[0].tolist()]
    [0.1438, 0.1308, 0.25]
    """
    count, vocabulary = first.shape
    rows = max(1, min(count, TILE // (8 * vocabulary)))
    held = torch.empty(3, rows, vocabulary, dtype=torch.float64, device=first.device)
    found = torch.empty(count, 3, dtype=torch.float64, device=first.device)
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        _tile(first[part], second[part], held[:, : len(first[part])], found[part])
    return found


def _tile(first: Tensor, second: Tensor, held: Tensor, found: Tensor) -> None:
    """A few positions, in place: for logits a, b and ``Z = sum exp``, ``KL = E_p[a - b] - log(Z_p / Z_q)``.

    The logits are widened by copies: torch's copy has a vector loop for that, its mixed subtraction has not.
    """
    p, q, gap = held
    p.copy_(first)
    q.copy_(second)
    torch.sub(p, q, out=gap)
    tops = [logits.amax(-1, keepdim=True).double() for logits in (first, second)]
    sizes = [own.sub_(top).exp_().sum(-1) for own, top in zip((p, q), tops, strict=True)]
    ratio = sizes[0] / sizes[1]
    shift = ratio.log() + (tops[0] - tops[1])[:, 0]
    found[:, 0] = torch.linalg.vecdot(p, gap) / sizes[0] - shift
    found[:, 1] = shift - torch.linalg.vecdot(q, gap) / sizes[1]
    torch.addcmul(p, q, -ratio[:, None], out=gap)
    found[:, 2] = gap.abs_().sum(-1) / sizes[0] / 2


def pieces(positions: int, vocabulary: int) -> Iterator[slice]:
    """Positions so many at a time that they have at most `BUDGET` logits, at least one.

    >>> [(piece.start, piece.stop) for piece in pieces(5, 1 << 24)]
    [(0, 2), (2, 4), (4, 6)]
    """
    step = max(1, BUDGET // vocabulary)
    for start in range(0, positions, step):
        yield slice(start, start + step)
