"""Weights that are codes of a quantiser, not numbers: recognised and refused, never compared as they lie."""

from collections.abc import Iterable, Mapping
from typing import Any

from offprincipal.checkpoint._header import TensorInfo
from offprincipal.errors import InputError

PACKED = (".qweight", ".qzeros", ".weight_packed", ".SCB", ".absmax", ".quant_map", "_proj_blocks", ".weight_format")
SCALES = (".weight_scale_inv", ".weight_scale", "_scale_inv", ".input_scale", ".g_idx", "_proj_scales")


def refuse_quantised(tensors: Iterable[TensorInfo], config: Mapping[str, Any], asked: str) -> None:
    """Raise if the weights only make sense together with a quantiser's scales.

    Plain fp8 tensors (a cast, no scales) are numbers and pass. GPTQ, AWQ, bitsandbytes, compressed-tensors, MXFP4 and
    fp8 with block scales are refused: the stored values of such a tensor are not its weights.

    Raises:
        InputError: with the method and the tensor that gave it away.
    """
    advice = "give the unquantised checkpoint, or dequantise it first and save it in bf16"
    quantiser = config.get("quantization_config")
    if isinstance(quantiser, dict) and quantiser:
        method = str(quantiser.get("quant_method", "unnamed"))[:40]
        raise InputError(asked, f"the weights are quantised (config.json: quant_method {method!r})", advice)
    for info in tensors:
        if info.name.endswith(PACKED):
            raise InputError(asked, f"the weights are quantised (packed tensor {info.name!r})", advice)
        if info.name.endswith(SCALES):
            raise InputError(asked, f"the weights are quantised (scales in tensor {info.name!r})", advice)
        if info.name.endswith(".weight") and not info.is_float:
            raise InputError(asked, f"the weights are quantised (tensor {info.name!r} is {info.dtype})", advice)
