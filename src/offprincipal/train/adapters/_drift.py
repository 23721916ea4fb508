"""Frozen weights that moved: what merging and unmerging an adapter does to a base in bfloat16 (huggingface/trl#6688).

W + D is rounded to W's dtype, and W + D - D rounded again is not W. A trainer that merges for every generation repeats
that, and what it calls frozen walks. What it is: a copy of the adapted weights on the CPU, counted against, put back.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from offprincipal.errors import CheckFailed, UsageError


@dataclass(frozen=True)
class Drift:
    """How many frozen weights differ from when the guard was made.

    Attributes:
        weights: entries watched.
        moved: entries that compare unequal now (+0 and -0 are equal).
        largest: the largest distance of one entry, in the units of the weight.
        modules: module path to entries moved, of those with any.
        dtypes: torch's names of the dtypes watched.
    """

    weights: int
    moved: int
    largest: float
    modules: Mapping[str, int] = field(repr=False)
    dtypes: tuple[str, ...]

    @property
    def share(self) -> float:
        """``moved / weights``."""
        return self.moved / self.weights


class MergeDrift:
    """Watches the frozen weights beneath the adapters of a PEFT model.

    Args:
        model: a PEFT model, not merged at the moment. Copies of its adapted base weights are kept on the CPU, in their
            own dtype: as many bytes as those weights take.

    Raises:
        UsageError: no module carries a LoRA adapter, or one is merged.

    >>> from types import SimpleNamespace
    >>> layer = nn.Module()
    >>> layer.base_layer, layer.lora_A, layer.merged = nn.Linear(2, 1), nn.ModuleDict(), False
    >>> guard = MergeDrift(nn.Sequential(layer))
    >>> _ = layer.base_layer.weight.data.add_(1)
    >>> guard.report().moved, guard.restore(), guard.report().moved
    (2, 2, 0)
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._kept = {path: weight.detach().cpu().clone() for path, weight in self._weights("watch frozen weights")}
        if not self._kept:
            raise UsageError("watch frozen weights", "no module carries a LoRA adapter", "give the PEFT model")

    def _weights(self, asked: str) -> Iterator[tuple[str, Tensor]]:
        for path, module in self._model.named_modules():
            layer: Any = module
            if not (hasattr(layer, "base_layer") and hasattr(layer, "lora_A")):
                continue
            if layer.merged:
                raise UsageError(asked, f"{path!r} is merged at the moment", "call unmerge_adapter() first")
            yield path, layer.base_layer.weight

    def report(self) -> Drift:
        """Compare now with then, one module at a time.

        Raises:
            UsageError: an adapter is merged at the moment, so the weights differ on purpose.
        """
        moved, largest = {}, 0.0
        for path, weight in self._weights("compare frozen weights"):
            kept, now = self._kept[path], weight.detach().cpu()
            differing = int((now != kept).sum())
            if differing:
                moved[path] = differing
                largest = max(largest, float((now.double() - kept.double()).abs().max()))
        dtypes = tuple(sorted({str(kept.dtype).removeprefix("torch.") for kept in self._kept.values()}))
        return Drift(sum(map(Tensor.numel, self._kept.values())), sum(moved.values()), largest, moved, dtypes)

    def check(self) -> Drift:
        """The report, if nothing moved.

        Raises:
            CheckFailed: with the number, the share and the first module.
            UsageError: an adapter is merged at the moment.
        """
        found = self.report()
        if found.moved:
            path, count = next(iter(found.modules.items()))
            raise CheckFailed(
                "keep the base frozen",
                f"{found.moved:,} of {found.weights:,} frozen {'/'.join(found.dtypes)} weights moved "
                f"({found.share:.2%}), first {count:,} of {path!r}",
                "serve the adapter unmerged, merge into a copy, or call restore() after each unmerge",
            )
        return found

    @torch.no_grad()
    def restore(self) -> int:
        """Put the copies back, bit for bit; returns how many entries had moved.

        Raises:
            UsageError: an adapter is merged at the moment.
        """
        moved = self.report().moved
        for path, weight in self._weights("restore frozen weights"):
            weight.copy_(self._kept[path])
        return moved
