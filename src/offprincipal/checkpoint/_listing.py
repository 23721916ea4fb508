"""Which of a checkpoint's files carry the weights, and whether index and shards agree. Disk and Hub alike."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Protocol

from offprincipal.checkpoint._header import TensorInfo, parse_json
from offprincipal.errors import InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".distcp")
_INDEX_ADVICE = "index and shards are of different checkpoints: fetch or save them again"


class Listing(Protocol):
    """A folder or a repository: names of files, small files whole, weight files by their headers."""

    def names(self) -> Sequence[str]:
        """The files at the top, sorted."""
        ...

    def has(self, file: str) -> bool:
        """Whether a file that an index names is there."""
        ...

    def small(self, file: str) -> bytes:
        """A small file, whole."""
        ...

    def headers(self, files: Iterable[str]) -> dict[str, dict[str, TensorInfo]]:
        """The tensors of each weight file."""
        ...


def read_tensors(listing: Listing, asked: str) -> dict[str, TensorInfo]:
    """The tensors of a folder or repository that holds a whole model, in the order of their names.

    Args:
        listing: where to look.
        asked: what the user wanted, for the message of an error.

    Raises:
        InputError: no weights, only pickled weights, an ambiguous set of files, or any damage.
    """
    files, weight_map = choose_files(listing, asked)
    return join_shards(listing.headers(files), weight_map, asked)


def read_config(listing: Listing, asked: str, file: str = CONFIG) -> dict[str, Any]:
    """``config.json`` as a dictionary; empty if there is none."""
    return parse_config(listing.small(file), asked, file) if file in listing.names() else {}


def is_adapter(listing: Listing, asked: str) -> bool:
    """Whether this is an adapter; a folder that is both adapter and whole model is refused as ambiguous."""
    names = listing.names()
    if ADAPTER_CONFIG not in names:
        return False
    if SINGLE in names or INDEX in names:
        raise InputError(
            asked, "it holds a whole model and an adapter", f"name the one file, or remove {ADAPTER_CONFIG}"
        )
    return True


def choose_files(listing: Listing, asked: str) -> tuple[list[str], dict[str, str] | None]:
    """The weight files of a listing, and the index's tensor-to-file map if there is an index.

    In this order, as transformers does: ``model.safetensors``; the index; then, ours, a single ``.safetensors`` file
    or a complete set named ``x-00001-of-0000N.safetensors``. Anything else is ambiguous and refused.
    """
    names = listing.names()
    if SINGLE in names:
        return [SINGLE], None
    if INDEX in names:
        weight_map = parse_index(listing.small(INDEX), asked)
        missing = sorted({file for file in weight_map.values() if not listing.has(file)})
        if missing:
            raise InputError(
                asked, f"{INDEX} names {missing[0]!r}, which is not there{_more(missing)}", "fetch the missing shards"
            )
        return sorted(set(weight_map.values())), weight_map
    return _choose_unindexed(names, asked), None


def _choose_unindexed(names: Sequence[str], asked: str) -> list[str]:
    """The weight files among these names when none is the usual one, only if there is no doubt."""
    found = [name for name in names if name.endswith(".safetensors") and name != ADAPTER]
    if len(found) == 1 and not SHARD.fullmatch(found[0]):
        return found
    if not found:
        raise _no_weights(names, asked)
    matches = [SHARD.fullmatch(name) for name in found]
    stems = {(match[1], match[3]) for match in matches if match}
    if len(stems) == 1 and all(matches):
        total = int(next(iter(stems))[1])
        if sorted(int(match[2]) for match in matches if match) == list(range(1, total + 1)):
            return found
        raise InputError(asked, f"{len(found)} of {total} shards are there and no {INDEX}", "fetch the missing shards")
    raise InputError(
        asked,
        f"{len(found)} .safetensors files ({found[0]!r}{_more(found)}) and no {INDEX}",
        "name the one file that you mean",
    )


def parse_index(data: bytes, asked: str) -> dict[str, str]:
    """The tensor-to-file map of ``model.safetensors.index.json``.

    Raises:
        InputError: not JSON, no ``weight_map``, or a file name that leaves the folder.
    """
    try:
        index = parse_json(data)
    except ValueError as problem:
        raise InputError(asked, f"{INDEX} is not valid JSON ({problem})", "fetch or save it again") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(asked, f"{INDEX} has no weight_map", "fetch or save it again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _stays_below(file):
            raise InputError(
                asked,
                f"{INDEX} puts tensor {name!r} into {str(file)[:200]!r}, which is no .safetensors file of the folder",
                "do not use this checkpoint unless you trust its author; then mend the index",
            )
    return weight_map


def join_shards(
    shards: Mapping[str, Mapping[str, TensorInfo]], weight_map: Mapping[str, str] | None, asked: str
) -> dict[str, TensorInfo]:
    """All tensors of all shards, in the order of their names, checked against the index."""
    joined: dict[str, TensorInfo] = {}
    for file, tensors in shards.items():
        for name, info in tensors.items():
            if name in joined:
                raise InputError(
                    asked, f"tensor {name!r} is in {file} and in another shard", "remove the shard left over"
                )
            joined[name] = info
    if weight_map is not None:
        for name, file in weight_map.items():
            if name not in shards[file]:
                raise InputError(asked, f"{INDEX} says that {file} has tensor {name!r}, and it has not", _INDEX_ADVICE)
        unlisted = sorted(joined.keys() - weight_map.keys())
        if unlisted:
            raise InputError(
                asked, f"the shards hold {unlisted[0]!r}{_more(unlisted)} and {INDEX} does not", _INDEX_ADVICE
            )
    if not joined:
        raise InputError(asked, "the files hold no tensor", "give a checkpoint with weights")
    return dict(sorted(joined.items()))


def parse_config(data: bytes, asked: str, file: str = "config.json") -> dict[str, Any]:
    """A JSON object from the bytes of a configuration file."""
    try:
        config = parse_json(data)
    except ValueError as problem:
        raise InputError(asked, f"{file} is not valid JSON ({problem})", "fetch or save it again") from None
    if not isinstance(config, dict):
        raise InputError(asked, f"{file} is not a JSON object", "fetch or save it again")
    return config


def _stays_below(file: str) -> bool:
    """Whether a file name from an index is a plain relative path to a .safetensors file."""
    parts = re.split(r"[/\\]", file)
    printable = file.isprintable()  # no null byte, no lone surrogate: neither can name a file
    return printable and file.endswith(".safetensors") and ":" not in file and not {"", ".", ".."} & set(parts)


def _no_weights(names: Sequence[str], asked: str) -> InputError:
    """Why a folder without safetensors is refused, and what would help."""
    kinds = Counter(PurePosixPath(name).suffix for name in names if name.endswith(PICKLES))
    if kinds[".distcp"]:
        return InputError(
            asked,
            "only a torch distributed checkpoint (.distcp), which is not safetensors",
            "convert it, for example with accelerate merge-weights",
        )
    if kinds:
        listed = ", ".join(sorted(kinds))
        return InputError(
            asked,
            f"only pickled weights ({listed}), which can run code when they are opened",
            "convert where you trust them: load with transformers and call save_pretrained, which writes safetensors "
            "(verl: python -m verl.model_merger merge)",
        )
    found = "the folder is empty" if not names else "no .safetensors file in the folder"
    return InputError(asked, found, "give a folder with .safetensors files")


def _more(items: list[str]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
