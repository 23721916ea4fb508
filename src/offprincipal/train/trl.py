"""Training inside a mask with the trainers that people already use: `SparseGRPOTrainer` and the mixin behind it.

What it is: a trainer of TRL or transformers whose optimizer is `MaskedAdamW`, and which checks after training that
nothing outside the mask moved. What it is not: another trainer; every option, loss and callback is theirs. The ready
classes are made on first use, because they derive from TRL's (extra ``train``).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from offprincipal.errors import UsageError
from offprincipal.masksets import MaskSet
from offprincipal.names import canonical
from offprincipal.train import MaskedAdamW, masks_for
from offprincipal.train.weights import Trained, assert_trained, parameter_names, snapshot

if TYPE_CHECKING:
    from transformers import Trainer
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.sft_trainer import SFTTrainer

Masks = str | Path | MaskSet | Mapping[str, Tensor]
"""A mask set, the folder of one, or boolean tensors by weight name."""


class SparseTrainerMixin:
    """Put before a trainer of transformers: ``class Mine(SparseTrainerMixin, SFTTrainer): pass``.

    Learning rate, betas, epsilon and weight decay are the trainer's arguments, the groups without weight decay too;
    the optimizer is always `MaskedAdamW`. Clipping sees the whole gradient, off the mask too. After `train` the
    weights are compared with a copy made at construction (on the CPU: 2 bytes per parameter where they are exact in
    bfloat16, else their own size); a run that resumes is compared with the model that the trainer was built with.

    Args:
        args: of the trainer.
        masks: a mask set, the folder of one, or a mapping of weight names to boolean tensors.
        rest: what happens to parameters without a mask: ``"freeze"`` or ``"train"``.
        base: the checkpoint that the model was loaded from; a mask set made for another one is refused (a mapping
            knows no base).
        masked_options: further options of `MaskedAdamW`, such as ``masters`` or ``stochastic_rounding``.
        kwargs: of the trainer.

    Raises:
        UsageError: the trainer was given an optimizer of its own.
        InputError: the masks do not fit the model.
        CheckFailed: by `train`: something off the mask moved, or nothing on it did.

    Attributes:
        trained: what `train` was seen to move; None before.
    """

    if TYPE_CHECKING:
        model: Any
        args: Any
        optimizer: Any

        def get_decay_parameter_names(self, model: nn.Module) -> list[str]: ...  # noqa: D102

    def __init__(
        self,
        *args: Any,
        masks: Masks,
        rest: str = "freeze",
        base: Any = None,
        masked_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        if self.optimizer is not None or kwargs.get("optimizer_cls_and_kwargs") is not None:
            found = "an optimizer was given, and the one that keeps to the mask is made by the trainer"
            raise UsageError("train inside a mask", found, "leave out optimizers and optimizer_cls_and_kwargs")
        self.trained: Trained | None = None
        self._masks, self._rest, self._options = _opened(masks), rest, dict(masked_options or {})
        known = base if isinstance(self._masks, MaskSet) else None
        masks_for(self.model, self._masks, base=known)  # so that masks that do not fit are refused before any step
        self._mask_names = _by_parameter(self.model, self._masks)
        self._start = snapshot(self.model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """`MaskedAdamW` over the trainer's groups; ``model`` is the wrapped one under FSDP."""
        if self.optimizer is None:
            wrapped: Any = self.model if model is None else model
            groups = _groups(wrapped, self.args.weight_decay, self.get_decay_parameter_names(wrapped))
            found, args = masks_for(wrapped, self._masks), self.args
            self.optimizer = MaskedAdamW(
                groups,
                found,
                lr=args.learning_rate,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
                rest=self._rest,  # pyright: ignore[reportArgumentType]
                **self._options,
            )
        return self.optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, then check what was trained."""
        output = super().train(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        self.trained = assert_trained(self.model, self._start, self._allowed, what=f"entries of {_words(self._masks)}")
        return output

    def _allowed(self, name: str) -> Tensor | bool:
        mask = self._mask_names.get(name)
        return self._rest == "train" if mask is None else self._masks[mask]


def _opened(masks: Masks) -> MaskSet | Mapping[str, Tensor]:
    return MaskSet.open(masks) if isinstance(masks, (str, Path)) else masks


def _words(masks: MaskSet | Mapping[str, Tensor]) -> str:
    return f"the masks of kind {masks.header['rule'].get('kind')!r}" if isinstance(masks, MaskSet) else "the masks"


def _by_parameter(model: nn.Module, masks: Iterable[str]) -> dict[str, str]:
    """The name under which a parameter is found first (a tied one has several) to the name of its mask."""
    first = {parameter: name for name, parameter in parameter_names(model)}
    every = {canonical(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    return {first[every[canonical(name)]]: name for name in masks}


def _groups(model: nn.Module, weight_decay: float, decayed: list[str]) -> list[dict[str, Any]]:
    """The trainer's two groups: with weight decay, and (norms, biases) without."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    with_decay = [parameter for name, parameter in named if name in decayed]
    without = [parameter for name, parameter in named if name not in decayed]
    groups = [{"params": with_decay, "weight_decay": weight_decay}, {"params": without, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class MaskedAdamWFactory:
    """For trainers that take ``optimizer_cls_and_kwargs``: the class there, with ``masks`` among its options.

    ``SFTTrainer(..., optimizer_cls_and_kwargs=(MaskedAdamWFactory, {"masks": "masks/safe", "lr": 1e-5}))``. The
    trainer hands it the model, so that names reach the masks. Nothing is checked after training on this route: call
    `assert_trained`, or use `SparseTrainerMixin`. Weight decay (none by default) applies to every masked entry.
    """

    def __call__(
        self, model: nn.Module, *, masks: Masks, weight_decay: float = 0.0, **options: Any
    ) -> torch.optim.Optimizer:
        """The optimizer over all parameters of the model that train."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return MaskedAdamW(parameters, masks_for(model, _opened(masks)), weight_decay=weight_decay, **options)


def _trainer_class(name: str) -> type:
    try:
        from transformers import Trainer
        from trl.trainer.grpo_trainer import GRPOTrainer
        from trl.trainer.sft_trainer import SFTTrainer
    except ImportError as missing:
        do_next = "install the extra: pip install offprincipal[train]"
        raise UsageError("train inside a mask", f"{missing.name} is not installed", do_next) from missing
    parent = {"SparseGRPOTrainer": GRPOTrainer, "SparseSFTTrainer": SFTTrainer, "SparseTrainer": Trainer}[name]
    return type(name, (SparseTrainerMixin, parent), {"__doc__": SparseTrainerMixin.__doc__, "__module__": __name__})


if TYPE_CHECKING:

    class SparseGRPOTrainer(SparseTrainerMixin, GRPOTrainer): ...  # noqa: D101

    class SparseSFTTrainer(SparseTrainerMixin, SFTTrainer): ...  # noqa: D101

    class SparseTrainer(SparseTrainerMixin, Trainer): ...  # noqa: D101


def __getattr__(name: str) -> Any:
    if name not in ("SparseGRPOTrainer", "SparseSFTTrainer", "SparseTrainer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _trainer_class(name)
    return globals()[name]
