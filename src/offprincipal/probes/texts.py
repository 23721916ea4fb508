"""The text that a probe looks at: a prompt file as token ids, or continuations sampled from a model.

What it is: ids, and which of them are scored. What it is not: chat templates; write the prompt as the model is to see
it. A prompt and its completion are tokenised apart, so that the border between them is where the file puts it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offprincipal.errors import InputError
from offprincipal.measures.seeds import torch_generator
from offprincipal.probes.models import Model


@dataclass(frozen=True)
class Text:
    """Token ids of one text, scored from one of them on.

    Attributes:
        ids: all tokens.
        first: the first scored one, at least 1: it is predicted by the tokens before it.
        prompt: the number of its prompt, from 0: the unit of resampling.
    """

    ids: tuple[int, ...]
    first: int
    prompt: int


@dataclass(frozen=True)
class Batch:
    """Texts of similar length, padded on the right.

    Attributes:
        texts: the texts, longest first.
        ids: [text, token].
        seen: [text, token], false on padding.
        scored: [text, token - 1], true where the token that follows is scored.
    """

    texts: tuple[Text, ...]
    ids: Tensor
    seen: Tensor
    scored: Tensor

    @property
    def following(self) -> Tensor:
        """The scored tokens, text by text: [position]."""
        return self.ids[:, 1:][self.scored]


def padded(texts: Sequence[Text], device: str = "cpu") -> Batch:
    """One batch of these texts.

    >>> padded([Text((5, 6, 7), 2, 0), Text((5, 6), 1, 1)]).scored.tolist()
    [[False, True], [True, False]]
    """
    longest = max(len(text.ids) for text in texts)
    ids = torch.tensor([[*text.ids, *[0] * (longest - len(text.ids))] for text in texts], device=device)
    at = torch.arange(longest, device=device)
    ends, firsts = (
        torch.tensor([take(text) for text in texts], device=device)[:, None]
        for take in (lambda text: len(text.ids), lambda text: text.first)
    )
    return Batch(tuple(texts), ids, at < ends, ((at >= firsts) & (at < ends))[:, 1:])


def batches(texts: Sequence[Text], size: int, device: str = "cpu") -> Iterator[Batch]:
    """All texts, longest first, so many at a time."""
    ordered = sorted(texts, key=lambda text: -len(text.ids))
    for start in range(0, len(ordered), size):
        yield padded(ordered[start : start + size], device)


def read_texts(file: str | Path, tokenizer: Any) -> list[Text]:
    """The texts of a prompt file.

    ``.jsonl``: one object per line with ``prompt`` and, if it has one, ``completion`` (strings); with a completion its
    tokens alone are scored, else every token of the prompt but the first. Any other name: one prompt per line, empty
    lines skipped.

    Raises:
        InputError: the file cannot be read, holds nothing, or a line is no prompt or too short to be scored.
    """
    asked = f"read prompts from {str(file)!r}"
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise InputError(asked, reason, "give a .txt or .jsonl file in UTF-8") from problem
    as_json = Path(file).suffix == ".jsonl"
    found = [
        _text(_fields(line, asked, number) if as_json else (line, None), tokenizer, asked, number)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise InputError(asked, "it holds no prompt", "write one per line")
    return [Text(ids, first, prompt) for prompt, (ids, first) in enumerate(found)]


def _fields(line: str, asked: str, number: int) -> tuple[str, str | None]:
    try:
        given = json.loads(line)
    except ValueError as problem:
        raise InputError(asked, f"line {number} is not JSON ({problem})", "write one object per line") from None
    prompt, completion = (given.get("prompt"), given.get("completion")) if isinstance(given, dict) else (None, None)
    if not isinstance(prompt, str) or not isinstance(completion, str | None):
        found = f"line {number} has no string 'prompt' (with a string 'completion' or none)"
        raise InputError(asked, found, 'write {"prompt": "...", "completion": "..."}')
    return prompt, completion


def _text(fields: tuple[str, str | None], tokenizer: Any, asked: str, number: int) -> tuple[tuple[int, ...], int]:
    prompt, completion = fields
    ids = tuple(tokenizer(prompt).input_ids)
    first = 1
    if completion is not None:
        first, ids = len(ids), ids + tuple(tokenizer(completion, add_special_tokens=False).input_ids)
    if not first or len(ids) <= first:
        found = f"line {number} has no token to score after another one"
        raise InputError(asked, found, "give at least two tokens, or a prompt with a completion")
    return ids, first


def prompts_of(texts: Sequence[Text]) -> list[tuple[int, ...]]:
    """What a continuation is to follow: a prompt without its completion, if it has one."""
    return [text.ids if text.first == 1 else text.ids[: text.first] for text in texts]


def check_ids(texts: Sequence[Text], vocabulary: int, longest: int | None, asked: str) -> None:
    """Raise where a model cannot take these texts.

    Raises:
        InputError: a token beyond the vocabulary, or a text beyond the model's positions.
    """
    for text in texts:
        if max(text.ids) >= vocabulary:
            found = (
                f"prompt {text.prompt + 1} holds token {max(text.ids)}; the model's vocabulary ends at {vocabulary}"
            )
            raise InputError(asked, found, "give the tokenizer's own model")
        if longest is not None and len(text.ids) > longest:
            found = f"prompt {text.prompt + 1} has {len(text.ids)} tokens, and the model has {longest} positions"
            raise InputError(asked, found, "shorten it")


@torch.no_grad()
def sample(
    model: Model,
    prompts: Sequence[tuple[int, ...]],
    each: int,
    *,
    ends: Sequence[int],
    longest: int,
    seed: int,
    size: int = 32,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Text]:
    """Continuations drawn from the model itself: temperature 1, the whole vocabulary, no penalty.

    Args:
        model: what is sampled from.
        prompts: token ids, none empty.
        each: continuations of each prompt.
        ends: tokens that end a text; the end is part of it and is scored.
        longest: tokens of a continuation at most.
        seed: each continuation draws from a stream of its own, so it does not depend on what else is sampled.
        size: continuations at a time.
        progress: called after each batch.

    Returns:
        ``each`` texts per prompt, scored from the first sampled token on.

    The draw inverts the distribution function in float64: the first token whose cumulative probability exceeds a
    uniform number. transformers' ``generate`` keeps the cache and the positions; that token is its only choice.
    """
    work = [(number, copy) for number in range(len(prompts)) for copy in range(each)]
    found = []
    for start in range(0, len(work), size):
        part = work[start : start + size]
        uniforms = torch.stack([_uniforms(seed, number, copy, longest) for number, copy in part])
        written = _continue(model, [prompts[number] for number, _ in part], uniforms, ends)
        for (number, _), new in zip(part, written, strict=True):
            found.append(Text((*prompts[number], *new), len(prompts[number]), number))
        if progress:
            progress(min(start + size, len(work)), len(work), "sampling")
    return found


def _uniforms(seed: int, number: int, copy: int, longest: int) -> Tensor:
    generator = torch_generator(seed, "continuation", str(number), str(copy))
    return torch.rand(longest, dtype=torch.float64, generator=generator)


def _continue(
    model: Model, prompts: Sequence[tuple[int, ...]], uniforms: Tensor, ends: Sequence[int]
) -> list[list[int]]:
    """The sampled tokens of each prompt, up to and with its end."""
    from transformers import GenerationConfig

    device, width = next(model.parameters()).device, max(map(len, prompts))
    pad = ends[0] if ends else 0
    ids = torch.tensor([[*[pad] * (width - len(prompt)), *prompt] for prompt in prompts], device=device)
    seen = torch.tensor([[*[0] * (width - len(prompt)), *[1] * len(prompt)] for prompt in prompts], device=device)
    uniforms = uniforms.to(device)

    def choose(so_far: Tensor, logits: Tensor) -> Tensor:
        reached = logits.double().softmax(-1).cumsum(-1)
        drawn = uniforms[:, so_far.shape[1] - width, None] * reached[:, -1:]
        token = torch.searchsorted(reached, drawn, right=True).clamp(max=logits.shape[-1] - 1)
        return torch.full_like(logits, -torch.inf).scatter(-1, token, 0.0)

    model.module.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=uniforms.shape[1], eos_token_id=list(ends) or None, pad_token_id=pad
    )
    out = model.module.generate(input_ids=ids, attention_mask=seen, logits_processor=[choose])[:, width:].tolist()
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row)) + 1] for row in out]
