"""verl trains inside a mask: an FSDP engine whose optimizer is `MaskedAdamW`, found by verl itself.

What it is: an engine registered under the vendor ``offprincipal`` when verl loads its plugins (``verl_plugin``). Start
verl with ``VERL_ENGINE_VENDOR=offprincipal``, ``strategy=fsdp2``, and in the actor's optimizer
``override_optimizer_config={masks: PATH}``; further keys there are options of `MaskedAdamW`. What it is not: there
without that variable: verl is then left as it is. Nothing is checked after training: `compare` the checkpoints.
"""

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from offprincipal.errors import UsageError
from offprincipal.masksets import MaskSet
from offprincipal.train import MaskedAdamW, masks_for

VENDOR = "offprincipal"


def plugin() -> None:
    """Register the engine where ``VERL_ENGINE_VENDOR`` asks for it."""
    if os.environ.get("VERL_ENGINE_VENDOR") == VENDOR:
        register()


def register() -> type:
    """Register the engine with verl for every device, once, and return its class.

    Raises:
        UsageError: verl is not installed.
    """
    try:
        from verl.workers.engine.base import EngineRegistry  # pyright: ignore[reportMissingImports]
        from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead  # pyright: ignore
    except ImportError as missing:
        raise UsageError("train inside a mask with verl", f"{missing.name} is missing", "install verl") from missing
    key = ("cuda", VENDOR)
    backends = EngineRegistry._engines["language_model"]
    if key in backends["fsdp2"]:
        return backends["fsdp2"][key]

    class MaskedFSDPEngine(FSDPEngineWithLMHead):
        """verl's FSDP engine with the optimizer that keeps to a mask."""

        def _build_optimizer(self, module: nn.Module) -> MaskedAdamW:
            return build_optimizer(module, self.optimizer_config)

    options = {"model_type": "language_model", "backend": ["fsdp", "fsdp2"], "vendor": VENDOR}
    return EngineRegistry.register(device=["cuda", "npu", "cpu"], **options)(MaskedFSDPEngine)


def build_optimizer(module: nn.Module, config: Any) -> MaskedAdamW:
    """`MaskedAdamW` for the wrapped module, from verl's optimizer configuration.

    Args:
        module: after FSDP2 has sharded it.
        config: verl's ``FSDPOptimizerConfig``: lr, betas, weight_decay, and ``override_optimizer_config`` with
            ``masks``, the folder of a mask set; its other keys go to `MaskedAdamW`.

    Raises:
        UsageError: no masks were given, or FSDP1 has flattened the parameters (use ``strategy=fsdp2``).
        InputError: the masks do not fit.
    """
    options: dict[str, Any] = dict(getattr(config, "override_optimizer_config", None) or {})
    masks: Mapping[str, Any] | str | None = options.pop("masks", None)
    if masks is None:
        do_next = "add actor_rollout_ref.actor.optim.override_optimizer_config.masks=PATH"
        raise UsageError("train inside a mask with verl", "the optimizer's configuration names no masks", do_next)
    opened = MaskSet.open(masks) if isinstance(masks, str) else masks
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    common = {"lr": config.lr, "betas": tuple(config.betas), "weight_decay": config.weight_decay}
    return MaskedAdamW(parameters, masks_for(module, opened), **common | options)
