"""A trained adapter as plain LoRA on the original base.

An adapter that ``adapter init`` began is plain already: export drops what only training needed, and can shorten it. An
adapter that PEFT began on a changed base (pissa, olora, corda, ...) needs the factors it began with: then
``D = s B A - s B0 A0``, of twice the rank, as PEFT's ``path_initial_model_for_weight_conversion`` does with a model in
memory. What stays different from the model that was trained: PEFT rounds the changed base to its dtype, and plain LoRA
on the original base has no such rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from offprincipal.checkpoint import read_whole
from offprincipal.errors import InputError, UsageError
from offprincipal.survey import Progress
from offprincipal.train.adapters import _folder
from offprincipal.train.adapters._folder import Adapter, Factor, open_adapter
from offprincipal.train.adapters._init import ONE_FILE
from offprincipal.train.adapters._lowrank import Product, shorten
from offprincipal.writer import Writer


@dataclass(frozen=True)
class Exported:
    """An adapter that was exported.

    Attributes:
        folder: where it lies.
        errors: module path to ``||D_out - D|| / ||D||`` (Frobenius), measured on what was stored; 0 where D is zero.
        ranks: module path to stored rank.
    """

    folder: Path
    errors: Mapping[str, float] = field(repr=False)
    ranks: Mapping[str, int] = field(repr=False)

    @property
    def summary(self) -> dict[str, Any]:
        """For scripts: folder, modules, ranks, the largest error and where."""
        worst = max(self.errors, key=lambda path: self.errors[path])
        return {
            "folder": str(self.folder),
            "modules": len(self.errors),
            "rank_max": max(self.ranks.values()),
            "relative_error_max": self.errors[worst],
            "worst_module": worst,
        }


def export_adapter(
    trained: str | Path,
    out: str | Path,
    *,
    init: str | Path | None = None,
    base: str | None = None,
    rank: int | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> Exported:
    """Write a trained adapter as plain LoRA on the original base, one module at a time.

    Args:
        trained: the trained adapter's folder.
        out: the folder to write; must not hold an adapter.
        init: the same adapter as it began; needed where PEFT's initialisation changed the base. Factors whose product
            is exactly zero (every adapter of ``adapter init``) take nothing off.
        base: the original base, to be named in the exported configuration; the one that `trained` names when None.
        rank: shorten each module to at most this rank (nearest in the Frobenius norm); exact when None.
        progress: called after each module.
        command: the command line, for the card.

    Returns:
        The folder, and per module the relative error measured on what was stored. Float32 factors; without `rank` and
        `init` they are the trained ones, bit for bit.

    Raises:
        InputError: not a LoRA folder, DoRA, `init` is missing or is not where `trained` began, or `out` is taken.
        UsageError: a rank below 1.
    """
    if rank is not None and rank < 1:
        raise UsageError(f"export {str(trained)!r}", f"--rank is {rank}", "ask for at least 1")
    folder, opened = Path(out), open_adapter(trained)
    began = _began(opened, init)
    _folder.refuse_full(folder)
    stored: dict[str, tuple[Tensor, Tensor, float]] = {}
    errors: dict[str, float] = {}
    for done, (path, factor) in enumerate(opened.factors.items(), start=1):
        stored[path], errors[path] = _exported(factor, began.get(path), rank)
        if progress:
            progress(done, len(opened.factors), path)
    key = {"trained": str(trained), "init": str(init) if init else None, "rank": rank}
    _write(folder, opened, stored, key, base, command)
    return Exported(folder, errors, {path: a.shape[0] for path, (a, _, _) in stored.items()})


def _began(trained: Adapter, init: str | Path | None) -> Mapping[str, Factor]:
    """The factors that have to be taken off: those of a changed base, none where the adapter began as zero."""
    asked = f"export {str(trained.folder)!r}"
    moved = trained.moved_base
    if init is None:
        if moved is None:
            return {}
        raise InputError(
            asked,
            f"it began as {moved!r}, which took part of the base into the adapter",
            "give the adapter as it began with --init (save_pretrained before the first step)",
        )
    began = open_adapter(init)
    differing = sorted(trained.factors.keys() ^ began.factors.keys())
    if differing:
        raise InputError(asked, f"{init} has other modules ({differing[0]!r})", "give the adapter as it began")
    for path, factor in trained.factors.items():
        other = began.factors[path]
        if (factor.a.info.shape[1], factor.b.info.shape[0]) != (other.a.info.shape[1], other.b.info.shape[0]):
            raise InputError(asked, f"{path!r} of {init} has another shape", "give the adapter as it began")
    return began.factors


def _exported(factor: Factor, began: Factor | None, rank: int | None) -> tuple[tuple[Tensor, Tensor, float], float]:
    """(a, b, scaling) to be stored, and the relative error of their product."""
    a, b = read_whole(factor.a), read_whole(factor.b)
    whole, changed = Product(a.double(), b.double(), factor.scaling), False
    if began is not None:
        before = Product(read_whole(began.a).double(), read_whole(began.b).double(), began.scaling)
        if not before.is_zero():
            both = whole.minus(before)
            scaling = factor.scaling or 1.0  # alpha / r as it was
            whole, changed = Product(both.a, both.b / scaling, scaling), True
    kept = whole
    if rank is not None and rank < len(whole.a):
        kept, changed = shorten(whole, rank)[0], True
    if not changed:
        return (a, b, whole.scaling), 0.0
    a, b = kept.a.float().contiguous(), kept.b.float().contiguous()
    size = whole.norm()
    error = Product(a.double(), b.double(), whole.scaling).minus(whole).norm() / size if size else 0.0
    return (a, b, whole.scaling), error


def _write(
    folder: Path,
    opened: Adapter,
    stored: Mapping[str, tuple[Tensor, Tensor, float]],
    key: Mapping[str, Any],
    base: str | None,
    command: str | None,
) -> None:
    with Writer(folder, key, stem="adapter_model", shard_bytes=ONE_FILE) as writer:
        for path, (a, b, _) in stored.items():
            for ending, tensor in (("lora_A.weight", a), ("lora_B.weight", b)):
                name = f"{_folder.PREFIX}{path}.{ending}"
                if name not in writer:
                    writer.add(name, tensor)
        writer.finish()
    own = opened.config.get("base_model_name_or_path"), opened.config.get("revision")
    named, commit = own if base is None else (base.partition("@")[0], base.partition("@")[2] or None)
    words = opened.config.get("target_modules") or sorted(stored)
    ranks = {path: (a.shape[0], scaling) for path, (a, _, scaling) in stored.items()}
    transposed = bool(opened.config.get("fan_in_fan_out"))
    config = _folder.plain_config(named, commit, words, ranks, transposed=transposed)
    what = f"Exported from {opened.folder.name} as plain LoRA on the original base."
    _folder.write_card(folder, named, "LoRA adapter", what, command)
    _folder.write_json(folder / _folder.CONFIG, config)
