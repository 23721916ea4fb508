"""What lies in an adapter folder: PEFT's configuration, the factors, our note of how it began, a card.

Nothing of it needs this package at inference: the note and the subspaces are for training and checking, and PEFT,
vLLM and SGLang do not look at them.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offprincipal.checkpoint import Checkpoint, Stored, check_adapter, read_header, scaling
from offprincipal.errors import InputError
from offprincipal.store import write_file

SCHEMA_VERSION = 1
"""Version of the note. It grows when an older reader would misread it."""

CONFIG, WEIGHTS, NOTE = "adapter_config.json", "adapter_model.safetensors", "offprincipal.json"
SUBSPACES = "offprincipal_subspaces"
"""Stem of the file with the principal subspaces that training stays out of."""

PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class Factor:
    """The stored factors of one module.

    Attributes:
        a: ``[rank, in]``.
        b: ``[out, rank]``.
        scaling: what ``B A`` is multiplied by.
    """

    a: Stored
    b: Stored
    scaling: float


@dataclass(frozen=True)
class Adapter:
    """An adapter folder, opened by its headers.

    Attributes:
        folder: where it lies.
        config: ``adapter_config.json``.
        factors: module path to factors, in the order of the names.
        note: how it began, if this program wrote it; else empty.
    """

    folder: Path
    config: Mapping[str, Any]
    factors: Mapping[str, Factor]
    note: Mapping[str, Any]

    @property
    def moved_base(self) -> str | None:
        """The initialisation that moved part of the base into the adapter (PEFT's pissa, olora, ...), if any."""
        began = self.config.get("init_lora_weights")
        try:
            check_adapter(self.config, "")
        except InputError:
            return str(began)
        return None


def open_adapter(folder: str | Path) -> Adapter:
    """Open a folder with a plain LoRA adapter; no factor is read.

    Raises:
        InputError: no such folder, another method than LoRA or rsLoRA, or tensors that do not fit its configuration.
    """
    path, asked = Path(folder), f"open adapter {str(folder)!r}"
    if not (path / CONFIG).is_file():
        raise InputError(asked, f"there is no {CONFIG}", "give a folder that PEFT or adapter init has written")
    config = _json(path / CONFIG, asked)
    check_adapter({**config, "init_lora_weights": True}, asked)
    if not (path / WEIGHTS).is_file():
        raise InputError(asked, f"there is no {WEIGHTS}", "save it with PEFT's save_pretrained")
    found: dict[str, dict[str, Stored]] = {}
    for name, info in read_header(path / WEIGHTS, asked, WEIGHTS).items():
        match = _FACTOR.fullmatch(name)
        if not match or config.get("use_dora"):
            what = "DoRA's update is not of low rank" if config.get("use_dora") else f"{name!r} is no LoRA factor"
            raise InputError(asked, what, "merge it with PEFT (merge_and_unload) and give the merged folder")
        found.setdefault(match[1], {})[match[2]] = Stored(info)
    factors = {module: _factor(module, found[module], config, asked) for module in sorted(found)}
    if not factors:
        raise InputError(asked, "it holds no factor", "fetch or save the adapter again")
    return Adapter(path, config, factors, _json(path / NOTE, asked) if (path / NOTE).is_file() else {})


def _factor(module: str, found: Mapping[str, Stored], config: Mapping[str, Any], asked: str) -> Factor:
    if found.keys() != {"A", "B"}:
        raise InputError(asked, f"it has only one factor of {module!r}", "fetch or save the adapter again")
    a, b = found["A"], found["B"]
    if len(a.info.shape) != 2 or len(b.info.shape) != 2 or a.info.shape[0] != b.info.shape[1]:
        shapes = f"{list(b.info.shape)} x {list(a.info.shape)}"
        raise InputError(asked, f"the factors {shapes} of {module!r} do not fit", "fetch or save the adapter again")
    return Factor(a, b, scaling(PREFIX + module, a.info.shape[0], config, asked))


def _json(file: Path, asked: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as problem:
        raise InputError(asked, f"{file.name} cannot be read ({problem})", "fetch or save it again") from None
    if not isinstance(found, dict):
        raise InputError(asked, f"{file.name} is not a JSON object", "fetch or save it again")
    return found


def refuse_full(folder: Path) -> None:
    """Raise where an adapter lies already, so that none is replaced."""
    if (folder / CONFIG).exists():
        raise InputError(f"write into {str(folder)!r}", "it holds an adapter", "choose another folder with -o")


def plain_config(
    base: str | None,
    commit: str | None,
    words: tuple[str, ...] | list[str] | str,
    ranks: Mapping[str, tuple[int, float]],
    *,
    transposed: bool = False,
) -> dict[str, Any]:
    """``adapter_config.json`` of a plain LoRA adapter; every key that is not here has PEFT's default.

    Args:
        base: the base as PEFT shall find it.
        commit: its commit on the Hub.
        words: ``target_modules``.
        ranks: module path to (stored rank, scaling); where they differ the rarer ones go into the patterns.
        transposed: weights are stored as ``[in, out]``.
    """
    kinds = list(ranks.values())
    rank, scaling = max(sorted(set(kinds)), key=kinds.count)
    others = {module: found for module, found in ranks.items() if found != (rank, scaling)}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": commit,
        "r": rank,
        "lora_alpha": _whole(rank * scaling),
        "lora_dropout": 0.0,
        "target_modules": words if isinstance(words, str) else sorted(words),
        "rank_pattern": {module: r for module, (r, _) in others.items()},
        "alpha_pattern": {module: _whole(r * s) for module, (r, s) in others.items()},
        "fan_in_fan_out": transposed,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _whole(alpha: float) -> int | float:
    return int(alpha) if float(alpha).is_integer() else alpha


def name_of(base: Checkpoint) -> str:
    """The base as ``adapter_config.json`` names it: the repository, or the absolute path of the folder."""
    if base.kind == "hub":
        return base.ref.removeprefix("hf://").partition("@")[0]
    path = Path(base.ref).absolute()
    return str(path.parent if base.kind == "file" else path)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write under another name, then rename."""
    write_file(file, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def write_card(folder: Path, base: str | None, title: str, words: str, command: str | None) -> None:
    """``README.md``: what it is, how it was made, how to load it."""
    from huggingface_hub import ModelCard, ModelCardData

    on_hub = base if base and not os.path.isabs(base) else None
    data = ModelCardData(
        library_name="peft", base_model=on_hub, base_model_relation="adapter" if on_hub else None, tags=["lora"]
    )
    made = f"\n\nMade with:\n\n    {command}" if command else ""
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{words}{made}\n\n"
        "Plain LoRA on the original base: load it with `PeftModel.from_pretrained(base, folder)`, or serve it with "
        "any engine that reads PEFT adapters.\n"
    )
    write_file(folder / "README.md", str(ModelCard(text)).encode())
