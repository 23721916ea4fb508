"""Keep an adapter to its method while it is trained, by whoever trains it.

What it is: gradient hooks and a hook after each optimizer step on the LoRA parameters of a PEFT model. What it is not:
an optimizer. Two promises are kept:

* off-principal: after each step B is projected off U_k and A off V_k, so that ``U_k^T D = 0`` and ``D V_k = 0`` hold
  to rounding at every step. Cost per step and module: ``4 k r (out + in)`` flops, and U_k, V_k in float32.
* pissa, milora, geora: the stored factors are ``[A0 + dA; dA]`` and ``[dB, B0]``. B0 is frozen, both dA are one, and
  dA gets the sum of the two gradients. So dA and dB move as A and B do in the method's original form, to rounding.
  Weight decay pulls D to zero as in plain LoRA; in the original form it pulls towards the changed base.

lora, rlpo and rlmo promise nothing beyond their start.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import safe_open
from torch import Tensor, nn

from offprincipal.errors import CheckFailed, InputError, UsageError
from offprincipal.names import WRAPPERS
from offprincipal.train.adapters._folder import NOTE, PREFIX, SUBSPACES, WEIGHTS, open_adapter
from offprincipal.train.adapters._recipe import DOUBLED

TOLERANCE = 1e-4
"""Relative distance from a promise that counts as broken (*ours*): float32 stays near 1e-6, bfloat16 does not."""


class Rule(Protocol):
    """What one module promises."""

    def apply(self) -> None:
        """Put the parameters back where the promise holds."""
        ...

    def residual(self) -> float:
        """How far the parameters are from it, relative; 0 when it holds exactly."""
        ...

    def hook(self) -> list[Any]:
        """Register gradient hooks; returns their handles."""
        ...


@dataclass(frozen=True)
class OffSubspaces:
    """B stays off the left, A off the right subspace.

    Attributes:
        a: ``[rank, in]``, trained.
        b: ``[out, rank]``, trained.
        left: ``[out, k]``, orthonormal columns, float32.
        right: ``[in, k]``.
    """

    a: nn.Parameter
    b: nn.Parameter
    left: Tensor
    right: Tensor

    @torch.no_grad()
    def apply(self) -> None:
        """``B <- B - U (U^T B), A <- A - (A V) V^T`` in float32."""
        left, right = self.left.to(self.b.device), self.right.to(self.a.device)
        b, a = self.b.float(), self.a.float()
        self.b.copy_(b - left @ (left.T @ b))
        self.a.copy_(a - (a @ right) @ right.T)

    @torch.no_grad()
    def residual(self) -> float:
        """The larger of ``|U^T B| / |B|`` and ``|A V| / |A|``, in float64."""
        b, a = self.b.double(), self.a.double()
        left, right = self.left.to(b), self.right.to(a)
        return max(_share(left.T @ b, b), _share(a @ right, a))

    def hook(self) -> list[Any]:
        """None is needed."""
        return []


@dataclass(frozen=True)
class Tied:
    """``lora_A = [A0 + dA; dA], lora_B = [dB, B0]`` with one dA, and B0 frozen.

    Attributes:
        a: ``[2 rank, in]``, trained.
        b: ``[out, 2 rank]``, trained.
        a0: ``[rank, in]``, where A began.
        b0: ``[out, rank]``, where B began.
    """

    a: nn.Parameter
    b: nn.Parameter
    a0: Tensor
    b0: Tensor

    @torch.no_grad()
    def apply(self) -> None:
        """Write ``A0 + dA`` and B0 anew from what was trained."""
        rank = len(self.a0)
        self.a[:rank] = self.a0.to(self.a) + self.a[rank:]
        self.b[:, rank:] = self.b0.to(self.b)

    @torch.no_grad()
    def residual(self) -> float:
        """The larger of the distances of ``A0 + dA`` and of B0 from what they should be, relative."""
        rank = len(self.a0)
        wanted, kept = self.a0.to(self.a) + self.a[rank:], self.b0.to(self.b)
        return max(_share(self.a[:rank] - wanted, wanted), _share(self.b[:, rank:] - kept, kept))

    def hook(self) -> list[Any]:
        """DA gets both gradients, ``A0 + dA`` and B0 none: the gradient's norm is that of the original form."""
        rank = len(self.a0)

        def of_a(gradient: Tensor) -> Tensor:
            return torch.cat([torch.zeros_like(gradient[:rank]), gradient[:rank] + gradient[rank:]])

        def of_b(gradient: Tensor) -> Tensor:
            return torch.cat([gradient[:, :rank], torch.zeros_like(gradient[:, rank:])], dim=1)

        return [self.a.register_hook(of_a), self.b.register_hook(of_b)]


def _share(part: Tensor, whole: Tensor) -> float:
    size = float(whole.norm())
    return float(part.norm()) / size if size else float(part.norm())


@dataclass
class Held:
    """The rules of a model's adapter; see `hold`.

    Attributes:
        rules: module path to rule; empty for a method that promises nothing.
        method: of the folder.
    """

    rules: Mapping[str, Rule]
    method: str
    _handles: list[Any] = field(default_factory=list, repr=False)

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Register the hooks: gradients from now on, and `apply` after each step of this optimizer.

        Wrapped optimizers (accelerate's) are unwrapped. Attaching again moves the hooks to the new optimizer.

        Raises:
            CheckFailed: the adapter is not where its method would be: it was trained without this.
        """
        self.check()
        self.detach()
        while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = inner
        if self.rules:
            after: Callable[..., None] = lambda *_: self.apply()  # noqa: E731
            self._handles = [handle for rule in self.rules.values() for handle in rule.hook()]
            self._handles.append(optimizer.register_step_post_hook(after))
        return self

    def apply(self) -> None:
        """Put every module back where its promise holds; a step's hook does it by itself."""
        for rule in self.rules.values():
            rule.apply()

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def residuals(self) -> dict[str, float]:
        """Module path to the relative distance from its promise."""
        return {path: rule.residual() for path, rule in self.rules.items()}

    def check(self, tolerance: float = TOLERANCE) -> float:
        """The largest residual.

        Raises:
            CheckFailed: it exceeds the tolerance, or is not a number; the module is named.
        """
        found = self.residuals()
        for path, residual in found.items():
            if not residual <= tolerance:
                raise CheckFailed(
                    f"hold the {self.method} adapter",
                    f"{path} is {residual:.3g} away from what it promises (relative; at most {tolerance:g})",
                    "train it with hold(model, folder).attach(optimizer) from the first step, in float32",
                )
        return max(found.values(), default=0.0)


def hold(model: nn.Module, folder: str | Path, adapter: str = "default") -> Held:
    """The promises of the adapter in `folder`, on the parameters of a PEFT model that was loaded from it.

    Args:
        model: a PeftModel whose adapter began as `folder` (it may have been trained under `hold` since, and reloaded).
        folder: what ``adapter init`` wrote; not a later checkpoint of it.
        adapter: the adapter's name in the model.

    Returns:
        `Held`; nothing is hooked yet: call ``attach(optimizer)``.

    Raises:
        InputError: the folder was not written by ``adapter init``, or has lost a file.
        UsageError: the model has not the modules of the folder, or its adapter is sharded.

    Single process and data parallel; adapter parameters in float32, as PEFT loads them.
    """
    opened, asked = open_adapter(folder), f"hold the adapter {str(folder)!r}"
    method = opened.note.get("method")
    if method is None:
        raise InputError(asked, f"there is no {NOTE} in it", "give the folder that offprincipal adapter init wrote")
    ranks = {path: factor.a.info.shape[0] for path, factor in opened.factors.items()}
    found = _parameters(model, adapter, ranks, asked)
    if method in DOUBLED:
        return Held(_tied(opened.folder / WEIGHTS, found), method)
    if method == "off-principal":
        return Held(_off_subspaces(opened.folder / f"{SUBSPACES}.safetensors", found, asked), method)
    return Held({}, method)


Pair = tuple[nn.Parameter, nn.Parameter]


def _parameters(model: nn.Module, adapter: str, ranks: Mapping[str, int], asked: str) -> dict[str, Pair]:
    """Module path to lora_A and lora_B, of exactly the modules wanted."""
    found: dict[str, Pair] = {}
    for name, module in model.named_modules():
        inner = getattr(module, "lora_A", None)
        if isinstance(inner, nn.ModuleDict) and adapter in inner:
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            found[name.rpartition(PREFIX)[2]] = (inner[adapter].weight, module.lora_B[adapter].weight)  # pyright: ignore
    differing = sorted(found.keys() ^ ranks.keys())
    if differing:
        whose = "the model has not" if differing[0] in ranks else "the folder has not"
        do_next = "load it with PeftModel.from_pretrained(base, folder, is_trainable=True)"
        raise UsageError(asked, f"{whose} the adapted module {differing[0]!r} ({len(differing)} differ)", do_next)
    for path, (a, b) in found.items():
        if any(hasattr(each, "device_mesh") for each in (a, b)) or a.ndim != 2:
            raise UsageError(asked, f"{path!r} is sharded", "shard the base only (data parallel for the adapter)")
        if a.shape[0] != ranks[path]:
            raise UsageError(
                asked, f"{path!r} has rank {a.shape[0]}, the folder {ranks[path]}", "load it from the folder"
            )
    return found


def _tied(file: Path, found: Mapping[str, Pair]) -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    with safe_open(file, framework="pt") as opened:
        for path, (a, b) in found.items():
            rank = a.shape[0] // 2
            a0 = opened.get_tensor(f"{PREFIX}{path}.lora_A.weight")[:rank].clone()
            b0 = opened.get_tensor(f"{PREFIX}{path}.lora_B.weight")[:, rank:].clone()
            rules[path] = Tied(a, b, a0.to(a.device), b0.to(b.device))
    return rules


def _off_subspaces(file: Path, found: Mapping[str, Pair], asked: str) -> dict[str, Rule]:
    if not file.is_file():
        raise InputError(asked, f"{file.name} is missing", "run adapter init again with the same options")
    rules: dict[str, Rule] = {}
    with safe_open(file, framework="pt") as opened:
        for path, (a, b) in found.items():
            sides = [opened.get_tensor(f"{path}.{side}") for side in ("left", "right")]
            rules[path] = OffSubspaces(a, b, sides[0].to(b.device), sides[1].to(a.device))
    return rules


def hold_callback(folder: str | Path, adapter: str = "default") -> Any:
    """A ``TrainerCallback`` for transformers and TRL: holds the adapter while training, checks it at the end.

    Raises:
        UsageError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise UsageError(
            "hold an adapter in a Trainer", "transformers is not installed", "run: pip install 'offprincipal[train]'"
        ) from None

    class Hold(TrainerCallback):
        held: Held | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.held = hold(given["model"], folder, adapter).attach(given["optimizer"])

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.held is not None:
                self.held.check()
                self.held.detach()

    return Hold()
