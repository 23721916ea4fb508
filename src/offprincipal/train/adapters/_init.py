"""Write an adapter folder by method: plain LoRA on the base as it is, adding exactly zero at the start.

Read `init_adapter` from top to bottom. What it is not: training (``_hold.py``), or the formulas (``_starts.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from offprincipal import __version__
from offprincipal.checkpoint import Checkpoint, open_checkpoint
from offprincipal.errors import InputError
from offprincipal.fanout import Engine, here
from offprincipal.survey import Progress
from offprincipal.train.adapters import _folder, _starts
from offprincipal.train.adapters._recipe import (
    METHODS,
    PRINCIPAL_RANK,
    Factored,
    Recipe,
    recipe_of,
    refuse_small,
    start_module,
)
from offprincipal.train.adapters._targets import ALL, Targets, choose
from offprincipal.writer import Writer

ONE_FILE = 1 << 62
"""Shard size of an adapter: it is never split, since PEFT reads one file."""


@dataclass(frozen=True)
class Made:
    """An adapter that was written.

    Attributes:
        folder: where it lies.
        note: what ``offprincipal.json`` says.
    """

    folder: Path
    note: dict[str, Any] = field(repr=False)


def init_adapter(
    base: str | Path,
    out: str | Path,
    *,
    method: str,
    rank: int = 16,
    alpha: float | None = None,
    target: str = ALL,
    k: int = PRINCIPAL_RANK,
    rho: float = _starts.RHO,
    seed: int = 0,
    cache: bool = True,
    offline: bool = False,
    engine: Engine = here,
    progress: Progress | None = None,
    command: str | None = None,
) -> Made:
    """Write an adapter folder for `base`, matrix by matrix. PEFT, TRL, verl, vLLM and SGLang read it as it is.

    Args:
        base: a checkpoint ref; an adapter is refused.
        out: the folder to write; must not hold an adapter.
        method: one of `METHODS`.
        rank: r of the method. The stored rank is 2 r for pissa, milora and geora.
        alpha: B A is multiplied by alpha / r; 2 r when None.
        target: ``all-linear``, or kinds and module names, see `offprincipal.train.adapters.choose`.
        k: off-principal only: leading directions to stay out of, capped per matrix at half the short side.
        rho: geora only: its quantile.
        seed: of what is random, hashed with each module's name.
        cache: read and keep the base's factors (``factors.FactorCache``).
        offline: never ask the Hub.
        engine: where the work is done; `on_this_machine` starts processes where that is worth it.
        progress: called after each module.
        command: the command line, for the card.

    Returns:
        The folder and its note. Factors are float32, computed in float64; the same bytes whatever the engine.
        Peak memory: per process about four float64 copies of the largest matrix; here the whole adapter.

    Raises:
        UsageError: an unknown method or target, or numbers that make no sense.
        InputError: the base cannot be read, is quantised, holds NaN or infinite weights, or has a matrix too small for
            the rank; `out` holds an adapter or cannot be written.

    >>> import json, safetensors.torch
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     weights = {"model.layers.0.mlp.up_proj.weight": torch.diag(torch.arange(8.0))}
    ...     safetensors.torch.save_file(weights, f"{folder}/base.safetensors")
    ...     made = init_adapter(f"{folder}/base.safetensors", f"{folder}/new", method="rlpo", rank=2, cache=False)
    ...     factors = safetensors.torch.load_file(f"{folder}/new/adapter_model.safetensors")
    >>> [(name.removeprefix("base_model.model."), list(tensor.shape)) for name, tensor in sorted(factors.items())]
    [('model.layers.0.mlp.up_proj.lora_A.weight', [2, 8]), ('model.layers.0.mlp.up_proj.lora_B.weight', [8, 2])]
    """
    recipe = recipe_of(method, rank, 2.0 * rank if alpha is None else alpha, k, rho, seed, cache)
    folder = Path(out)
    opened = open_checkpoint(base, offline=offline)
    if opened.kind == "adapter":
        raise InputError(f"adapt {str(base)!r}", "it is an adapter itself", "give its base, or merge it first")
    targets = choose(opened, target)
    for module in targets.modules:
        refuse_small(module, recipe)
    _folder.refuse_full(folder)
    work = [(module, recipe) for module in sorted(targets.modules, key=lambda module: -module.cost)]
    found = _collect(engine, work, progress)
    note = _note(opened, targets, recipe, found, command)
    _write(folder, opened, targets, recipe, found, note)
    return Made(folder, note)


def _collect(engine: Engine, work: Sequence[Any], progress: Progress | None) -> dict[str, tuple[str, Factored]]:
    found: dict[str, tuple[str, Factored]] = {}
    if progress:
        progress(0, len(work), "")
    for path, digest, tensors in engine(start_module, work):
        found[path] = digest, tensors
        if progress:
            progress(len(found), len(work), path)
    return {path: found[path] for path in sorted(found)}


def _note(
    base: Checkpoint, targets: Targets, recipe: Recipe, found: dict[str, tuple[str, Factored]], command: str | None
) -> dict[str, Any]:
    shapes = {module.path: module.shape for module in targets.modules}
    own = {"off-principal": {"k": recipe.k}, "geora": {"rho": recipe.rho}}.get(recipe.method, {})
    return {
        "schema_version": _folder.SCHEMA_VERSION,
        "method": recipe.method,
        "rank": recipe.rank,
        "alpha": recipe.alpha,
        **own,
        "seed": recipe.seed,
        "base": {"ref": base.ref, "commit": base.commit},
        "modules": {
            path: {"shape": list(shapes[path]), "base_xxh3": digest}
            | ({"k": recipe.excluded(shapes[path])} if recipe.method == "off-principal" else {})
            for path, (digest, _) in found.items()
        },
        "left_out": [{"tensor": name, "reason": reason} for name, reason in targets.left_out],
        "command": command,
        "versions": {"offprincipal": __version__, "torch": torch.__version__},
    }


def _write(
    folder: Path,
    base: Checkpoint,
    targets: Targets,
    recipe: Recipe,
    found: dict[str, tuple[str, Factored]],
    note: dict[str, Any],
) -> None:
    """Factors first, the configuration last: until it is there, nobody takes the folder for an adapter."""
    key = {name: note[name] for name in ("method", "rank", "alpha", "seed", "base", "modules")} | {
        "k": recipe.k,
        "rho": recipe.rho,
    }
    stored = {"lora_A.weight": "a", "lora_B.weight": "b"}
    files = [("adapter_model", _folder.PREFIX, stored)]
    if recipe.method == "off-principal":
        files.insert(0, (_folder.SUBSPACES, "", {"left": "left", "right": "right"}))
    for stem, prefix, parts in files:
        with Writer(folder, key, stem=stem, shard_bytes=ONE_FILE) as writer:
            for path, (_, tensors) in found.items():
                for ending, part in parts.items():
                    name = f"{prefix}{path}.{ending}"
                    if name not in writer:
                        writer.add(name, tensors[part])
            writer.finish()
    rank = next(iter(found.values()))[1]["a"].shape[0]
    named = _folder.name_of(base)
    ranks = dict.fromkeys(found, (rank, recipe.scaling))
    transposed = targets.modules[0].transposed
    config = _folder.plain_config(named, base.commit, targets.words, ranks, transposed=transposed)
    _folder.write_json(folder / _folder.NOTE, note)
    title = f"{recipe.method} adapter, rank {recipe.rank}, untrained"
    _folder.write_card(folder, named, title, METHODS[recipe.method] + ".", note["command"])
    _folder.write_json(folder / _folder.CONFIG, config)
