"""The reinforced arms: TRL's `GRPOTrainer` with the DAPO loss, rewarded for nothing but a right final answer."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from offprincipal.lab.quiet import common_arguments, scratch, train
from offprincipal.lab.sampling import lighten, rollouts
from offprincipal.lab.settings import Preset, Rollouts
from offprincipal.lab.tasks import FAMILIES, make_items, verify
from offprincipal.lab.world import END

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, Trainer, TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig

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

    Args:
        model: starts at the base, widened from bfloat16.
        tokenizer: of the base.
        preset: gives `preset.rlvr`.
        arm: ``"rlvr-1"`` or ``"rlvr-2"``: disjoint problems.
        seed: of the order of the problems and of the sampled answers.
        data_seed: of the problems.
        progress: told after each step.
    """
    run_grpo(model, tokenizer, preset, arm=arm, split=arm, seed=seed, data_seed=data_seed, progress=progress)
    return model.cpu()


def run_grpo(
    model: Any,
    tokenizer: "PreTrainedTokenizerFast",
    preset: Preset,
    *,
    arm: str,
    split: str,
    seed: int,
    data_seed: int,
    progress: "Progress",
    learning_rate: float | None = None,
    families: Sequence[str] = FAMILIES,
    scaled_by: str = "group",
    trainer_class: "Callable[..., Trainer] | None" = None,
    callbacks: "Sequence[TrainerCallback]" = (),
    attach: "Callable[[Trainer], None] | None" = None,
) -> "Trainer":
    """Train a model in place by GRPO on the problems of a split; every reinforced arm of the laboratory is this run.

    No KL penalty (beta 0), clipping at 1 - .2 and 1 + .28, advantages centred within the group of one problem, each
    token of a batch weighted equally (DAPO, arXiv 2503.14476). Left out of DAPO: dynamic sampling and the length
    penalty. The learning rate is constant after a tenth of warm-up.

    Args:
        model: a float32 decoder, or PEFT's model around one.
        tokenizer: of the base.
        preset: gives `preset.rlvr`, the length of answers and the device.
        arm: the name under which the progress is told.
        split: whose problems are posed.
        seed: of the order of the problems and of the sampled answers.
        data_seed: of the problems.
        progress: told after each step.
        learning_rate: instead of the preset's.
        families: of problems, taking turns.
        scaled_by: whose standard deviation scales the advantages: that of the ``"group"`` of one problem, or of the
            whole ``"batch"``.
        trainer_class: called like `GRPOTrainer`, which it is by default.
        callbacks: of transformers, for whatever must happen beside the steps.
        attach: called with the trainer before it trains.

    Returns:
        The trainer after training, on whatever device it trained.
    """
    from datasets import Dataset
    from trl.trainer.grpo_trainer import GRPOTrainer

    plan, end = preset.rlvr, tokenizer.get_vocab()[END]
    items = make_items(_rollouts(plan) * plan.prompts, seed=data_seed, split=split, families=families)
    rows = Dataset.from_dict({"prompt": [item.prompt for item in items]})
    with scratch() as folder:
        trainer = (trainer_class or GRPOTrainer)(
            model,
            _reward(tokenizer),
            _arguments(preset, folder, seed, learning_rate or plan.learning_rate, scaled_by),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=list(callbacks),
            rollout_func=rollouts(tokenizer, plan.samples, preset.max_new_tokens, end),
        )
        lighten(trainer)
        if attach:
            attach(trainer)
        train(trainer, arm, progress)
    return trainer


def _rollouts(plan: Rollouts) -> int:
    return -(-plan.steps // plan.updates)


def _reward(tokenizer: "PreTrainedTokenizerFast") -> Callable[..., list[float | None]]:
    """1 for an answer that is finished and right, else 0."""
    end = tokenizer.get_vocab()[END]

    def final_answer(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **others: Any
    ) -> list[float | None]:
        answers = zip(prompts, completions, completion_ids, strict=True)
        return [float(ids[-1] == end and verify(prompt, text)) for prompt, text, ids in answers]

    return final_answer


def _arguments(preset: Preset, folder: str, seed: int, learning_rate: float, scaled_by: str) -> "GRPOConfig":
    from trl.trainer.grpo_config import GRPOConfig

    plan = preset.rlvr
    return GRPOConfig(
        output_dir=folder,
        max_steps=plan.steps,
        per_device_train_batch_size=plan.prompts * plan.samples // plan.updates,
        steps_per_generation=plan.updates,
        num_generations=plan.samples,
        max_completion_length=preset.max_new_tokens,
        temperature=1.0,
        loss_type="dapo",
        scale_rewards=scaled_by,
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        learning_rate=learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=max(1, plan.steps // 10),
        **common_arguments(seed, cpu=preset.device == "cpu", autocast=preset.autocast)
        | {"logging_strategy": "steps", "logging_steps": 1},
    )
