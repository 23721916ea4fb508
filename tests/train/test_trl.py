"""Trainers of transformers and TRL that keep to a mask, and fail loudly when a run did not."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offprincipal.errors import CheckFailed, InputError, UsageError
from offprincipal.lab.quiet import common_arguments, quiet
from offprincipal.lab.settings import PRESETS
from offprincipal.lab.world import make_decoder, make_tokenizer
from offprincipal.masksets import save_masks
from offprincipal.train import MaskedAdamW, trl
from offprincipal.train.trl import MaskedAdamWFactory, SparseGRPOTrainer, SparseSFTTrainer, SparseTrainer
from offprincipal.train.weights import assert_trained, snapshot

ROWS = [{"input_ids": [3, 4, 5, 6 + n], "labels": [3, 4, 5, 6 + n]} for n in range(24)]


def make_model() -> nn.Module:
    return make_decoder(PRESETS["micro"].decoder, make_tokenizer(), seed=0)


def make_masks(model: nn.Module, density: float = 0.5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    named = [(name, p) for name, p in model.named_parameters() if "layers" in name and p.ndim == 2]
    return {name: torch.rand(p.shape, generator=generator) < density for name, p in named}


def arguments(folder: Path, **chosen: Any) -> dict[str, Any]:
    common = common_arguments(0, cpu=True, autocast=False)
    given = {"output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    return common | given | chosen


def make_trainer(folder: Path, masks: Any = None, model: nn.Module | None = None, **chosen: Any) -> Any:
    from transformers import TrainingArguments

    names = {"rest", "base", "callbacks", "masked_options", "optimizers"}
    options = {name: chosen.pop(name) for name in names & chosen.keys()}
    model = make_model() if model is None else model
    masks = make_masks(model) if masks is None else masks
    with quiet(0):
        return SparseTrainer(
            model, TrainingArguments(**arguments(folder, **chosen)), train_dataset=ROWS, masks=masks, **options
        )


def _train(trainer: Any, **options: Any) -> None:
    with quiet(0):
        trainer.train(**options)


def _moved(model: nn.Module) -> dict[str, Tensor]:
    start = dict(make_model().named_parameters())
    return {name: p.detach() != start[name].detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "weight_decay": 0.1},
        {"masked_options": {"masters": True}, "lr_scheduler_type": "cosine"},
    ],
)
def test_what_lies_off_the_mask_stays_bit_for_bit(tmp_path: Path, chosen: dict) -> None:
    trainer = make_trainer(tmp_path, **chosen)
    _train(trainer)
    masks = make_masks(trainer.model)
    for name, moved in _moved(trainer.model).items():
        assert not bool((moved & ~masks[name] if name in masks else moved).any())
    ones = sum(int(mask.sum()) for mask in masks.values())
    assert 0.9 * ones < trainer.trained.changed <= trainer.trained.allowed == ones
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, MaskedAdamW)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, chosen.get("weight_decay", 0.0)}


def test_the_rest_can_train_too(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, rest="train")
    _train(trainer)
    moved = _moved(trainer.model)
    assert bool(moved["model.norm.weight"].any())
    assert bool(moved["model.embed_tokens.weight"].any())
    assert trainer.trained.frozen == sum(int((~mask).sum()) for mask in make_masks(trainer.model).values())


def test_a_run_saved_and_resumed_is_the_run_that_was_not(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", max_steps=4)
    _train(whole)
    cut = make_trainer(tmp_path / "cut", max_steps=4, save_strategy="steps", save_steps=2)
    _train(cut)
    again = make_trainer(tmp_path / "cut", max_steps=4)
    _train(again, resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    for (name, left), right in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(left, right), name
    assert again.trained == whole.trained


def test_masks_come_from_a_folder(tmp_path: Path) -> None:
    masks = make_masks(make_model(), density=0.02)
    made = save_masks(tmp_path / "masks", masks, rule={"kind": "random"})
    assert set(made.names) == set(masks)
    trainer = make_trainer(tmp_path / "out", masks=tmp_path / "masks")
    _train(trainer)
    assert trainer.trained.allowed == sum(int(mask.sum()) for mask in masks.values())


def test_a_mask_under_the_other_name_of_a_tied_weight(tmp_path: Path) -> None:
    mask = torch.zeros(50, 32, dtype=torch.bool)
    mask[3:7] = True
    trainer = make_trainer(tmp_path, masks={"lm_head.weight": mask})
    _train(trainer)
    assert (trainer.trained.changed, trainer.trained.allowed) == (128, 128)


def test_masks_of_another_base_are_refused(tmp_path: Path) -> None:
    from offprincipal.checkpoint import open_checkpoint

    model = make_model()
    model.save_pretrained(tmp_path / "base")
    model.model.layers[0].mlp.up_proj.weight.data += 1
    model.save_pretrained(tmp_path / "other")
    save_masks(tmp_path / "masks", make_masks(model), base=open_checkpoint(tmp_path / "base"))
    make_trainer(tmp_path / "out", masks=tmp_path / "masks", base=tmp_path / "base")
    with pytest.raises(InputError, match="other"):
        make_trainer(tmp_path / "out", masks=tmp_path / "masks", base=tmp_path / "other")


def test_whatever_else_writes_a_weight_is_caught(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Meddler(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            given["model"].model.norm.weight.data[:2] += 1

    trainer = make_trainer(tmp_path, callbacks=[Meddler()])
    message = r"trained only entries of the masks: 2 of 32 entries of 'model.norm.weight' moved outside it; look for a"
    with pytest.raises(CheckFailed, match=message):
        _train(trainer)


def test_a_run_that_trains_nothing_fails(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="entries that were allowed to move did; look at the learning rate"):
        _train(make_trainer(tmp_path, learning_rate=0.0))


def test_a_second_optimizer_and_foreign_masks_are_refused(tmp_path: Path) -> None:
    model = make_model()
    other = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(UsageError, match=r"an optimizer was given.*leave out optimizers and optimizer_cls_and_kwargs"):
        make_trainer(tmp_path, model=model, optimizers=(other, None))
    with pytest.raises(InputError, match=r"model\.layers\.9"):
        make_trainer(tmp_path, masks={"model.layers.9.mlp.up_proj.weight": torch.ones(48, 32, dtype=torch.bool)})


def _sft(folder: Path, trainer_class: Any, model: nn.Module, **options: Any) -> Any:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig

    rows = Dataset.from_dict({"prompt": ["math 3 +5 ="] * 8, "completion": [" 3 +5 8"] * 8})
    with quiet(0):
        trainer = trainer_class(
            model, SFTConfig(**arguments(folder)), train_dataset=rows, processing_class=make_tokenizer(), **options
        )
        trainer.train()
    return trainer


@pytest.mark.slow
def test_the_sft_route_gives_the_same_weights_as_the_mixin(tmp_path: Path) -> None:
    from trl.trainer.sft_trainer import SFTTrainer

    model = make_model()
    masks, before = make_masks(model), snapshot(model)
    route = (MaskedAdamWFactory, {"masks": masks, "lr": 1e-2})
    plain = _sft(tmp_path / "plain", SFTTrainer, model, optimizer_cls_and_kwargs=route)
    seen = assert_trained(plain.model, before, lambda name: masks.get(name, False), what="its masks")
    mixed = _sft(tmp_path / "mixed", SparseSFTTrainer, make_model(), masks=masks)
    assert seen == mixed.trained
    for left, right in zip(plain.model.parameters(), mixed.model.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.slow
def test_grpo_inside_a_mask(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig

    model = make_model()
    masks = make_masks(model)
    chosen = arguments(
        tmp_path, num_generations=4, per_device_train_batch_size=8, max_completion_length=4, max_steps=2
    )
    rows = Dataset.from_dict({"prompt": ["math 3 +5 ="] * 8})

    def short(completion_ids: list[list[int]], **others: Any) -> list[float]:
        return [float(ids[0] % 2) for ids in completion_ids]

    with quiet(0):
        trainer = SparseGRPOTrainer(
            model, short, GRPOConfig(**chosen), train_dataset=rows, processing_class=make_tokenizer(), masks=masks
        )
        trainer.train()
    assert trainer.trained.allowed == sum(int(mask.sum()) for mask in masks.values())
    assert trainer.trained.changed > 0.9 * trainer.trained.allowed


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl.trainer.grpo_trainer", None)
    with pytest.raises(UsageError, match=r"is not installed; install the extra: pip install offprincipal\[train\]"):
        trl._trainer_class("SparseGRPOTrainer")
    with pytest.raises(AttributeError, match="has no attribute 'Sparse'"):
        trl.Sparse  # noqa: B018
