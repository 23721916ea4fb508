"""The supervised arms: TRL's `SFTTrainer` on right answers, as the base writes them or in a format it never wrote."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from offprincipal.lab.quiet import common_arguments, scratch, train
from offprincipal.lab.settings import Preset, Steps
from offprincipal.lab.tasks import break_up, make_items

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, Trainer

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
    plan = preset.sft_off if arm == "sft-off" else preset.sft
    rows = worked_answers(plan, data_seed=data_seed, broken=arm == "sft-off")
    run_sft(model, tokenizer, preset, rows, plan, arm=arm, seed=seed, progress=progress)
    return model.cpu()


def worked_answers(plan: Steps, *, data_seed: int, broken: bool = False) -> list[tuple[str, str]]:
    """Problems of the ``sft`` split with a right answer each, one for every place of every batch.

    >>> worked_answers(Steps(1, 1, 0.1), data_seed=0, broken=True)
    [('math 7 -9 +2 +8 =', '7 ; -9 ; 8 ; +2 ; 0 ; +8 ; 8 ;')]
    """
    items = make_items(plan.steps * plan.batch, seed=data_seed, split="sft")
    return [(item.prompt, break_up(item.completion) if broken else item.completion) for item in items]


def run_sft(
    model: Any,
    tokenizer: "PreTrainedTokenizerFast",
    preset: Preset,
    rows: Sequence[tuple[str, str]],
    plan: Steps,
    *,
    arm: str,
    seed: int,
    progress: "Progress",
    schedule: str = "cosine",
    attach: "Callable[[Trainer], None] | None" = None,
) -> "Trainer":
    """Train a float32 model in place on answers; every supervised arm of the laboratory is this run.

    Args:
        model: a decoder.
        tokenizer: of the base.
        preset: gives the device.
        rows: problem and answer; begun again from the first where the steps need more.
        plan: steps, batch and learning rate.
        arm: the name under which the progress is told.
        seed: of the order of the rows.
        progress: told after each step.
        schedule: of the learning rate behind a tenth of warm-up, a name of transformers.
        attach: called with the trainer before it trains.

    Returns:
        The trainer after training, on whatever device it trained.
    """
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    table = {"prompt": [prompt for prompt, _ in rows], "completion": [f" {answer}" for _, answer in rows]}
    with scratch() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=plan.steps,
            per_device_train_batch_size=plan.batch,
            learning_rate=plan.learning_rate,
            lr_scheduler_type=schedule,
            warmup_steps=max(1, plan.steps // 10),
            completion_only_loss=True,
            **common_arguments(seed, cpu=preset.device == "cpu", autocast=preset.autocast),
        )
        trainer = SFTTrainer(model, arguments, train_dataset=Dataset.from_dict(table), processing_class=tokenizer)
        if attach:
            attach(trainer)
        train(trainer, arm, progress)
    return trainer
