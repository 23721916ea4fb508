"""The adapter as PEFT sees it: loaded into a model, compared with the file. Needs transformers and peft."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offprincipal.checkpoint import Checkpoint, read_whole
from offprincipal.errors import InputError, UsageError
from offprincipal.measures.seeds import torch_generator
from offprincipal.train.adapters._drift import Drift, MergeDrift
from offprincipal.train.adapters._folder import PREFIX, Adapter, name_of

TOKENS = (2, 32)
"""Random tokens on which logits are compared: sequences, length (*ours*)."""


def skeleton(base: Checkpoint) -> nn.Module:
    """The model of config.json on the CPU with weights that take no memory: each is one zero, expanded.

    Raises:
        InputError: transformers cannot build it.
        UsageError: transformers is not installed.
    """
    transformers = _transformers()
    with _quiet():
        config = _from(base, transformers.AutoConfig.from_pretrained, _place(base))
        with torch.device("meta"):
            model = _from(base, transformers.AutoModelForCausalLM.from_config, config)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            stand_in = torch.zeros(1, dtype=torch.float32).expand(parameter.shape)
            setattr(module, name, nn.Parameter(stand_in, requires_grad=False))
    return model


def load_base(base: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """The whole base in memory.

    Raises:
        InputError: transformers cannot load it.
        UsageError: transformers is not installed.
    """
    transformers = _transformers()
    with _quiet():
        model = _from(base, transformers.AutoModelForCausalLM.from_pretrained, _place(base), dtype=dtype)
    return model.eval()


def attach(model: nn.Module, adapter: Adapter) -> nn.Module:
    """The PEFT model of this adapter on `model`.

    Raises:
        InputError: PEFT finds no place for a factor, or has a place without one: such modules would train or serve
            something else without a word.
        UsageError: peft is not installed.
    """
    try:
        import peft
    except ImportError:
        raise UsageError(
            "load an adapter", "peft is not installed", "run: pip install 'offprincipal[train]'"
        ) from None
    asked = f"load adapter {str(adapter.folder)!r} through PEFT"
    with _quiet():
        try:
            loaded = peft.PeftModel.from_pretrained(model, str(adapter.folder))  # pyright: ignore[reportArgumentType]
        except (ValueError, RuntimeError, KeyError) as problem:
            words = str(problem).strip().splitlines()[0][:300]
            raise InputError(
                asked, f"PEFT refuses it ({words})", "give the base that the adapter was made for"
            ) from None
    there = {_path(name) for name, module in loaded.named_modules() if "default" in getattr(module, "lora_A", {})}
    differing = sorted(there ^ adapter.factors.keys())
    if differing:
        whose = "the file has no factors for" if differing[0] in there else "the model has no adapted module"
        found = f"{whose} {differing[0]!r} ({len(differing)} modules differ)"
        raise InputError(asked, found, "give the base that the adapter was made for")
    return loaded.eval()


def _path(name: str) -> str:
    return name.rpartition(PREFIX)[2]


def differences(model: nn.Module, adapter: Adapter) -> tuple[float, float]:
    """Largest ``|D_peft - s B A|`` over all modules, and the largest ``|s B A|``; one dense float32 pair at a time."""
    largest = size = 0.0
    for name, module in model.named_modules():
        factor = adapter.factors.get(_path(name))
        if factor is None or not hasattr(module, "get_delta_weight"):
            continue
        layer: Any = module
        seen = layer.get_delta_weight("default")
        own = read_whole(factor.b).double() @ read_whole(factor.a).double() * factor.scaling
        own = own.T if layer.fan_in_fan_out else own
        largest = max(largest, float((seen.double() - own).abs().max()))
        size = max(size, float(own.abs().max()))
    return largest, size


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Logits on seeded random tokens."""
    size: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    words = torch.randint(size.num_embeddings, TOKENS, generator=torch_generator(0, "verify"))
    return model(input_ids=words).logits


def merge_cycles(model: nn.Module, cycles: int) -> Drift:
    """Merge and unmerge the adapter so many times, and count what moved beneath it."""
    loaded: Any = model
    guard = MergeDrift(model)
    with _quiet():
        for _ in range(cycles):
            loaded.merge_adapter()
            loaded.unmerge_adapter()
    return guard.report()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UsageError(
            "load an adapter", "transformers is not installed", "run: pip install 'offprincipal[train]'"
        ) from None
    return transformers


def _place(base: Checkpoint) -> str:
    return name_of(base)


def _from(base: Checkpoint, build: Any, what: Any, **options: Any) -> Any:
    """Build with transformers; its refusals become ours. No code of a repository is run."""
    if isinstance(what, str | Path) and base.kind == "hub":
        options["revision"] = base.commit
    try:
        return build(what, **options)
    except (OSError, ValueError, KeyError, ImportError) as problem:
        words = str(problem).strip().splitlines()[0][:300]
        raise InputError(
            f"build the model of {base.ref!r}", f"transformers says: {words}", "give a base that transformers can load"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' bars and warnings; both are put back."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
