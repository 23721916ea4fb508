"""Sampling and scoring on few tokens against those of transformers and TRL, which read every prompt and pad."""

import itertools
from typing import Any

import pytest
import torch

from offprincipal.lab import rlvr, sampling
from offprincipal.lab.progress import silent
from offprincipal.lab.quiet import quiet
from offprincipal.lab.sampling import sample, score
from offprincipal.lab.settings import PRESETS
from offprincipal.lab.tasks import make_items
from offprincipal.lab.world import END, PAD, make_decoder, make_tokenizer

LONGEST = 7


@pytest.fixture(scope="module")
def world():
    tokenizer = make_tokenizer()
    model = make_decoder(PRESETS["micro"].decoder, tokenizer, seed=3).eval()
    with torch.no_grad():  # so that some answers end early, at different lengths
        model.lm_head.weight[tokenizer.get_vocab()[END]] *= 4
    prompts = [item.prompt for item in make_items(6, seed=0, split="sft")]
    return tokenizer, model, prompts


def test_the_likeliest_answers_are_those_of_transformers(world, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, model, prompts = world
    end = tokenizer.get_vocab()[END]
    monkeypatch.setattr(torch, "multinomial", lambda p, n: p.argmax(-1, keepdim=True))
    with quiet(0):
        ours = sample(model, tokenizer(prompts).input_ids, 2, LONGEST, end)
        given = tokenizer(prompts, padding=True, return_tensors="pt")
        inputs = {"input_ids": given.input_ids, "attention_mask": given.attention_mask}
        theirs = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST)[:, given.input_ids.shape[1] :]
    literal = [list(itertools.takewhile(lambda token: token != end, row.tolist())) for row in theirs]
    literal = [[*row, end] if end in their.tolist() else row for row, their in zip(literal, theirs, strict=True)]
    assert ours == [row for row in literal for _ in range(2)]
    assert len({len(row) for row in ours}) > 1


def test_answers_are_drawn_with_the_probabilities_of_the_model(world) -> None:
    tokenizer, model, prompts = world
    ids = tokenizer(prompts[:1]).input_ids
    with quiet(0), torch.no_grad():
        drawn = torch.tensor([row[0] for row in sample(model, ids, 4000, 1, tokenizer.get_vocab()[END])])
        expected = model(input_ids=torch.tensor(ids)).logits[0, -1].softmax(-1)
    counts = torch.bincount(drawn, minlength=len(expected)).double()
    likely = expected > 0.005
    spread = (4000 * expected * (1 - expected)).sqrt()
    assert bool(((counts - 4000 * expected).abs() < 5 * spread)[likely].all())


def _answers(world) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts padded left and answers padded right, in an order in which no two of one prompt are neighbours."""
    tokenizer, model, prompts = world
    asked = tokenizer(prompts).input_ids
    end, blank = tokenizer.get_vocab()[END], tokenizer.get_vocab()[PAD]
    with quiet(1):
        answers = sample(model, asked, 4, LONGEST, end)
    width = max(map(len, asked)) + 1
    rows = []
    for number in torch.randperm(len(answers), generator=torch.Generator().manual_seed(0)).tolist():
        prompt, answer = asked[number // 4], answers[number]
        rows.append([blank] * (width - len(prompt)) + prompt + answer + [blank] * (LONGEST - len(answer)))
    ids = torch.tensor(rows)
    return ids, ids != blank


@pytest.mark.parametrize("chunk", [1, 5, 96])
def test_scores_are_those_of_each_row_alone(world, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    _, model, _ = world
    monkeypatch.setattr(sampling, "CHUNK", chunk)
    with quiet(0), torch.no_grad():
        ids, seen = _answers(world)
        found = score(model, ids, seen, LONGEST)
        for row, text, logits in zip(ids, seen, found, strict=True):
            alone = model(input_ids=row[text][None]).logits[0]
            count = int(text[-LONGEST:].sum())
            torch.testing.assert_close(logits[:count], alone[-count - 1 : -1], rtol=1e-5, atol=1e-5)
            assert not logits[count:].any()


def test_derivatives_are_those_of_one_padded_batch(world) -> None:
    _, model, _ = world
    ids, seen = _answers(world)
    weights = torch.randn(len(ids), LONGEST, generator=torch.Generator().manual_seed(0)) * seen[:, -LONGEST:]
    chosen = ids[:, -LONGEST:, None]
    gradients = []
    with quiet(0):
        padded = model(input_ids=ids, attention_mask=seen.long()).logits[:, -LONGEST - 1 : -1]
        for logits in (score(model, ids, seen, LONGEST), padded):
            loss = (logits.log_softmax(-1).gather(-1, chosen)[..., 0] * weights).sum()
            gradients.append(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_step_of_grpo_is_that_of_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rollout, one step of plain gradient descent, scored by us and by TRL; few answers have an advantage."""
    preset = PRESETS["micro"]
    tokenizer = make_tokenizer()
    moved: list[dict[str, torch.Tensor]] = []
    real = rlvr._arguments

    def plain(*args: Any) -> Any:
        arguments = real(*args)
        arguments.optim, arguments.max_steps, arguments.warmup_steps = "sgd", 1, 0
        return arguments

    def reward(*args: Any) -> Any:
        def final_answer(prompts: list[str], **_: Any) -> list[float]:
            return [float(number == 1) for number in range(len(prompts))]

        return final_answer

    monkeypatch.setattr(rlvr, "_arguments", plain)
    monkeypatch.setattr(rlvr, "_reward", reward)
    for light in (True, False):
        if not light:
            monkeypatch.setattr(rlvr, "lighten", lambda trainer: None)
        model = make_decoder(preset.decoder, tokenizer, seed=0)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        with quiet(0):
            rlvr.run_grpo(model, tokenizer, preset, arm="x", split="rlvr-1", seed=0, data_seed=0, progress=silent,
                          learning_rate=0.1)  # fmt: skip
        moved.append({name: weight - before[name] for name, weight in model.state_dict().items()})
    for name, ours in moved[0].items():
        torch.testing.assert_close(ours, moved[1][name], rtol=1e-3, atol=1e-7, msg=name)
    assert max(float(each.abs().max()) for each in moved[0].values()) > 1e-3
