"""GRPO that writes only where the safe mask of the base allows, and proves it.

    python examples/sparse_grpo.py BASE [OUT] [STEPS]

BASE is a base of the laboratory (`offprincipal lab run` leaves one in DIR/base); the 30 steps take about a minute on
two CPU cores. With another model only the prompts and the reward below change.
"""

import sys
import tempfile
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.grpo_config import GRPOConfig

from offprincipal.lab.tasks import make_items, verify
from offprincipal.masksets import build_masks
from offprincipal.train.trl import SparseGRPOTrainer


def main(base: str, out: str, steps: int = 30) -> None:
    masks = build_masks(base, Path(out) / "masks", "safe")
    print(f"the safe mask allows {masks.density():.1%} of the linear weights")

    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = Dataset.from_list([{"prompt": item.prompt} for item in make_items(16 * steps, seed=0, split="rlvr-1")])
    arguments = GRPOConfig(
        output_dir=out, max_steps=steps, per_device_train_batch_size=128, num_generations=8, max_completion_length=24,
        learning_rate=5e-5, lr_scheduler_type="constant", use_cpu=True, bf16=False, gradient_checkpointing=False,
        save_strategy="no", logging_steps=5, report_to="none", disable_tqdm=True,
    )  # fmt: skip

    def right_answer(prompts, completions, **others):
        return [float(verify(prompt, text)) for prompt, text in zip(prompts, completions, strict=True)]

    trainer = SparseGRPOTrainer(
        model, right_answer, arguments, train_dataset=rows, processing_class=tokenizer, masks=masks, base=base
    )
    trainer.train()

    seen = trainer.trained
    print(f"{seen.changed:,} of {seen.allowed:,} allowed weights moved; {seen.frozen:,} stayed, bit for bit")
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print(f"mean reward {rewards[0]:.3f} at first, {rewards[-1]:.3f} at last")
    print(f"optimizer state: {trainer.optimizer.optimizer.state_bytes():,} bytes")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else scratch, *map(int, sys.argv[3:4]))
