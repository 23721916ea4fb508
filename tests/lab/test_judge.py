"""The token KL against a literal sum over tokens and words, and answers that repeat."""

import dataclasses
import json

import pytest
import torch

from offprincipal.lab.judge import PROMPT_WIDTH, answer, held_out, token_kl, write_held_out
from offprincipal.lab.quiet import quiet
from offprincipal.lab.settings import PRESETS
from offprincipal.lab.tasks import FAMILIES, make_items, verify
from offprincipal.lab.world import make_decoder, make_tokenizer

PRESET = dataclasses.replace(PRESETS["micro"], judged_prompts=3, judged_samples=2, max_new_tokens=5)


@pytest.fixture(scope="module")
def models():
    tokenizer = make_tokenizer()
    return tokenizer, *(make_decoder(PRESET.decoder, tokenizer, seed=seed).eval() for seed in (0, 1))


def test_prompts_fit_the_width() -> None:
    assert (
        max(len(i.prompt.split()) for split in ("heldout", "sft") for i in make_items(2000, seed=0, split=split))
        <= PROMPT_WIDTH
    )


def test_answers_are_a_function_of_the_model_and_the_seed(models) -> None:
    tokenizer, model, _ = models
    with quiet(0):
        one = answer(model, tokenizer, "math", PRESET, data_seed=0)
        torch.rand(3)
        two = answer(model, tokenizer, "math", PRESET, data_seed=0)
    assert torch.equal(one.ids, two.ids)
    assert one.ids.shape == (6, PROMPT_WIDTH + 5)
    assert one.samples == 6
    assert not one.written[:, :PROMPT_WIDTH].any()
    assert one.written[:, PROMPT_WIDTH].all()


def test_held_out_problems_as_a_file_of_prompts(tmp_path) -> None:
    file = tmp_path / "held-out.jsonl"
    write_held_out(file, PRESET, data_seed=0)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [p for f in FAMILIES for p in held_out(f, 3, data_seed=0)]
    assert all(verify(row["prompt"], row["completion"].removesuffix(" <end>")) for row in rows)
    file.write_text("mine")
    write_held_out(file, PRESET, data_seed=0)
    assert file.read_text() == "mine"


@torch.no_grad()
def test_token_kl_is_the_literal_sum(models) -> None:
    tokenizer, left, right = models
    with quiet(0):
        answers = answer(left, tokenizer, "code", PRESET, data_seed=0)
        nats, tokens = token_kl(left, right, answers)
        assert token_kl(left, left, answers) == (0.0, tokens)
    literal, count = 0.0, 0
    for row, written, seen in zip(answers.ids, answers.written, answers.seen, strict=True):
        ids = row[seen][None]  # alone, without padding
        p, q = (model(input_ids=ids).logits[0].double().softmax(-1) for model in (left, right))
        first = int((seen & ~written).sum())
        for at in range(first, ids.shape[1]):
            literal += sum(float(x * (x / y).log()) for x, y in zip(p[at - 1], q[at - 1], strict=True))
            count += 1
    assert count == tokens
    assert nats == pytest.approx(literal, rel=1e-4)
    assert nats > 0
