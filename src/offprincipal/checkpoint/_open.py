"""From a reference to an opened checkpoint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offprincipal.checkpoint._adapter import adapt, check_adapter
from offprincipal.checkpoint._checkpoint import Checkpoint
from offprincipal.checkpoint._folder import Folder, hub_repository
from offprincipal.checkpoint._header import TensorInfo, read_header
from offprincipal.checkpoint._listing import (
    ADAPTER,
    ADAPTER_CONFIG,
    Listing,
    is_adapter,
    read_config,
    read_tensors,
)
from offprincipal.checkpoint._quantised import refuse_quantised
from offprincipal.checkpoint._source import HUB_SCHEME, Stored
from offprincipal.errors import InputError

_HUB_REF = re.compile(r"(?:hf://)?[\w][\w.-]*/[\w][\w.-]*(?:@[\w][\w./+-]*)?", re.ASCII)


def open_checkpoint(
    ref: str | Path, *, base: "str | Path | Checkpoint | None" = None, offline: bool = False
) -> Checkpoint:
    """Open a checkpoint by its headers; no weight is read, and nothing of it is executed.

    Args:
        ref: a folder, a ``.safetensors`` file, a folder with a PEFT adapter, ``org/name`` or ``org/name@revision`` on
            the Hub (``hf://org/name`` where a local folder of that name is in the way).
        base: of an adapter, its base; without it the one that ``adapter_config.json`` names.
        offline: take Hub references from the Hub's cache only, as HF_HUB_OFFLINE does.

    Raises:
        InputError: nothing is there, it cannot be had, or what is there breaks a rule of the format.
    """
    asked = f"open checkpoint {str(ref)!r}"
    text = str(ref)
    try:
        path = Path(ref)
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as problem:
        raise InputError(asked, f"that is not a path ({problem})", "check the path") from problem
    if is_folder and not text.startswith(HUB_SCHEME):
        return _open_folder(text, path.resolve(), base, offline, asked)
    if is_file and not text.startswith(HUB_SCHEME):
        return _open_file(text, path.absolute(), asked)
    if not isinstance(ref, str) or not _HUB_REF.fullmatch(text):
        raise InputError(
            asked, "there is no such folder or file", "check the path, or give org/name for a repository on the Hub"
        )
    if not text.startswith(HUB_SCHEME) and path.parent.is_dir():
        raise InputError(
            asked,
            f"there is no such folder or file, though {str(path.parent)!r} is a folder here",
            f"check the path, or give {HUB_SCHEME}{text} for a repository on the Hub",
        )
    return _open_hub(text, base, offline, asked)


def _open_folder(
    ref: str, path: Path, base: "str | Path | Checkpoint | None", offline: bool, asked: str
) -> Checkpoint:
    folder = Folder(path, asked)
    commit = path.name if hub_repository(path) else None
    if is_adapter(folder, asked):
        return _open_adapter(ref, folder, commit, base, offline, asked)
    return _checkpoint(ref, "folder", commit, read_tensors(folder, asked), read_config(folder, asked), asked)


def _open_file(ref: str, path: Path, asked: str) -> Checkpoint:
    if path.suffix != ".safetensors":
        raise InputError(asked, f"{path.name} is not a .safetensors file", "give a folder or a .safetensors file")
    tensors = read_header(path, asked, path.name)
    if not tensors:
        raise InputError(asked, "the files hold no tensor", "give a checkpoint with weights")
    return _checkpoint(ref, "file", None, tensors, read_config(Folder(path.parent.resolve(), asked), asked), asked)


def _open_hub(ref: str, base: "str | Path | Checkpoint | None", offline: bool, asked: str) -> Checkpoint:
    from offprincipal.checkpoint import _hub

    match = _hub.REF.fullmatch(ref)
    assert match is not None  # the caller has matched the same pattern
    repo, revision = match[1], match[2]
    if offline or _hub.is_offline():
        snapshot = _hub.find_cached(repo, revision, asked)
        listing: Listing = Folder(snapshot.resolve(), asked)
        commit = snapshot.name
    else:
        listing = _hub.find(repo, revision, asked)
        commit = listing.commit
    if is_adapter(listing, asked):
        return _open_adapter(ref, listing, commit, base, offline, asked)
    return _checkpoint(ref, "hub", commit, read_tensors(listing, asked), read_config(listing, asked), asked)


def _open_adapter(
    ref: str, listing: Listing, commit: str | None, base: "str | Path | Checkpoint | None", offline: bool, asked: str
) -> Checkpoint:
    if ADAPTER not in listing.names():
        pickled = "adapter_model.bin" in listing.names()
        found = "the adapter's weights are pickled" if pickled else f"the adapter has no {ADAPTER}"
        raise InputError(asked, found, f"save it with PEFT's save_pretrained, which writes {ADAPTER}")
    config = read_config(listing, asked, ADAPTER_CONFIG)
    check_adapter(config, asked)
    below = base if isinstance(base, Checkpoint) else _open_base(config, listing, base, offline, asked)
    if below.kind == "adapter":
        raise InputError(asked, f"its base {below.ref!r} is an adapter itself", "merge that one first")
    factors = listing.headers([ADAPTER])[ADAPTER]
    sources = adapt(below.sources, below.config, factors, config, asked)
    base_ref = f"{below.ref.partition('@')[0]}@{below.commit}" if below.commit and below.kind == "hub" else below.ref
    return Checkpoint(ref, "adapter", commit, sources, below.config, base_ref)


def _open_base(
    config: Mapping[str, Any], listing: Listing, base: str | Path | None, offline: bool, asked: str
) -> Checkpoint:
    """The base of an adapter: as given, or as its configuration says (a path, from here or from its own folder)."""
    named = config.get("base_model_name_or_path") if base is None else base
    if not named or not isinstance(named, str | Path):
        raise InputError(asked, "the adapter does not name its base", "give the base beside it")
    target = Path(named)
    try:
        if isinstance(listing, Folder) and not target.exists() and (listing.path / target).is_dir():
            target = listing.path / target
            named = str(target)
        is_local = target.exists()
    except OSError as problem:  # a name longer than any path, or a folder that may not be searched
        raise InputError(asked, f"its base is no path ({problem.strerror})", "give the base beside it") from problem
    revision = config.get("revision")
    if base is None and not is_local and isinstance(revision, str) and revision and "@" not in str(named):
        named = f"{named}@{revision}"
    if is_local and target.is_dir() and (target / ADAPTER_CONFIG).is_file():
        raise InputError(asked, f"its base {str(named)!r} is an adapter itself", "merge that one first")
    try:
        return open_checkpoint(named, offline=offline)
    except InputError as problem:
        raise InputError(
            asked,
            f"its base {str(named)!r} cannot be opened: {problem.found}",
            f"give the base beside it, or {problem.do_next}",
        ) from problem


def _checkpoint(
    ref: str, kind: str, commit: str | None, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], asked: str
) -> Checkpoint:
    refuse_quantised(tensors.values(), config, asked)
    return Checkpoint(ref, kind, commit, {name: Stored(info) for name, info in tensors.items()}, config)
