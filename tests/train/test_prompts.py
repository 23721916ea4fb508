"""Log-probabilities on fixed texts, and the KL between two sets of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offprincipal.lab.settings import PRESETS
from offprincipal.lab.world import make_decoder, make_tokenizer
from offprincipal.train.prompts import Prompts, mean_kl


def literal_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    p, q = log_p.double(), log_q.double()
    return float((p.exp() * (p - q)).sum(-1).mean())


@given(st.integers(0, 2**31), st.integers(1, 150), st.integers(2, 40))
def test_kl_is_the_sum_of_p_times_the_difference_of_logarithms(seed: int, positions: int, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(positions, vocabulary, generator=generator).log_softmax(-1) for _ in range(2))
    assert mean_kl(left, right) == pytest.approx(literal_kl(left, right), abs=2e-6)
    assert mean_kl(left, left) == 0


@pytest.mark.parametrize("scale", [1e-2, 1e-3, 1e-4])
def test_a_small_step_is_seen_through_the_rounding_of_the_stored_logarithms(scale: float) -> None:
    """What the literal sum loses: at a step of 1e-4 the KL is 5e-9, and float32 logarithms are off by 5e-7."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 1000, generator=generator, dtype=torch.float64) * 3
    moved = logits + scale * torch.randn(8, 1000, generator=generator, dtype=torch.float64)
    exact = literal_kl(moved.log_softmax(-1), logits.log_softmax(-1))
    stored = mean_kl(moved.log_softmax(-1).float(), logits.log_softmax(-1).float())
    assert stored == pytest.approx(exact, rel=1e-2)


def test_what_p_rules_out_adds_nothing_and_what_q_rules_out_adds_everything() -> None:
    sure, even = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.5, 0.5]]).log()
    assert mean_kl(sure, even) == pytest.approx(0.693147, abs=1e-6)
    assert mean_kl(sure, sure) == 0
    assert mean_kl(even, sure) == torch.inf


def test_log_probabilities_are_the_models_at_the_end_of_each_text() -> None:
    model = make_decoder(PRESETS["micro"].decoder, make_tokenizer(), seed=0)
    prompts = Prompts.of([[3, 4, 5, 6], [7, 8]], positions=6)
    model.train()
    found = prompts.log_probabilities(model)
    assert model.training
    first = model(torch.tensor([[3, 4, 5, 6]])).logits[0, -3:].log_softmax(-1)
    second = model(torch.tensor([[7, 8]])).logits[0].log_softmax(-1)
    torch.testing.assert_close(found, torch.cat([first, second]).detach(), rtol=1e-5, atol=1e-6)
    assert not found.requires_grad


def test_empty_texts_are_left_out_and_at_least_one_position_is_scored() -> None:
    assert Prompts.of([[], [1, 2]], positions=0) == Prompts(((1, 2),), 1)
