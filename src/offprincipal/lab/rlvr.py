"""The reinforced arms: TRL's `GRPOTrainer` with the DAPO loss, rewarded for nothing but a right final answer."""

from typing import TYPE_CHECKING, Any

from offprincipal.lab.quiet import common_arguments, scratch, train
from offprincipal.lab.settings import Preset
from offprincipal.lab.tasks import make_items, verify
from offprincipal.lab.world import END

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

    from offprincipal.lab.progress import Progress


def reinforce(
    model: "Qwen3ForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    preset: Preset,
    *,
    arm: str,
    seed: int,
    data_seed: int,
    progress: "Progress",
) -> "Qwen3ForCausalLM":
    """Train the float32 model in place on the problems of the split named like the arm; the reward is 1 or 0.

    No KL penalty (beta 0), clipping at 1 - .2 and 1 + .28, advantages scaled within the group of one problem, each
    token of a batch weighted equally (DAPO, arXiv 2503.14476). Left out of DAPO: dynamic sampling and the length
    penalty. The learning rate is constant after a tenth of warm-up.

    Args:
        model: starts at the base, widened from bfloat16.
        tokenizer: of the base.
        preset: gives `preset.rlvr`.
        arm: ``"rlvr-1"`` or ``"rlvr-2"``: disjoint problems.
        seed: of the order of the problems and of the sampled answers.
        data_seed: of the problems.
        progress: told after each step.
    """
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    plan = preset.rlvr
    rollouts = -(-plan.steps // plan.updates)
    items = make_items(rollouts * plan.prompts, seed=data_seed, split=arm)
    rows = Dataset.from_dict({"prompt": [item.prompt for item in items]})
    end = tokenizer.get_vocab()[END]

    def final_answer(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **others: Any
    ) -> list[float | None]:
        answers = zip(prompts, completions, completion_ids, strict=True)
        return [float(ids[-1] == end and verify(prompt, text)) for prompt, text, ids in answers]

    with scratch() as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            max_steps=plan.steps,
            per_device_train_batch_size=plan.prompts * plan.samples // plan.updates,
            steps_per_generation=plan.updates,
            num_generations=plan.samples,
            max_completion_length=preset.max_new_tokens,
            temperature=1.0,
            loss_type="dapo",
            beta=0.0,
            epsilon=0.2,
            epsilon_high=0.28,
            learning_rate=plan.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=max(1, plan.steps // 10),
            **common_arguments(seed, cpu=preset.device == "cpu", autocast=preset.autocast),
        )
        trainer = GRPOTrainer(model, final_answer, arguments, train_dataset=rows, processing_class=tokenizer)
        train(trainer, arm, progress)
    return model.cpu()
