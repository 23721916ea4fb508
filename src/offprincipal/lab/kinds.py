"""The kinds of reinforced arms: every weight, the weights of a mask, an adapter; each checked to be what it says.

What it is: from the base to a trained decoder, with the facts that prove what was trained. What it is not: data,
rewards or steps, which all arms share (``rlvr.run_grpo``), nor folders and records (``arms``).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from offprincipal import fanout
from offprincipal.errors import CheckFailed
from offprincipal.masksets import MaskSet, build_masks
from offprincipal.train.weights import Snapshot, Trained, assert_trained, effective_weights, snapshot

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM, Trainer

MASKS = ("linear", "safe", "principal", "nonprincipal", "low", "random")
"""Arms that train some entries of the linear matrices; ``linear`` trains them all, ``random`` as many as ``safe``."""

RANK_ONE = "lora-1"
"""LoRA of rank 1, whatever the rank of the others; its scaling is theirs."""

ADAPTERS = ("lora", RANK_ONE, "dora", "pissa", "milora", "geora", "rlpo", "rlmo", "off-principal")

ARMS = ("dense", *MASKS, *ADAPTERS)

DRAWS = {f"random-{number}": number - 1 for number in range(2, 6)}
"""Four more draws of the mask of ``random`` and their seeds: how much the draw itself decides."""

BEGINS = {
    "rlpo": (0.99, 1.0),
    "pissa": (0.99, 1.0),
    "rlmo": (0, 0.01),
    "milora": (0, 0.01),
    "off-principal": (0, 0.01),
}
"""Share of A's energy at the start that must lie in the leading right singular subspace of its rank (*ours*)."""

NO_OP = 1e-6
"""How far the weights that an adapter applies may be from the base at the start, relative (DoRA divides by a norm)."""


@dataclass(frozen=True)
class Task:
    """What an arm is given: the base, a folder for what it writes, the size of adapters, and the run to make.

    `run` is `rlvr.run_grpo` but for the model, the trainer's class and callbacks.
    """

    lab: Path
    folder: Path
    rank: int
    alpha: float
    seed: int
    run: "Callable[..., Trainer]"


@dataclass(frozen=True)
class Finished:
    """A trained arm: a plain decoder, how many parameters were trained, and what was seen of it."""

    model: "Qwen3ForCausalLM"
    parameters: int
    trainer: "Trainer"
    facts: dict[str, Any]


def train_arm(arm: str, model: "Qwen3ForCausalLM", task: Task) -> Finished:
    """Train the float32 base as this arm and check what was trained.

    Raises:
        CheckFailed: something moved that the arm does not train, nothing moved, or an adapter is not of its kind.
    """
    if arm in MASKS or arm in DRAWS:
        return _masked(arm, model, task)
    if arm in ADAPTERS:
        return _adapter(arm, model, task)
    before = snapshot(model)
    trainer = task.run(model)
    seen = assert_trained(model, before, lambda name: True, what="its weights")
    return Finished(model, seen.allowed, trainer, {"seen": vars(seen)})


def _masked(arm: str, model: "Qwen3ForCausalLM", task: Task) -> Finished:
    from offprincipal.train.trl import SparseGRPOTrainer

    masks = mask_set(arm, task.lab)
    assert masks is not None  # of an arm of `MASKS`
    trainer: Any = task.run(model, trainer_class=partial(SparseGRPOTrainer, masks=masks))
    seen: Trained = trainer.trained
    return Finished(model, seen.allowed, trainer, {"seen": vars(seen), "density": masks.density()})


def mask_set(arm: str, lab: Path) -> MaskSet | None:
    """The mask set of this arm, made once beside the base: one that is there is taken if it is of this base.

    None for an arm without a mask.
    """
    if arm not in MASKS and arm not in DRAWS:
        return None
    rule: dict[str, Any] = {"kind": arm}
    if arm == "linear":
        rule = {"kind": "low", "alpha": 1.0}
    if arm == "random" or arm in DRAWS:
        rule = {"kind": "random", "like": mask_set("safe", lab), "seed": DRAWS.get(arm)}
    return build_masks(lab / "base", lab / "masks" / arm, engine=fanout.here, **rule)


def _adapter(arm: str, model: "Qwen3ForCausalLM", task: Task) -> Finished:
    if arm == RANK_ONE:
        arm, task = "lora", replace(task, rank=1, alpha=task.alpha / task.rank)
    before = Snapshot((weight.name, weight.read()) for weight in effective_weights(model))
    peft_model, callbacks = _begin(arm, model, task)
    facts = _check_start(arm, peft_model, before, task)
    frozen = snapshot(peft_model)
    trainer = task.run(peft_model, callbacks=callbacks)
    peft_model = peft_model.cpu()
    seen = assert_trained(peft_model, frozen, lambda name: "lora_" in name, what="its adapter")
    peft_model.save_pretrained(task.folder / "adapter")
    applied = {weight.name: weight.read() for weight in effective_weights(peft_model)}
    merged = peft_model.merge_and_unload()
    _check_merge(arm, applied, merged)
    return Finished(merged, facts.pop("parameters_trained"), trainer, {"seen": vars(seen), **facts})


def _begin(arm: str, model: "Qwen3ForCausalLM", task: Task) -> tuple[Any, list[Any]]:
    """The base with the adapter on it, and what must happen beside its training."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if arm == "dora":
        config = LoraConfig(
            r=task.rank, lora_alpha=int(task.alpha), use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return get_peft_model(model, config), []
    from offprincipal.train.adapters import hold_callback, init_adapter

    begun = task.folder / "begun"
    init_adapter(
        task.lab / "base",
        begun,
        method=arm,
        rank=task.rank,
        alpha=task.alpha,
        seed=task.seed,
        engine=fanout.here,
    )
    return PeftModel.from_pretrained(model, str(begun), is_trainable=True), [hold_callback(begun)]


def _check_start(arm: str, model: Any, before: Snapshot, task: Task) -> dict[str, Any]:
    """That the adapter changes nothing yet, has its rank and kind, and begins in the subspace it promises."""
    from offprincipal.train.adapters import DOUBLED

    start = 0.0
    for weight in effective_weights(model):
        now, base = weight.read().double(), before[weight.name].double()
        start = max(start, float((now - base).norm() / base.norm().clamp(min=1e-30)))
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    stored = {layer.lora_A["default"].weight.shape[0] for layer in layers.values()}
    wanted = task.rank * (2 if arm in DOUBLED else 1)
    magnitudes = [layer for layer in layers.values() if layer.lora_magnitude_vector]
    principal = _in_principal(layers.values(), task.rank)
    low, high = BEGINS.get(arm, (0, 1))
    problems = [
        (start > NO_OP, f"it changes the base by {start:.2g} before the first step"),
        (stored != {wanted}, f"its ranks are {sorted(stored)} instead of {wanted}"),
        (len(magnitudes) != (len(layers) if arm == "dora" else 0), f"{len(magnitudes)} of its layers have DoRA"),
        (not low - 1e-6 <= principal <= high + 1e-6, f"{principal:.3f} of A lies in the principal subspace"),
    ]
    for broken, found in problems:
        if broken:
            raise CheckFailed(f"train {arm!r}", found, "this is a bug in how the adapter is begun; please report it")
    sides = sum(sum(layer.get_base_layer().weight.shape) for layer in layers.values())
    extra = sum(layer.lora_magnitude_vector["default"].weight.numel() for layer in magnitudes)
    return {
        "parameters_trained": task.rank * sides + extra,
        "parameters_stored": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "modules": len(layers),
        "rank": task.rank,
        "alpha": task.alpha,
        "start_change": start,
        "start_norm_a": _norm(layer.lora_A["default"].weight for layer in layers.values()),
        "start_norm_b": _norm(layer.lora_B["default"].weight for layer in layers.values()),
        "start_in_principal": principal,
    }


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    return sum(float(tensor.detach().double().square().sum()) for tensor in tensors) ** 0.5


def _in_principal(layers: Any, rank: int) -> float:
    """Share of ``||A||^2`` in the leading right singular subspace of this rank, over all layers."""
    inside = total = 0.0
    for layer in layers:
        right = torch.linalg.svd(layer.get_base_layer().weight.detach().double(), full_matrices=False).Vh[:rank]
        a = layer.lora_A["default"].weight.detach().double()
        inside += float((a @ right.T).square().sum())
        total += float(a.square().sum())
    return inside / total


def _check_merge(arm: str, applied: dict[str, torch.Tensor], merged: "Qwen3ForCausalLM") -> None:
    """That the merged decoder holds the weights that the adapter applied, up to the rounding of one product."""
    for weight in effective_weights(merged):
        now, then = weight.read().double(), applied[weight.name].double()
        off = float((now - then).norm() / then.norm().clamp(min=1e-30))
        if off > NO_OP:
            found = f"{weight.name!r} differs by {off:.2g} from what the adapter applied"
            raise CheckFailed(f"merge {arm!r}", found, "this is a bug in the merge; please report it")
