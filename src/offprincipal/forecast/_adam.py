"""The last step of Adam, from its stored moments. A file of moments is data: nothing of it is executed.

``.pt`` goes through ``torch.load(weights_only=True)`` and is mapped, not read whole; ``.safetensors`` holds
``NAME.exp_avg`` and ``NAME.exp_avg_sq``, its metadata ``lr``, ``step``, ``beta1``, ``beta2`` and ``eps``.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offprincipal.checkpoint import Checkpoint
from offprincipal.errors import InputError, UsageError
from offprincipal.names import canonical, family_of

_SAVE = "save optimizer.state_dict() of an AdamW over the whole model, or name its tensors NAME.exp_avg in safetensors"


@dataclass(frozen=True)
class Moments:
    """What Adam keeps of one parameter, and the settings of its group.

    Attributes:
        first: exponential average of the gradient (``exp_avg``), any shape.
        second: of its square (``exp_avg_sq``, or AMSGrad's largest of it), same shape.
        step: how many steps were taken.
        lr: learning rate.
        betas: decay of both averages.
        eps: added to the root.
    """

    first: Tensor
    second: Tensor
    step: int
    lr: float
    betas: tuple[float, float]
    eps: float

    def last(self) -> Tensor:
        """What the last step added to the weights: ``-lr m_hat / (sqrt(v_hat) + eps)``, float64.

        As ``torch.optim.AdamW`` computes it, in float64. Decoupled weight decay is left out: it is ``lr`` times
        ``weight_decay`` of each weight, below half a bfloat16 gap unless the product exceeds .2 %.

        >>> one = torch.tensor([0.1])
        >>> Moments(one, torch.tensor([0.001]), 1, 1e-6, (0.9, 0.999), 0.0).last().tolist()
        [-9.999999911524365e-07]
        """
        correction, root = 1 - self.betas[0] ** self.step, (1 - self.betas[1] ** self.step) ** 0.5
        spread = self.second.to(torch.float64).sqrt() / root + self.eps
        step = -self.lr * self.first.to(torch.float64) / correction / spread
        return torch.where(self.first == 0, 0.0, step)  # 0 / 0 where no gradient ever came and eps is 0


def read_moments(file: str | Path, base: Checkpoint, lr: float | None = None) -> dict[str, Moments]:
    """The moments of each parameter, by canonical name; mapped, so that only what is used is read.

    Args:
        file: ``optimizer.pt`` or a ``.safetensors`` file.
        base: the checkpoint that the moments belong to.
        lr: overrides the stored learning rate.

    Raises:
        InputError: the file cannot be read safely, is no state of Adam, or does not fit the base.
        UsageError: naming the parameters needs transformers, which is not installed.
    """
    path, asked = Path(file), f"read the optimizer state {str(file)!r}"
    if not path.is_file():
        raise InputError(asked, "there is no such file", "check the path")
    found = _from_safetensors(path, asked) if path.suffix == ".safetensors" else _from_pickle(path, base, asked)
    if not found:
        raise InputError(asked, "it holds no moments of Adam (exp_avg, exp_avg_sq)", _SAVE)
    family, moments = family_of(base.config), {}
    for name, (state, group) in found.items():
        moments[canonical(name, family)] = _moments(state, group, lr, asked)
    if not any(each.lr for each in moments.values()):
        raise InputError(asked, "its learning rate is 0, as after the end of a schedule", "give one with --lr")
    return moments


def _moments(state: Mapping[str, Any], group: Mapping[str, Any], lr: float | None, asked: str) -> Moments:
    try:
        beta1, beta2 = group.get("betas", (0.9, 0.999))
        rate, step = group["lr"] if lr is None else lr, state["step"]
        second = state.get("max_exp_avg_sq", state["exp_avg_sq"])
        made = Moments(
            state["exp_avg"],
            second,
            int(step),
            float(rate),
            (float(beta1), float(beta2)),
            float(group.get("eps", 1e-8)),
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise InputError(asked, f"a part of Adam's state is missing or malformed ({problem})", _SAVE) from problem
    sound = made.step > 0 and made.lr >= 0 and made.eps >= 0 and all(0 <= beta < 1 for beta in made.betas)
    if not sound or made.first.shape != made.second.shape:
        raise InputError(asked, "its step, learning rate, betas, eps or shapes make no sense", _SAVE)
    return made


def _from_safetensors(path: Path, asked: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            told = opened.metadata() or {}
            keys = opened.keys()
            names = [key.removesuffix(".exp_avg") for key in keys if key.endswith(".exp_avg")]
            moments = {
                name: {part: opened.get_tensor(f"{name}.{part}") for part in ("exp_avg", "exp_avg_sq")}
                for name in names
            }
    except (OSError, SafetensorError) as problem:
        raise InputError(asked, f"it cannot be read ({problem})", _SAVE) from problem
    group = {key: told[key] for key in ("lr", "eps") if key in told}
    group["betas"] = (told.get("beta1", 0.9), told.get("beta2", 0.999))
    step = {"step": told["step"]} if "step" in told else {}
    return {name: ({**parts, **step}, group) for name, parts in moments.items()}


def _from_pickle(path: Path, base: Checkpoint, asked: str) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """State and group of each parameter of a torch optimizer's state_dict."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        groups, states = loaded["param_groups"], loaded["state"]
        keys = [(key, group) for group in groups for key in group["params"]]
        states = {key: states[key] for key, _ in keys if "exp_avg" in states.get(key, {})}
        shapes = {key: tuple(state["exp_avg"].shape) for key, state in states.items()}
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as problem:
        why = str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__
        raise InputError(asked, f"torch.load(weights_only=True) refuses it ({why})", _SAVE) from problem
    except (KeyError, TypeError, AttributeError) as problem:
        raise InputError(asked, "it is not the state_dict of a torch optimizer", _SAVE) from problem
    if not states:
        return {}
    names = _names(groups, [key for key, _ in keys], shapes, base, asked)
    return {names[key]: (states[key], group) for key, group in keys if key in states}


def _names(
    groups: Sequence[Mapping[str, Any]], keys: Sequence[Any], shapes: Mapping[Any, tuple], base: Checkpoint, asked: str
) -> dict[Any, str]:
    """Key of a parameter to its name: as told by the state, else by the order of the model's parameters."""
    if all(isinstance(key, str) for key in keys):
        return {key: key for key in keys}
    if all(len(group.get("param_names", ())) == len(group["params"]) for group in groups):
        return {key: name for group in groups for key, name in zip(group["params"], group["param_names"], strict=True)}
    ordered = _parameters(base, asked)
    by_kind = sorted(ordered, key=lambda each: len(each[1]) < 2)  # transformers: matrices decay, vectors do not
    for names in (ordered, by_kind):
        if len(names) == len(keys) and all(
            shapes.get(key, shape) == shape for key, (_, shape) in zip(keys, names, strict=True)
        ):
            return {key: name for key, (name, _) in zip(keys, names, strict=True)}
    raise InputError(
        asked,
        f"its {len(keys)} parameters do not follow the {len(ordered)} of {base.ref} in order and shape",
        "give the checkpoint that was saved beside it, or a state that names its parameters",
    )


def _parameters(base: Checkpoint, asked: str) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the model that config.json describes; no weight is made."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        do_next = "pip install offprincipal[hf], or give a state that names its parameters"
        raise UsageError(asked, "it numbers its parameters, and naming them needs transformers", do_next) from None
    settings = {key: value for key, value in base.config.items() if key != "model_type"}
    try:
        config = AutoConfig.for_model(base.config["model_type"], **settings)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (KeyError, ValueError, TypeError, AttributeError) as problem:
        raise InputError(
            asked,
            f"it numbers its parameters, and transformers makes no model of {base.ref}'s config.json",
            "give a state that names its parameters",
        ) from problem
    return [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
