"""A PEFT LoRA adapter as a whole checkpoint: base + scaling * B A in float32, computed as each tensor is read.

Follows PEFT's ``tuners/lora/layer.py`` (``Linear.get_delta_weight``) and ``dora.py`` (``get_weight_norm``). Left out,
and refused with the reason: every other method, and the options of LoRA that change the base or the forward pass in
another way (see ``_REFUSED`` and ``_INITS``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from offprincipal.checkpoint._header import TensorInfo
from offprincipal.checkpoint._source import Source, Stored, read_whole
from offprincipal.errors import InputError
from offprincipal.names import canonical, family_of, is_tied

if TYPE_CHECKING:
    from torch import Tensor

_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base as it is. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA move part of it into B A."""

_REFUSED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
_LARGEST_ALPHA = 1e9  # beyond any use; a NaN is not below it either
_MERGE = "merge it with PEFT (merge_and_unload, save_pretrained) and give the merged folder"
_FACTOR = re.compile(r"(.+)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(?:\.weight)?")


@dataclass(frozen=True)
class LowRank:
    """The stored factors of one adapted weight.

    Attributes:
        a: ``[rank, in]``.
        b: ``[out, rank]``.
        scaling: alpha / rank, or alpha / sqrt(rank) with rsLoRA.
        transposed: the weight is stored as ``[in, out]`` (Conv1D, embeddings), so (B A)^T is added.
        magnitude: DoRA's norm of each row, if there is one.
    """

    a: Stored
    b: Stored
    scaling: float
    transposed: bool
    magnitude: Stored | None


@dataclass(frozen=True)
class Adapted:
    """A weight of the base with its low-rank update. Read in float32, only the rows asked for."""

    base: Source
    update: LowRank

    @property
    def info(self) -> TensorInfo:
        """As the base has it, in float32."""
        return replace(self.base.info, dtype="F32")

    def rows(self, runs: Sequence[tuple[int, int]]) -> Tensor:
        """The rows of each half-open run of base + scaling * B A, float32."""
        import torch

        a, b = read_whole(self.update.a).float(), read_whole(self.update.b).float()
        left, right = (a.T, b.T) if self.update.transposed else (b, a)
        picked = torch.cat([left[start:stop] for start, stop in runs])
        weight = self.base.rows(runs).float()
        weight.addmm_(picked, right, alpha=self.update.scaling)
        if self.update.magnitude is not None:
            magnitude = read_whole(self.update.magnitude).float()
            factor = torch.cat([magnitude[start:stop] for start, stop in runs]) / torch.linalg.norm(weight, dim=1)
            weight.mul_(factor[:, None])
        return weight

    def storage(self) -> tuple[TensorInfo, ...]:
        """The base's tensor and the factors."""
        factors = (self.update.a, self.update.b, self.update.magnitude)
        return (*self.base.storage(), *(factor.info for factor in factors if factor is not None))

    def recipe(self) -> list[object]:
        """The recipes of base and factors, and the scaling."""
        magnitude = self.update.magnitude.recipe() if self.update.magnitude else None
        factors = [self.update.a.recipe(), self.update.b.recipe(), magnitude]
        return [self.base.recipe(), factors, self.update.scaling, self.update.transposed]


def check_adapter(config: Mapping[str, Any], asked: str) -> None:
    """Raise if the adapter is not plain LoRA, rsLoRA or DoRA on an unchanged base.

    Raises:
        InputError: with the method or option that stands in the way.
    """
    method = config.get("peft_type")
    if method != "LORA":
        raise InputError(asked, f"the adapter's peft_type is {str(method)[:40]!r}, and only LORA is read", _MERGE)
    for option in _REFUSED:
        if config.get(option):
            raise InputError(asked, f"the adapter uses {option}, which is not read", _MERGE)
    init = config.get("init_lora_weights")
    if not (init is None or isinstance(init, bool) or init in _INITS):
        raise InputError(
            asked,
            f"the adapter began as {str(init)[:40]!r}, which changes the base weights, so base + B A is not the model",
            "save it with PEFT's path_initial_model_for_weight_conversion, or give the merged folder",
        )


def adapt(
    base: Mapping[str, Source],
    base_config: Mapping[str, Any],
    adapter: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    asked: str,
) -> dict[str, Source]:
    """The sources of the adapted model, in the order of the names.

    Args:
        base: sources of the base.
        base_config: its config.json.
        adapter: tensors of ``adapter_model.safetensors``.
        config: ``adapter_config.json``, checked before.
        asked: what the user wanted, for the message of an error.

    Raises:
        InputError: a module that the base has not, factors that do not fit it, or a tied embedding that is adapted.
    """
    family = family_of(base_config)
    stored = {canonical(name, family): name for name in base}
    factors: dict[str, dict[str, Stored]] = {}
    adapted = dict(base)
    for name, info in adapter.items():
        match = _FACTOR.fullmatch(name)
        if match:
            factors.setdefault(match[1], {})[match[2].removeprefix("embedding_")] = Stored(info)
            factors[match[1]].update({"embedding": Stored(info)} if "embedding" in match[2] else {})
            continue
        if ".lora_" in name:
            raise InputError(asked, f"the adapter's tensor {name!r} is not read", _MERGE)
        plain = name.replace(".modules_to_save", "").replace(".base_layer", "")
        adapted[_target(plain, stored, family.root, asked)] = Stored(info)
    for module, found in factors.items():
        target = _target(module + ".weight", stored, family.root, asked)
        adapted[target] = Adapted(adapted[target], _low_rank(module, found, adapted[target].info, config, asked))
    _refuse_tied(base, adapted, base_config, stored, asked)
    return dict(sorted(adapted.items()))


def _target(name: str, stored: Mapping[str, str], root: str, asked: str) -> str:
    """The base's name of the tensor that an adapter's name means."""
    target = canonical(name)
    for candidate in (target, root + target):
        if candidate in stored:
            return stored[candidate]
    raise InputError(asked, f"the base has no tensor for {name!r}", "give the base that the adapter was trained on")


def _low_rank(
    module: str, found: Mapping[str, Stored], weight: TensorInfo, config: Mapping[str, Any], asked: str
) -> LowRank:
    """The update of one module, its shapes checked against the weight."""
    if "A" not in found or "B" not in found:
        raise InputError(asked, f"the adapter has only one factor of {module!r}", "fetch or save the adapter again")
    a, b, magnitude = found["A"], found["B"], found.get("magnitude_vector")
    transposed = bool(config.get("fan_in_fan_out")) or "embedding" in found
    if magnitude is not None and transposed:
        raise InputError(asked, f"DoRA on the transposed weight of {module!r} is not read", _MERGE)
    fits = len(a.info.shape) == len(b.info.shape) == len(weight.shape) == 2 and a.info.shape[0] == b.info.shape[1]
    wanted = (weight.shape[::-1] if transposed else weight.shape) if fits else ()
    rows = (b.info.shape[0], a.info.shape[1]) if fits else (0, 0)
    if rows != wanted or (magnitude is not None and magnitude.info.shape != (weight.shape[0],)):
        shapes = f"{list(b.info.shape)} x {list(a.info.shape)}"
        raise InputError(
            asked,
            f"the factors {shapes} of {module!r} do not fit its weight {list(weight.shape)}",
            "give the base that the adapter was trained on",
        )
    return LowRank(a, b, scaling(module, a.info.shape[0], config, asked), transposed, magnitude)


def scaling(module: str, rank: int, config: Mapping[str, Any], asked: str) -> float:
    """Alpha / rank, or alpha / sqrt(rank) with rsLoRA, where the patterns may set alpha and rank for a module."""
    name = re.sub(r"^base_model\.model\.", "", module)
    alpha = _pattern(config.get("alpha_pattern"), name, config.get("lora_alpha"), asked)
    declared = _pattern(config.get("rank_pattern"), name, config.get("r"), asked)
    if type(declared) is not int or declared != rank or rank == 0:
        raise InputError(
            asked,
            f"{module!r} has rank {rank} and adapter_config.json says {str(declared)[:40]}",
            "fetch or save the adapter again",
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA:
        raise InputError(asked, f"adapter_config.json gives no lora_alpha for {module!r}", "mend adapter_config.json")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(patterns: Any, name: str, default: Any, asked: str) -> Any:
    """The value of the first pattern that matches the end of a module's name, as ``peft.utils.get_pattern_key``."""
    if not isinstance(patterns, dict):
        return default
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except (re.error, OverflowError, RecursionError):
            raise InputError(
                asked, f"adapter_config.json holds the invalid pattern {pattern[:80]!r}", "mend adapter_config.json"
            ) from None
    return default


def _refuse_tied(
    base: Mapping[str, Source],
    adapted: Mapping[str, Source],
    config: Mapping[str, Any],
    stored: Mapping[str, str],
    asked: str,
) -> None:
    """An adapted embedding under a tied head is ambiguous: whether the head follows depends on how it is loaded."""
    family = family_of(config)
    names = (f"{family.root}{family.embed}.weight", f"{family.head}.weight")
    changed = [name for name in names if name in stored and adapted[stored[name]] is not base[stored[name]]]
    if changed and (is_tied(config) or names[1] not in stored):
        raise InputError(asked, f"the adapter changes {changed[0]!r}, and the model's head is tied to it", _MERGE)
