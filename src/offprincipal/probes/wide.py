"""Whole float64 through models that step down to float32 inside (norms, attention softmax, rotary angles)."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Wide(TorchFunctionMode):
    """While active, a request for float32 is answered in float64.

    transformers computes norms and softmax in float32 whatever the weights are in: right for bfloat16, and a floor of
    1e-7 under the small differences that a float64 model is asked for.

    >>> with Wide():
    ...     torch.ones(1).float().dtype, torch.ones(1).to(torch.float32).dtype
    (torch.float64, torch.float64)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call with every float32 exchanged for float64."""
        wide = Tensor.double if func is Tensor.float else func
        return wide(*map(_widened, args), **{name: _widened(value) for name, value in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
