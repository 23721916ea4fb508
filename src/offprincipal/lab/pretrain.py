"""The base: a decoder that read both families, a share of the answers wrong, so that its ability is latent."""

from typing import TYPE_CHECKING

import torch

from offprincipal.lab.quiet import common_arguments, scratch, train
from offprincipal.lab.settings import Preset
from offprincipal.lab.tasks import make_items
from offprincipal.lab.world import END, PAD, make_decoder, make_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

    from offprincipal.lab.progress import Progress


def pretrain(
    preset: Preset, *, seed: int, data_seed: int, progress: "Progress"
) -> "tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]":
    """Train a new decoder with transformers' `Trainer` on problems and answers as plain text.

    The loss is next-token cross entropy over prompt and answer alike, each text seen once. Weights and arithmetic are
    float32. Returns the float32 model and its tokenizer.
    """
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    tokenizer = make_tokenizer()
    model = make_decoder(preset.decoder, tokenizer, seed=seed)
    plan = preset.pretrain
    items = make_items(plan.steps * plan.batch, seed=data_seed, split="pretrain", corruption=preset.corruption)
    texts = [f"{item.prompt} {item.completion} {END}" for item in items]
    rows = Dataset.from_dict({"ids": tokenizer(texts).input_ids})
    pad = tokenizer.get_vocab()[PAD]

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["ids"]) for row in batch)
        ids = torch.tensor([row["ids"] + [pad] * (longest - len(row["ids"])) for row in batch])
        # No attention mask: under causal attention nothing that is scored can see the padding behind it.
        return {"input_ids": ids, "labels": ids.masked_fill(ids == pad, -100)}

    with scratch() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=plan.steps,
            per_device_train_batch_size=plan.batch,
            learning_rate=plan.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, plan.steps // 20),
            adam_beta2=0.98,
            remove_unused_columns=False,
            **common_arguments(seed, cpu=preset.device == "cpu", autocast=preset.autocast),
        )
        train(Trainer(model, arguments, data_collator=collate, train_dataset=rows), "base", progress)
    return model.cpu(), tokenizer
