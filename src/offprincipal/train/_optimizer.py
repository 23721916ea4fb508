"""What the masked optimizers share: what may move, packed state, saving and loading. The rules are in ``masked``."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from offprincipal.errors import InputError, UsageError
from offprincipal.measures.seeds import stream
from offprincipal.train import _engine, _rules
from offprincipal.train._forecast import lost_count
from offprincipal.train._masks import ParameterMasks
from offprincipal.train._region import Region, region, whole
from offprincipal.train._sharding import collect, local, parts, spread

Rest = Literal["freeze", "train"]


@dataclass(frozen=True)
class _Place:
    """What the optimizer knows of one parameter: its name, and what may move (None: nothing)."""

    name: str
    region: Region | None


class MaskedOptimizer(Optimizer, ABC):
    """Abstract; `MaskedAdamW` and `MaskedSGD` give the rule of a step, the names of its state, and its step size."""

    def __init__(
        self,
        params: Iterable[Any],
        masks: ParameterMasks,
        defaults: dict[str, Any],
        *,
        rest: Rest,
        masters: bool,
        stochastic_rounding: bool,
        seed: int,
    ):
        if rest not in ("freeze", "train"):
            raise UsageError("build a masked optimizer", f"rest is {rest!r}", 'choose "freeze" or "train"')
        if masters and stochastic_rounding:
            raise UsageError(
                "build a masked optimizer",
                "masters and stochastic_rounding are both asked for",
                "choose one: a master keeps what rounding would lose, so nothing is left to draw",
            )
        self._masks, self._rest, self._seed = masks, rest, seed
        self._masters, self._random = masters, stochastic_rounding
        self._places: dict[Tensor, _Place] = {}
        super().__init__(params, defaults)
        lost = [masks.name(parameter) for parameter in masks if parameter not in self._places]
        if lost:
            raise InputError(
                "build a masked optimizer",
                f"{len(lost)} masked parameters, {lost[0]!r} first, are not among those given",
                "pass them; if the model was sharded or wrapped after masks_for, call masks_for again",
            )
        self._warn()

    @abstractmethod
    def _rule(self, group: dict[str, Any], step: int) -> _rules.AdamW | _rules.SGD: ...

    @abstractmethod
    def _names(self, group: dict[str, Any]) -> tuple[str, ...]: ...

    @abstractmethod
    def _step_size(self, group: dict[str, Any]) -> float | None: ...

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the masks of the new parameters are packed here, one at a time."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for index, parameter in enumerate(group["params"]):
            given = group.get("param_names", [None] * len(group["params"]))[index]
            name = self._masks.name(parameter) or given or f"{len(self.param_groups)}.{index}"
            self._places[parameter] = _Place(name, self._region(parameter, name))

    def _region(self, parameter: Tensor, name: str) -> Region | None:
        if parameter not in self._masks and self._rest == "freeze":
            return None
        if not parameter.is_floating_point():
            raise InputError(f"train {name!r}", f"it is {parameter.dtype}", "train real floating-point parameters")
        if self._random and parameter.dtype == torch.float16:
            raise UsageError(
                f"round {name!r} stochastically", "it is float16", "use bfloat16 weights, or masters=True"
            )
        ends, rank = parts(parameter)
        held = local(parameter)
        if parameter in self._masks:
            return region(self._masks[parameter], ends, rank, held.device)
        return whole(held.numel(), ends, rank)

    def _warn(self) -> None:
        """Say once what bfloat16 weights without masters will not show."""
        if self._masters or self._random:
            return
        lost, allowed = 0.0, 0
        sizes: set[float] = set()
        for group in self.param_groups:
            size = self._step_size(group)
            for parameter in group["params"]:
                found = self._places[parameter].region
                if parameter.dtype == torch.bfloat16 and found is not None:
                    allowed += found.ones
                    if size:
                        lost += lost_count(local(parameter).detach().reshape(-1), found, size)
                        sizes.add(size)
        if not allowed:
            return
        rate = "/".join(f"{size:g}" for size in sorted(sizes))
        forecast = (
            f"a step of lr {rate} is lost to rounding in {lost / allowed:.1%} of them"
            if rate
            else "steps below half the gap between neighbouring values are lost"
        )
        warnings.warn(
            f"{allowed:,} bfloat16 weights are trained without float32 masters: {forecast}; "
            "masters=True or stochastic_rounding=True keeps such steps",
            stacklevel=4,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient.

        Raises:
            InputError: a gradient is sparse or another shape, or a parameter was replaced since the optimizer was
                built; raised before anything moves.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        live = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for _, parameter in live:
            self._check(parameter)
        _engine.step([task for group, parameter in live for task in self._tasks(group, parameter)])
        return loss

    def _check(self, parameter: Tensor) -> None:
        place, gradient = self._places.get(parameter), parameter.grad
        if place is None:
            raise InputError(
                "take a masked step",
                "a parameter was replaced after the optimizer was built",
                "shard or wrap the model first, then call masks_for and build the optimizer",
            )
        if gradient is not None and place.region is not None and gradient.layout != torch.strided:
            raise InputError(
                f"take a masked step of {place.name!r}",
                "its gradient is sparse",
                "build the embedding with sparse=False",
            )

    def _tasks(self, group: dict[str, Any], parameter: Tensor) -> Iterable[_rules.Task]:
        place, state = self._places[parameter], self._state(group, parameter)
        state["step"] += 1
        gradient = parameter.grad
        if place.region is None or gradient is None:
            return
        step = int(state["step"])
        key = stream(self._seed, place.name, str(step)) if self._random and parameter.dtype == torch.bfloat16 else None
        moments = tuple(state[name] for name in self._names(group))
        yield _rules.Task(
            self._rule(group, step), local(parameter), local(gradient), place.region, moments, state.get("master"), key
        )

    def _state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        """The state of a parameter, made when it is first needed, as torch does."""
        state = self.state[parameter]
        if state:
            return state
        state["step"] = torch.tensor(0.0)
        found, held = self._places[parameter].region, local(parameter).detach()
        if found is None:
            return state
        state["mask"] = torch.tensor(found.fingerprint)
        short = held.itemsize == 2
        wide = torch.float32 if short and (self._masters or self._random) else held.dtype
        for name in self._names(group):
            state[name] = torch.zeros(found.ones, dtype=wide, device=held.device)
        if short and self._masters:
            state["master"] = _engine.gather(held.reshape(-1), found).float()
        return state

    def state_bytes(self) -> int:
        """Bytes that this process holds beside weights and gradients: moments, masters, steps and packed masks."""
        held = sum(value.nbytes for state in self.state.values() for value in state.values())
        return held + sum(place.region.nbytes for place in self._places.values() if place.region is not None)

    def state_dict(self) -> dict[str, Any]:
        """As in torch, with packed 1-D tensors; of sharded parameters, DTensors of all ranks' values (all ranks call).

        The vectors are those of the whole parameter whatever the number of ranks, so that
        ``torch.distributed.checkpoint`` and full state dicts load with another number, or with one process.
        """
        saved = super().state_dict()
        order = list(chain.from_iterable(group["params"] for group in self.param_groups))
        for index in sorted(saved["state"]):
            found = self._places[order[index]].region
            if found is not None:
                saved["state"][index] = {
                    key: spread(value, found, order[index]) if value.ndim else value
                    for key, value in saved["state"][index].items()
                }
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; takes plain vectors and DTensors of any number of ranks (all ranks call). Dtypes are kept.

        Raises:
            InputError: the state belongs to another mask or another optimizer, or has masters where this has none.
        """
        saved = list(chain.from_iterable(group["params"] for group in state_dict["param_groups"]))
        order = list(chain.from_iterable(group["params"] for group in self.param_groups))
        groups = [group for group in self.param_groups for _ in group["params"]]
        states = state_dict["state"]
        found = {
            p: self._loaded(group, p, states[key])
            for key, p, group in zip(saved, order, groups, strict=False)  # torch says below if they differ in number
            if key in states
        }
        super().load_state_dict({**state_dict, "state": {}})  # torch would cast masters to the weight's dtype
        self.state.update(found)

    def _loaded(self, group: dict[str, Any], parameter: Tensor, saved: dict[str, Any]) -> dict[str, Any]:
        place, device = self._places[parameter], local(parameter).device
        fresh = {"step": torch.as_tensor(saved["step"], dtype=torch.float32).clone().cpu()}
        if place.region is None:
            return fresh
        asked = f"load the optimizer state of {place.name!r}"
        masters = ("master",) if self._masters and parameter.itemsize == 2 else ()
        wanted = {"step", "mask", *self._names(group), *masters}
        if set(saved) != wanted:
            raise InputError(
                asked,
                f"it holds {', '.join(sorted(saved))} and this optimizer keeps {', '.join(sorted(wanted))}",
                "load the state of the same optimizer with the same masters setting",
            )
        if int(saved["mask"]) != place.region.fingerprint:
            raise InputError(asked, "it belongs to another mask", "train with the mask that the state was saved with")
        fresh["mask"] = torch.tensor(place.region.fingerprint)
        for name in sorted(wanted - {"step", "mask"}):
            fresh[name] = collect(saved[name], place.region, parameter).to(device, copy=True)
        return fresh

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_masks", "_rest", "_seed", "_masters", "_random", "_places")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}
