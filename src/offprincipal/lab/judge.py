"""How well a model answers, and how far it has moved from the base: sampled accuracy and exact token KL."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from offprincipal.lab.quiet import stage_seed
from offprincipal.lab.settings import Preset
from offprincipal.lab.tasks import FAMILIES, make_item, verify
from offprincipal.lab.world import END, PAD, load_arm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

AT_ONCE = 512  # sequences in one batch
PROMPT_WIDTH = 16  # tokens to which prompts are padded, on the left; the longest has 13


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


@torch.no_grad()
def answer(
    model: "Qwen3ForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    family: str,
    preset: Preset,
    *,
    data_seed: int,
) -> Answers:
    """Sample answers at temperature 1 over the whole vocabulary and verify each. One without its end is wrong.

    The samples are a function of the model, the family and `data_seed`; the global generator is left as it was.
    """
    prompts = [
        make_item(family, seed=data_seed, split="heldout", index=index).prompt
        for index in range(preset.judged_prompts)
        for _ in range(preset.judged_samples)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(stage_seed(data_seed, f"answers to {family}"))
        batches = [prompts[at : at + AT_ONCE] for at in range(0, len(prompts), AT_ONCE)]
        ids = torch.cat([_generate(model, tokenizer, batch, preset.max_new_tokens) for batch in batches])
    seen = ids != tokenizer.get_vocab()[PAD]
    written = seen.clone()
    written[:, :PROMPT_WIDTH] = False
    end = tokenizer.get_vocab()[END]
    right = right_broken = 0
    for prompt, row, mask in zip(prompts, ids, written, strict=True):
        *text, last = row[mask].tolist()
        completion = " ".join(tokenizer.convert_ids_to_tokens(text))
        right += last == end and verify(prompt, completion)
        right_broken += last == end and verify(prompt, completion, broken=True)
    return Answers(ids, seen, written, len(prompts), right, right_broken)


def _generate(
    model: "Qwen3ForCausalLM", tokenizer: "PreTrainedTokenizerFast", prompts: list[str], max_new_tokens: int
) -> Tensor:
    """Prompts and sampled answers [answers, PROMPT_WIDTH + max_new_tokens] on the CPU."""
    inputs = tokenizer(prompts, padding="max_length", max_length=PROMPT_WIDTH, return_tensors="pt").to(model.device)
    pad = tokenizer.get_vocab()[PAD]
    ids = model.generate(  # pyright: ignore[reportAttributeAccessIssue]  # transformers hides it behind a mixin
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
    ).cpu()
    return torch.nn.functional.pad(ids, (0, PROMPT_WIDTH + max_new_tokens - ids.shape[1]), value=pad)


@torch.no_grad()
def token_kl(left: "Qwen3ForCausalLM", right: "Qwen3ForCausalLM", answers: Answers) -> tuple[float, int]:
    """KL(left || right) in nats, summed over the written tokens of the answers, and the number of those tokens.

    Exact over the vocabulary at every token: sum_v p(v) (log p(v) - log q(v)), the logits in the models' arithmetic,
    the softmax and the sums in float64. With answers sampled from `left` the quotient is the token KL of DEFINITIONS
    4; their order matters.
    """
    total = 0.0
    for at in range(0, len(answers.ids), AT_ONCE):
        part = slice(at, at + AT_ONCE)
        scored = answers.written[part, 1:]
        log_p, log_q = (
            _logits(model, answers.ids[part], answers.seen[part])[scored].double().log_softmax(-1)
            for model in (left, right)
        )
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return total, int(answers.written.sum())


def _logits(model: "Qwen3ForCausalLM", ids: Tensor, seen: Tensor) -> Tensor:
    """What the model expects at each token but the first [answers, tokens - 1, vocabulary], on the CPU."""
    positions = (seen.long().cumsum(-1) - 1).clamp(min=0)
    inputs = (each.to(model.device) for each in (ids, seen.long(), positions))
    names = ("input_ids", "attention_mask", "position_ids")
    return model(**dict(zip(names, inputs, strict=True))).logits[:, :-1].float().cpu()


def compare_arms(base: Path, arm: Path, preset: Preset, *, data_seed: int) -> dict[str, Any]:
    """Accuracy of both folders and the token KL between them, per family, as numerators and denominators.

    Measured on the stored bfloat16 weights in float32 arithmetic, on held-out problems. ``accuracy_before`` is the
    base's, ``accuracy_after`` the arm's, each with ``samples``, ``right`` and ``right_broken``. ``kl_base_to_arm``
    is KL(base || arm) on the base's answers, ``kl_arm_to_base`` KL(arm || base) on the arm's: ``nats`` over
    ``tokens``.
    """
    (old, tokenizer), (new, _) = load_arm(base), load_arm(arm)
    where = "cuda" if preset.device == "auto" and torch.cuda.is_available() else "cpu"
    for model in (old, new):
        torch.nn.Module.to(model, where).eval()
    report: dict[str, Any] = {"accuracy_before": {}, "accuracy_after": {}, "kl_base_to_arm": {}, "kl_arm_to_base": {}}
    for family in FAMILIES:
        before = answer(old, tokenizer, family, preset, data_seed=data_seed)
        after = answer(new, tokenizer, family, preset, data_seed=data_seed) if arm != base else before
        report["accuracy_before"][family] = _counts(before)
        report["accuracy_after"][family] = _counts(after)
        report["kl_base_to_arm"][family] = dict(zip(("nats", "tokens"), token_kl(old, new, before), strict=True))
        report["kl_arm_to_base"][family] = dict(zip(("nats", "tokens"), token_kl(new, old, after), strict=True))
    return report


def _counts(answers: Answers) -> dict[str, int]:
    return {"samples": answers.samples, "right": answers.right, "right_broken": answers.right_broken}
