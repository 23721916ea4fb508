"""The one GRPO run that every reinforced arm of the laboratory is."""

from typing import Any

import pytest

from offprincipal.lab.progress import silent
from offprincipal.lab.quiet import quiet
from offprincipal.lab.rlvr import _reward, run_grpo
from offprincipal.lab.settings import PRESETS
from offprincipal.lab.world import END, make_decoder, make_tokenizer


def test_only_a_finished_right_answer_is_rewarded() -> None:
    tokenizer = make_tokenizer()
    end = tokenizer.get_vocab()[END]
    ids = tokenizer("3 +5 8").input_ids
    prompts, texts = ["math 3 +5 ="] * 3, ["3 +5 8", "3 +5 8", "3 +5 7"]
    assert _reward(tokenizer)(prompts, texts, [[*ids, end], ids, [*ids, end]]) == [1, 0, 0]


@pytest.mark.slow
def test_rate_class_callbacks_and_attachment_reach_the_trainer() -> None:
    from transformers import TrainerCallback
    from trl.trainer.grpo_trainer import GRPOTrainer

    class Mine(GRPOTrainer):
        pass

    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.steps += 1

    attached: list[Any] = []
    tokenizer, count = make_tokenizer(), Count()
    model = make_decoder(PRESETS["micro"].decoder, tokenizer, seed=0)
    with quiet(0):
        trainer = run_grpo(
            model, tokenizer, PRESETS["micro"], arm="test", split="rlvr-2", seed=0, data_seed=0, progress=silent,
            learning_rate=3e-3, trainer_class=Mine, callbacks=[count], attach=attached.append,
        )  # fmt: skip
    assert isinstance(trainer, Mine)
    assert attached == [trainer]
    assert (count.steps, trainer.args.learning_rate) == (2, 3e-3)
