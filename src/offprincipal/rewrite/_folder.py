"""What lies beside the weights: configuration, tokenizer and card of the source, and the record of what was done."""

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard

from offprincipal.checkpoint import Checkpoint, Folder, Listing, open_checkpoint
from offprincipal.errors import InputError
from offprincipal.rewrite._transform import RECORD
from offprincipal.store import write_file

CONFIG, CARD = "config.json", "README.md"
COPIED = (
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "*.model", "*.tiktoken", "chat_template*", "*processor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""Files that go along unchanged. Weights, indexes and records of the source do not."""

LOADABLE = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""Types that config.json may declare; fp8 weights are widened when they are loaded."""


def copy_companions(
    checkpoint: Checkpoint, out: Path, *, untied: bool, dtype: torch.dtype | None, offline: bool
) -> ModelCard | None:
    """Copy configuration and tokenizer into ``out``; the source's card is returned, to be continued.

    Args:
        checkpoint: whose files; of an adapter, its base's.
        out: made if it is missing.
        untied: config.json says that the head has weights of its own.
        dtype: what config.json declares; None leaves it.
        offline: never ask the Hub.

    Raises:
        InputError: a file cannot be read or written.
    """
    listing = listing_of(checkpoint, offline)
    names = listing.names() if checkpoint.kind != "file" else [CONFIG] if checkpoint.config else []
    for name in names:
        if name == CONFIG:
            write_file(out / CONFIG, _config(listing.small(CONFIG), checkpoint.config, untied, dtype))
        elif any(fnmatch(name, pattern) for pattern in COPIED):
            write_file(out / name, listing.small(name))
    if CARD not in names:
        return None
    text = listing.small(CARD).decode("utf-8", "replace")
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except Exception as problem:  # yaml raises errors of many kinds
        card = ModelCard(text.partition("\n---")[2])
        card.text += f"\n(The card's metadata could not be read: {type(problem).__name__}.)\n"
        return card


def listing_of(checkpoint: Checkpoint, offline: bool) -> Listing:
    """The files of a checkpoint, wherever it lies."""
    asked = f"copy what lies beside the weights of {checkpoint.ref!r}"
    if checkpoint.kind == "adapter":
        return listing_of(open_checkpoint(str(checkpoint.base_ref), offline=offline), offline)
    if checkpoint.kind != "hub":
        path = Path(checkpoint.ref)
        return Folder((path if checkpoint.kind == "folder" else path.parent).resolve(), asked)
    from offprincipal.checkpoint import _hub

    match = _hub.REF.fullmatch(checkpoint.ref)
    assert match is not None  # it was opened by this name
    if offline or _hub.is_offline():
        return Folder(_hub.find_cached(match[1], checkpoint.commit, asked).resolve(), asked)
    return _hub.find(match[1], checkpoint.commit, asked)


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """``transform.json``.

    Raises:
        InputError: the folder cannot be written.
    """
    write_file(out / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def write_card(out: Path, card: ModelCard | None, record: Mapping[str, Any], base: Checkpoint) -> None:
    """Continue the source's card, or begin one, with what was done and the exact command.

    Raises:
        InputError: the folder cannot be written.
    """
    card = card or ModelCard("---\nlibrary_name: transformers\n---\n\n# A transformed checkpoint\n")
    data = card.data.to_dict()
    data["tags"] = sorted({*(data.get("tags") or ()), "offprincipal"})
    if base.kind == "hub":
        data["base_model"] = base.ref.removeprefix("hf://").partition("@")[0]
    wanted = ModelCard(f"---\ntags: []\n---\n\n{card.text.strip()}\n\n{_section(record)}")
    for key, value in data.items():
        setattr(wanted.data, key, value)
    write_file(out / CARD, str(wanted).encode())


def _section(record: Mapping[str, Any]) -> str:
    """The card's own section."""
    shown = {key: record[key] for key in ("seed", "layers", "options", "dtype") if record.get(key) is not None}
    sides = [
        f"- {side}: `{record[side]['ref']}`" + (f" at `{record[side]['commit']}`" if record[side]["commit"] else "")
        for side in ("base", "tuned")
        if record.get(side)
    ]
    lines = [
        "## Transformed with offprincipal",
        "",
        f"`{record['what']}`, offprincipal {record['offprincipal']}:",
        "",
        f"    {record['command'] or 'called from Python'}",
        "",
        *sides,
        *(f"- {key}: `{json.dumps(value)}`" for key, value in shown.items()),
        "",
        f"What was done to which tensor is in `{RECORD}`.",
    ]
    return "\n".join(lines) + "\n"


def _config(raw: bytes, config: Mapping[str, Any], untied: bool, dtype: torch.dtype | None) -> bytes:
    """config.json, byte for byte unless something it says has changed."""
    changed = dict(config)
    if untied:
        changed["tie_word_embeddings"] = False
    if dtype in LOADABLE:
        key = "torch_dtype" if "torch_dtype" in changed else "dtype"
        changed[key] = str(dtype).removeprefix("torch.")
    return raw if changed == config else (json.dumps(changed, indent=2) + "\n").encode()


def check_output(out: Path, sources: Sequence[Checkpoint], asked: str) -> None:
    """Refuse to write into the folder of a checkpoint that is read.

    Raises:
        InputError: ``out`` is one of them.
    """
    for source in sources:
        path = Path(source.ref)
        home = path.parent if source.kind == "file" else path
        if source.kind != "hub" and home.exists() and out.resolve() == home.resolve():
            raise InputError(asked, f"{str(out)!r} is where {source.ref!r} lies", "choose another folder with -o")
