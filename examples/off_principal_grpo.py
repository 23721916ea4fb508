"""GRPO on a LoRA adapter that stays off the principal subspaces, with the gates in the log.

    python examples/off_principal_grpo.py BASE [OUT] [STEPS]

BASE is a base of the laboratory (`offprincipal lab run` leaves one in DIR/base); the 30 steps take about a minute on
two CPU cores. OUT/adapter is an ordinary PEFT adapter. The gates are printed here; with report_to="trackio" (or wandb,
tensorboard) they are drawn.
"""

import sys
import tempfile
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from offprincipal.lab.tasks import make_item, make_items, verify
from offprincipal.train.adapters import hold_callback, init_adapter
from offprincipal.train.callbacks import GeometryCallback


def main(base: str, out: str, steps: int = 30) -> None:
    begun = Path(out) / "begun"
    init_adapter(base, begun, method="off-principal", rank=4)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    model = PeftModel.from_pretrained(model, str(begun), is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = Dataset.from_list([{"prompt": item.prompt} for item in make_items(16 * steps, seed=0, split="rlvr-1")])
    arguments = GRPOConfig(
        output_dir=out, max_steps=steps, per_device_train_batch_size=128, num_generations=8, max_completion_length=24,
        learning_rate=5e-4, lr_scheduler_type="constant", use_cpu=True, bf16=False, gradient_checkpointing=False,
        save_strategy="no", logging_steps=5, report_to="none", disable_tqdm=True,
    )  # fmt: skip

    def right_answer(prompts, completions, **others):
        return [float(verify(prompt, text)) for prompt, text in zip(prompts, completions, strict=True)]

    trainer = GRPOTrainer(
        model, right_answer, arguments, train_dataset=rows, processing_class=tokenizer,
        callbacks=[hold_callback(begun)],
    )  # fmt: skip
    held_out = [make_item("math", seed=0, split="heldout", index=index) for index in range(8)]
    texts = [f"{item.prompt} {item.completion}" for item in held_out]
    trainer.add_callback(GeometryCallback(trainer, texts=texts, every=5, matrices=2))
    trainer.train()
    model.save_pretrained(Path(out) / "adapter")

    print("step  KL(model, base)  KL of the step  changed in bf16  energy on the principal subspaces")
    for entry in trainer.state.log_history:
        if "geometry/kl_base/prompts" in entry:
            energy = [value for name, value in entry.items() if name.startswith("geometry/energy_both/")]
            print(f"{entry['step']:>4}  {entry['geometry/kl_base/prompts']:>15.3g}  "
                  f"{entry['geometry/kl_step/prompts']:>14.3g}  {entry['geometry/changed/linear']:>15.1%}  "
                  f"{max(energy, default=0):>33.2g}")  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else scratch, *map(int, sys.argv[3:4]))
