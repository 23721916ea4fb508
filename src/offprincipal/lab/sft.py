"""The supervised arms: TRL's `SFTTrainer` on right answers, as the base writes them or in a format it never wrote."""

from typing import TYPE_CHECKING

from offprincipal.lab.quiet import common_arguments, scratch, train
from offprincipal.lab.settings import Preset
from offprincipal.lab.tasks import break_up, make_items

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

    from offprincipal.lab.progress import Progress


def tune_on_answers(
    model: "Qwen3ForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    preset: Preset,
    *,
    arm: str,
    seed: int,
    data_seed: int,
    progress: "Progress",
) -> "Qwen3ForCausalLM":
    """Train the float32 model in place on right answers to the ``sft`` problems; the loss is on the answer alone.

    Args:
        model: starts at the base, widened from bfloat16.
        tokenizer: of the base.
        preset: gives the steps: `preset.sft`, or `preset.sft_off` for the arm ``"sft-off"``.
        arm: ``"sft"`` or ``"sft-off"``: the same problems and answers, the latter broken word for word.
        seed: of the order of the data.
        data_seed: of the problems.
        progress: told after each step.
    """
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    plan = preset.sft_off if arm == "sft-off" else preset.sft
    items = list(make_items(plan.steps * plan.batch, seed=data_seed, split="sft"))
    answers = [break_up(item.completion) if arm == "sft-off" else item.completion for item in items]
    rows = Dataset.from_dict(
        {"prompt": [item.prompt for item in items], "completion": [f" {answer}" for answer in answers]}
    )
    with scratch() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=plan.steps,
            per_device_train_batch_size=plan.batch,
            learning_rate=plan.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, plan.steps // 10),
            completion_only_loss=True,
            **common_arguments(seed, cpu=preset.device == "cpu", autocast=preset.autocast),
        )
        trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
        train(trainer, arm, progress)
    return model.cpu()
