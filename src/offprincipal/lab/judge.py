"""How well a model answers, and how far it has moved from the base: sampled accuracy and exact token KL."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from offprincipal.errors import UsageError
from offprincipal.lab.quiet import stage_seed
from offprincipal.lab.sampling import sample, score
from offprincipal.lab.settings import Preset
from offprincipal.lab.tasks import FAMILIES, make_item, verify
from offprincipal.lab.world import END, PAD, load_arm
from offprincipal.store import write_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

AT_ONCE = 512  # answers sampled together
PROMPT_WIDTH = 16  # tokens to which prompts are padded, on the left; the longest has 13
PARTS = ("validation", "test")
"""Two halves of the held-out problems: settings are chosen on one, results told on the other."""


@dataclass(frozen=True)
class Answers:
    """Sampled answers to held-out problems of one family, equally many to each.

    `ids` [answers, tokens]: prompt (padded left) and answer (padded right). `seen` [answers, tokens]: true where `ids`
    is text. `written` [answers, tokens]: true on the answer, its end token included. Of `samples` answers `right` were
    right in the plain format and `right_broken` in the one that the base never wrote.
    """

    ids: Tensor
    seen: Tensor
    written: Tensor
    samples: int
    right: int
    right_broken: int


def held_out(family: str, count: int, *, data_seed: int, part: str | None = None) -> list[str]:
    """The first `count` held-out problems of a family, or those of one of its `PARTS`.

    A problem belongs to a part by the second byte of the hash whose first byte gives its split, so that no two parts
    share one, for whatever seeds. Within a part problems may repeat.

    Raises:
        UsageError: there is no such part.

    >>> held_out("math", 1, data_seed=0, part="test")
    ['math 0 -9 -5 -1 -3 +2 =']
    """
    if part is not None and part not in PARTS:
        raise UsageError("choose held-out problems", f"there is no part {part!r}", f"choose from {PARTS}")
    drawn = (make_item(family, seed=data_seed, split="heldout", index=index).prompt for index in itertools.count())
    wanted = (prompt for prompt in drawn if part is None or part_of(prompt) == part)
    return list(itertools.islice(wanted, count))


def write_held_out(file: Path, preset: Preset, *, data_seed: int) -> None:
    """The held-out problems on which a laboratory is judged, with a worked answer each, as ``--prompts`` reads them.

    Nothing is written where the file is there.
    """
    if file.exists():
        return
    lines = []
    for family in FAMILIES:
        for index in range(preset.judged_prompts):
            item = make_item(family, seed=data_seed, split="heldout", index=index)
            lines.append(json.dumps({"prompt": item.prompt, "completion": f" {item.completion} {END}"}))
    write_file(file, ("\n".join(lines) + "\n").encode())


def part_of(prompt: str) -> str:
    """Which of `PARTS` a held-out problem belongs to.

    >>> part_of("math 0 -9 -5 -1 -3 +2 =")
    'test'
    """
    return PARTS[hashlib.sha256(prompt.encode()).digest()[1] % len(PARTS)]


@torch.no_grad()
def answer(
    model: "Qwen3ForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    family: str,
    preset: Preset,
    *,
    data_seed: int,
    part: str | None = None,
) -> Answers:
    """Sample answers at temperature 1 over the whole vocabulary and verify each. One without its end is wrong.

    The samples are a function of the model, the family, the part and `data_seed`; the global generator is left as it
    was.
    """
    problems = held_out(family, preset.judged_prompts, data_seed=data_seed, part=part)
    end = tokenizer.get_vocab()[END]
    with torch.random.fork_rng():
        torch.manual_seed(stage_seed(data_seed, f"answers to {family}"))
        asked = tokenizer(problems).input_ids
        step = max(1, AT_ONCE // preset.judged_samples)
        batches = [asked[at : at + step] for at in range(0, len(asked), step)]
        size = preset.judged_samples, preset.max_new_tokens, end
        answers = [answer for batch in batches for answer in sample(model, batch, *size)]
    prompts = [prompt for prompt in problems for _ in range(preset.judged_samples)]
    right = right_broken = 0
    for prompt, (*text, last) in zip(prompts, answers, strict=True):
        completion = " ".join(tokenizer.convert_ids_to_tokens(text))
        right += last == end and verify(prompt, completion)
        right_broken += last == end and verify(prompt, completion, broken=True)
    repeated = [ids for ids in asked for _ in range(preset.judged_samples)]
    ids, seen = _padded(repeated, answers, preset.max_new_tokens, tokenizer.get_vocab()[PAD])
    written = seen.clone()
    written[:, :PROMPT_WIDTH] = False
    return Answers(ids, seen, written, len(prompts), right, right_broken)


def _padded(prompts: list[list[int]], answers: list[list[int]], longest: int, pad: int) -> tuple[Tensor, Tensor]:
    """Prompts and answers in one tensor [answers, PROMPT_WIDTH + longest], and where it is text."""
    ids = torch.full((len(answers), PROMPT_WIDTH + longest), pad)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, PROMPT_WIDTH - len(prompt) : PROMPT_WIDTH + len(answer)] = torch.tensor([*prompt, *answer])
    return ids, ids != pad


@torch.no_grad()
def token_kl(left: "Qwen3ForCausalLM", right: "Qwen3ForCausalLM", answers: Answers) -> tuple[float, int]:
    """KL(left || right) in nats, summed over the written tokens of the answers, and the number of those tokens.

    Exact over the vocabulary at every token: sum_v p(v) (log p(v) - log q(v)), the logits in the models' arithmetic,
    the softmax and the sums in float64. With answers sampled from `left` the quotient is the token KL of DEFINITIONS
    4; their order matters.
    """
    total = 0.0
    for at in range(0, len(answers.ids), AT_ONCE):
        part = some_answers(answers, AT_ONCE, at)
        log_p, log_q = (log_probabilities(model, part) for model in (left, right))
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return total, int(answers.written.sum())


def some_answers(answers: Answers, count: int, at: int = 0) -> Answers:
    """So many of the answers, from `at` on; their counts of right ones are left as they are."""
    rows = slice(at, at + count)
    return replace(answers, ids=answers.ids[rows], seen=answers.seen[rows], written=answers.written[rows])


@torch.no_grad()
def log_probabilities(model: "Qwen3ForCausalLM", answers: Answers) -> Tensor:
    """What the model gives every word before each written token [tokens, vocabulary], in float64 on the CPU."""
    longest = answers.ids.shape[1] - PROMPT_WIDTH
    logits = score(model, answers.ids.to(model.device), answers.seen.to(model.device), longest)
    return logits.float().cpu()[answers.written[:, PROMPT_WIDTH:]].double().log_softmax(-1)


def compare_arms(
    base: Path,
    arm: Path,
    preset: Preset,
    *,
    data_seed: int,
    part: str | None = None,
    before: Mapping[str, Answers] | None = None,
) -> dict[str, Any]:
    """Accuracy of both folders and the token KL between them, per family, as numerators and denominators.

    Measured on the stored bfloat16 weights in float32 arithmetic, on held-out problems or one of their `PARTS`.
    ``accuracy_before`` is the base's, ``accuracy_after`` the arm's, each with ``samples``, ``right`` and
    ``right_broken``. ``kl_base_to_arm`` is KL(base || arm) on the base's answers, ``kl_arm_to_base`` KL(arm || base)
    on the arm's: ``nats`` over ``tokens``. `before` are the base's answers, where they are known.
    """
    old, tokenizer = loaded(base, preset)
    new, _ = loaded(arm, preset)
    report: dict[str, Any] = {"accuracy_before": {}, "accuracy_after": {}, "kl_base_to_arm": {}, "kl_arm_to_base": {}}
    for family in FAMILIES:
        asked = {"data_seed": data_seed, "part": part}
        first = before[family] if before else answer(old, tokenizer, family, preset, **asked)
        second = answer(new, tokenizer, family, preset, **asked) if arm != base else first
        report["accuracy_before"][family] = _counts(first)
        report["accuracy_after"][family] = _counts(second)
        report["kl_base_to_arm"][family] = dict(zip(("nats", "tokens"), token_kl(old, new, first), strict=True))
        report["kl_arm_to_base"][family] = dict(zip(("nats", "tokens"), token_kl(new, old, second), strict=True))
    return report


def answers_of(folder: Path, preset: Preset, *, data_seed: int, part: str | None = None) -> dict[str, Answers]:
    """The answers of a folder to every family, as `compare_arms` takes the base's."""
    model, tokenizer = loaded(folder, preset)
    return {family: answer(model, tokenizer, family, preset, data_seed=data_seed, part=part) for family in FAMILIES}


def loaded(folder: Path, preset: Preset) -> "tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]":
    """A folder's model, its bfloat16 weights in float32, ready to be asked on the preset's device; and tokenizer."""
    model, tokenizer = load_arm(folder)
    where = "cuda" if preset.device == "auto" and torch.cuda.is_available() else "cpu"
    torch.nn.Module.to(model, where).eval()
    return model, tokenizer


def _counts(answers: Answers) -> dict[str, int]:
    return {"samples": answers.samples, "right": answers.right, "right_broken": answers.right_broken}


def accuracy(families: Mapping[str, Mapping[str, int]]) -> float:
    """Share of right answers, all families together."""
    return sum(part["right"] for part in families.values()) / sum(part["samples"] for part in families.values())


def per_token(families: Mapping[str, Mapping[str, float]]) -> float:
    """Nats per token, all families together."""
    return sum(part["nats"] for part in families.values()) / sum(part["tokens"] for part in families.values())
