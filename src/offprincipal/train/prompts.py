"""What a model expects after every token of a few fixed texts, and the KL between two such expectations.

What it is: Gate I watched during training, exact over the vocabulary, without a second model on the accelerator: only
log-probabilities are kept, on the CPU. What it is not: the KL on freshly sampled answers (``probes``, the laboratory's
``judge``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

POSITIONS = 256
"""Tokens scored by default (*ours*): with a vocabulary of 152,000 one set of log-probabilities takes 156 MB."""

AT_ONCE = 64  # positions widened to float64 together


@dataclass(frozen=True)
class Prompts:
    """A few texts as tokens, and how many positions at the end of each are scored (an answer stands at the end).

    Attributes:
        texts: token ids of each text.
        scored: last positions of each text that count; fewer where a text is shorter.
    """

    texts: tuple[tuple[int, ...], ...]
    scored: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], positions: int = POSITIONS) -> "Prompts":
        """Texts of which at most so many positions are scored in all, as many of each; at least one.

        >>> Prompts.of([[5, 6, 7], [8, 9]], positions=5).scored
        2
        """
        texts = tuple(tuple(map(int, row)) for row in rows if len(row))
        return cls(texts, max(1, positions // max(1, len(texts))))

    @torch.no_grad()
    def log_probabilities(self, model: nn.Module) -> Tensor:
        """The model's log-probabilities of the next token at every scored position [positions, vocabulary].

        Float32 on the CPU. One text at a time in evaluation mode, in the arithmetic that the model trains in; the
        softmax in float32. The mode of the model is restored.
        """
        device, training = _device(model), model.training
        model.eval()
        try:
            return torch.cat([self._of_one(model, text, device) for text in self.texts])
        finally:
            model.train(training)

    def _of_one(self, model: nn.Module, text: tuple[int, ...], device: torch.device) -> Tensor:
        ids = torch.tensor([text], device=device)
        output: Any = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return output.logits[0, -self.scored :].float().log_softmax(-1).cpu()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def mean_kl(log_p: Tensor, log_q: Tensor, device: str | torch.device = "cpu") -> float:
    """KL(p || q) in nats, averaged over the positions.

    Args:
        log_p: [positions, vocabulary], float32 log-probabilities.
        log_q: the same of the other model.
        device: where the sum is taken, a few positions at a time, in float64.

    Summed as ``p (expm1(r) - r)`` with ``r = log q - log p``, which equals KL because both sum to one. Every term is
    at least zero, and the rounding of the stored logarithms enters squared: a step of 1e-6 is still seen.

    >>> round(mean_kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()), 6)
    0.143841
    """
    total = 0.0
    for start in range(0, len(log_p), AT_ONCE):
        p, q = (side[start : start + AT_ONCE].to(device).double() for side in (log_p, log_q))
        r = q - p
        terms = torch.where(p == -torch.inf, q.exp(), p.exp() * (r.expm1() - r))  # the limit where p rules a token out
        total += float(terms.sum())
    return total / len(log_p)
