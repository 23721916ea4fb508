"""Answers and their probabilities on few tokens: what the laboratory spends its time on.

What it is: sampling and scoring in which a prompt is read once for all its answers, finished answers are dropped,
answers are scored beside others of their length, and those without an advantage not at all. The numbers are those of
transformers and TRL, up to the order of sums, for about a third of the arithmetic; tests hold them against both. What
it is not: an engine for models or answers that do not fit one batch.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Trainer

CHUNK = 96  # answers of about one length that are scored together


@torch.no_grad()
def sample(model: Any, prompts: Sequence[Sequence[int]], copies: int, longest: int, end: int) -> list[list[int]]:
    """Sample `copies` answers to each prompt at temperature 1 over the whole vocabulary.

    Args:
        model: a decoder, or PEFT's model around one. Draws come from torch's global generator.
        prompts: token ids of each prompt.
        copies: answers to each.
        longest: tokens of an answer at most.
        end: the token that ends one; it is the last of a finished answer.

    Returns:
        The answers in the order of the prompts, those of one prompt together.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[end] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    rows = torch.arange(len(prompts), device=model.device).repeat_interleave(copies)
    logits, cache = _read(model, ids, seen)
    logits, cache, seen = logits[rows], _taken(model, cache, rows), seen[rows]
    answers: list[list[int]] = [[] for _ in rows]
    alive = torch.arange(len(answers), device=model.device)
    for left in reversed(range(longest)):
        tokens = torch.multinomial(logits.float().softmax(-1), 1)
        for row, token in zip(alive.tolist(), tokens[:, 0].tolist(), strict=True):
            answers[row].append(token)
        unfinished = (tokens[:, 0] != end).nonzero()[:, 0]
        if not left or not len(unfinished):
            break
        alive, tokens = alive[unfinished], tokens[unfinished]
        seen = pad(seen[unfinished], (0, 1), value=1)
        cache.batch_select_indices(unfinished)
        logits = _logits(model, tokens, seen, cache)[:, -1]
    return answers


def score(model: Any, ids: Tensor, seen: Tensor, longest: int) -> Tensor:
    """Logits that the model gives before each token of the answers [answers, longest, vocabulary], with derivatives.

    Args:
        model: a decoder, or PEFT's model around one.
        ids: [answers, tokens] prompts padded left and, in the last `longest` places, answers padded right.
        seen: [answers, tokens] nonzero where `ids` is text.
        longest: tokens of the longest answer.

    Returns:
        In the arithmetic of the model; zeros behind an answer.
    """
    prompts, of = torch.unique(ids[:, :-longest] * seen[:, :-longest], dim=0, return_inverse=True)
    first = torch.zeros(len(prompts), dtype=torch.long, device=ids.device).scatter(
        0, of, torch.arange(len(ids), device=ids.device)
    )
    read = seen[first, :-longest].long()
    start = int(read.any(0).nonzero()[0])
    before, cache = _read(model, prompts[:, start:], read[:, start:])
    lengths = seen[:, -longest:].sum(-1)
    order = lengths.argsort(stable=True)
    found = []
    for rows in order.split(CHUNK):
        width = int(lengths[rows].max())
        logits = before[of[rows], None]
        if width > 1:
            known = torch.cat([read[of[rows], start:], seen[rows, -longest : width - longest - 1 or None].long()], 1)
            tokens = ids[rows, -longest : width - longest - 1 or None]
            later = _logits(model, tokens, known, _taken(model, cache, of[rows]))
            logits = torch.cat([logits, later], 1)
        inside = seen[rows, -longest:][:, :width, None].bool()
        found.append(pad(logits.where(inside, 0), (0, 0, 0, longest - width)))
    return torch.cat(found)[order.argsort()]


def _read(model: Any, ids: Tensor, seen: Tensor) -> tuple[Tensor, Any]:
    """Logits behind the prompts [prompts, vocabulary], and their keys and values."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    return _logits(model, ids, seen, cache, logits_to_keep=1)[:, -1], cache


def _logits(model: Any, ids: Tensor, seen: Tensor, cache: Any, **options: Any) -> Tensor:
    """Logits behind these tokens [rows, tokens, vocabulary]; their keys and values go into the cache.

    `seen` covers what the cache holds and these tokens.
    """
    places = (seen.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    given = {"input_ids": ids, "attention_mask": seen, "position_ids": places, "past_key_values": cache}
    return model(**given, use_cache=True, **options).logits


def _taken(model: Any, cache: Any, rows: Tensor) -> Any:
    """A new cache of these rows; derivatives flow back into the old one."""
    from transformers import DynamicCache

    taken = DynamicCache(config=model.config)
    for number, layer in enumerate(cache.layers):
        taken.update(layer.keys[rows], layer.values[rows], number)
    return taken


def lighten(trainer: "Trainer") -> None:
    """Let a GRPO trainer of TRL score with `score`, and only the answers that have an advantage.

    The loss is summed over tokens and divided by a number that TRL takes before, so an answer without an advantage
    adds exactly nothing to it or to its gradient. The entropy that TRL logs is then that of the others.
    """
    grpo: Any = trainer
    loss = grpo._compute_loss

    def compute_loss(model: Any, inputs: dict[str, Any]) -> Tensor:
        advantages = inputs["advantages"]
        rows = advantages.nonzero()[:, 0] if advantages.any() else torch.arange(1, device=advantages.device)
        kept = {
            name: value[rows] if isinstance(value, Tensor) and value.shape[:1] == advantages.shape[:1] else value
            for name, value in inputs.items()
        }
        return loss(model, kept)

    def log_probabilities(
        model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *_: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None, None]:
        with grpo.accelerator.autocast():
            logits = score(model, input_ids, attention_mask, logits_to_keep)
        log_p = logits.float().log_softmax(-1)
        seen = attention_mask[:, -logits_to_keep:].bool()
        chosen = log_p.gather(-1, input_ids[:, -logits_to_keep:, None])[..., 0].where(seen, 0)
        entropies = -(log_p.detach().exp() * log_p.detach()).sum(-1) if options.get("compute_entropy") else None
        return chosen, entropies, None

    grpo._compute_loss, grpo._get_per_token_logps_and_entropies = compute_loss, log_probabilities


def rollouts(tokenizer: "PreTrainedTokenizerFast", copies: int, longest: int, end: int) -> Callable[..., dict]:
    """`sample` as TRL's ``rollout_func``, which gets every prompt `copies` times in a row."""

    def roll(prompts: list[str], trainer: Any) -> dict[str, Any]:
        ids = tokenizer(prompts).input_ids
        answers = sample(trainer.accelerator.unwrap_model(trainer.model), ids[::copies], copies, longest, end)
        return {"prompt_ids": ids, "completion_ids": answers, "logprobs": None}

    return roll
