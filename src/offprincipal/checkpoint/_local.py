"""What a folder holds: which files carry the weights, checked against the index and kept inside the folder."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offprincipal.checkpoint._header import TensorInfo, parse_json, read_header
from offprincipal.errors import InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".distcp")


def read_folder(folder: Path, asked: str) -> dict[str, TensorInfo]:
    """The tensors of a folder that holds a whole model.

    Args:
        folder: resolved path.
        asked: what the user wanted, for the message of an error.

    Raises:
        InputError: no weights, only pickled weights, an ambiguous set of files, or any damage.
    """
    files, weight_map = choose_files(folder, asked)
    shards = {file: read_header(inside(folder, file, asked), asked) for file in files}
    return join_shards(shards, weight_map, asked)


def choose_files(folder: Path, asked: str) -> tuple[list[str], dict[str, str] | None]:
    """The weight files of a folder, and the index's tensor-to-file map if there is an index.

    In this order, as transformers does: ``model.safetensors``; the index; then, ours, a single ``.safetensors`` file
    or a complete set named ``x-00001-of-0000N.safetensors``. Anything else is ambiguous and refused.
    """
    names = list_folder(folder, asked)
    if SINGLE in names:
        return [SINGLE], None
    if INDEX in names:
        weight_map = parse_index(read_small(folder, INDEX, asked), asked)
        missing = sorted({file for file in weight_map.values() if not inside(folder, file, asked).is_file()})
        if missing:
            raise InputError(
                asked, f"{INDEX} names {missing[0]!r}, which is not there{_more(missing)}", "fetch the missing shards"
            )
        return sorted(set(weight_map.values())), weight_map
    return choose_unindexed(names, asked), None


def choose_unindexed(names: list[str], asked: str) -> list[str]:
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


_INDEX_ADVICE = "index and shards are of different checkpoints: fetch or save them again"


def inside(folder: Path, file: str, asked: str) -> Path:
    """The path of a file of this folder, symbolic links followed, if it stays where it may.

    A plain folder's files must lie inside the folder. A snapshot of the Hub's cache is made of links into the
    repository's own ``blobs``, or through them into the ``blobs`` that all repositories of the cache share.

    Raises:
        InputError: the path leads out.
    """
    repository = hub_repository(folder)
    borders = (repository, repository.parent / "blobs") if repository else (folder,)
    try:
        path = (folder / file).resolve()
        outside = not any(path.is_relative_to(border) for border in borders)
    except (OSError, ValueError, RuntimeError):  # null bytes, endless names, links in a circle
        outside, path = True, folder
    if outside:
        raise InputError(
            asked,
            f"{file[:200]!r} leads out of the folder",
            "a checkpoint may not point elsewhere: put the file itself into the folder",
        )
    return path


def hub_repository(folder: Path) -> Path | None:
    """The cached repository's folder, if this is ``models--org--name/snapshots/<commit>`` of the Hub's cache."""
    repository = folder.parent.parent
    if folder.parent.name == "snapshots" and repository.name.startswith("models--"):
        return repository
    return None


def list_folder(folder: Path, asked: str) -> list[str]:
    """The names in a folder, sorted."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as problem:
        raise InputError(
            asked, f"the folder cannot be read ({problem.strerror or problem})", "check the path and its permissions"
        ) from problem


def read_small(folder: Path, file: str, asked: str) -> bytes:
    """A small file of the folder, whole."""
    try:
        return inside(folder, file, asked).read_bytes()
    except OSError as problem:
        raise InputError(
            asked, f"{file} cannot be read ({problem.strerror or problem})", "check the path and its permissions"
        ) from problem


def read_config(folder: Path, asked: str, file: str = "config.json") -> dict[str, Any]:
    """``config.json`` as a dictionary; empty if the folder has none."""
    if file not in list_folder(folder, asked):
        return {}
    return parse_config(read_small(folder, file, asked), asked, file)


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


def _no_weights(names: list[str], asked: str) -> InputError:
    """Why a folder without safetensors is refused, and what would help."""
    kinds = Counter(Path(name).suffix for name in names if name.endswith(PICKLES))
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
