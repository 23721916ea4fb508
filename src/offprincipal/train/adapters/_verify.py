"""Is this adapter what it says: read back through PEFT, a no-op at its start, off the principal directions?

Read `verify_adapter` from top to bottom. Each check is measured and reported; those that did not hold are listed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offprincipal.checkpoint import Checkpoint, open_checkpoint, read_whole
from offprincipal.errors import CheckFailed, InputError, UsageError
from offprincipal.fanout import Engine, here
from offprincipal.survey import Progress
from offprincipal.train.adapters import _peft
from offprincipal.train.adapters._energy import Energies, measure_energy
from offprincipal.train.adapters._folder import Adapter, open_adapter
from offprincipal.train.adapters._hold import TOLERANCE, Tied
from offprincipal.train.adapters._recipe import DOUBLED

RELOADED = 1e-6
"""Relative distance between PEFT's D and ours that float32 products explain."""


@dataclass(frozen=True)
class Verified:
    """What was checked.

    Attributes:
        summary: the numbers, plain data.
        failures: one sentence per check that did not hold.
    """

    summary: Mapping[str, Any]
    failures: tuple[str, ...]

    def raise_if_failed(self) -> None:
        """Raise when a check did not hold.

        Raises:
            CheckFailed: naming the checks.
        """
        if self.failures:
            raise CheckFailed(
                f"verify adapter {self.summary['adapter']!r}", "; ".join(self.failures), "see the numbers above"
            )


def verify_adapter(
    folder: str | Path,
    base: str | Path | None = None,
    *,
    init: str | Path | None = None,
    logits: bool = True,
    merge_drift: int = 0,
    cache: bool = True,
    offline: bool = False,
    engine: Engine = here,
    progress: Progress | None = None,
) -> Verified:
    """Check an adapter folder against its base.

    1. Every factor fits the base, and its content is that of the base the adapter was made for (where the note says).
    2. Read back through PEFT: D of every module equals ``s B A`` of the file, no module is missing on either side. The
       model around it takes no memory.
    3. At the start (D exactly zero): logits on random tokens equal the base's bit for bit, in float32.
    4. Energy of D in the leading left and right singular subspaces of the base, beside chance; of an off-principal
       adapter it must be zero to rounding.
    5. With `merge_drift`: weights of the base, in its stored dtype, that moved after so many merges and unmerges.
       Reported; not a failure of the adapter.

    Args:
        folder: the adapter.
        base: its base; the one that it names when None.
        init: where a trained adapter began (``adapter init``'s folder), whose promise is then checked.
        logits: load the whole base for check 3.
        merge_drift: cycles of check 5, which loads the whole base too.
        cache: read and keep the base's factors.
        offline: never ask the Hub.
        engine: where the subspaces are computed; `on_this_machine` starts processes where that is worth it.
        progress: called after each module of check 4.

    Raises:
        InputError: the folder or its base cannot be read, or the two do not fit.
        UsageError: transformers or peft is not installed, or a negative number of cycles.
    """
    if merge_drift < 0:
        raise UsageError("verify merges", f"{merge_drift} cycles were asked for", "ask for at least 1")
    adapter = open_adapter(folder)
    began = adapter if init is None else open_adapter(init)
    if adapter.moved_base:
        found = f"it began as {adapter.moved_base!r}, which changes the base"
        raise InputError(f"verify {str(folder)!r}", found, "export it first: offprincipal adapter export")
    whole = open_checkpoint(str(folder), base=base, offline=offline)
    opened = open_checkpoint(base if base is not None else str(whole.base_ref), offline=offline)
    energy = measure_energy(adapter, whole, began.note, cache=cache, engine=engine, progress=progress)
    failures = _broken(energy, adapter, began)
    summary: dict[str, Any] = {
        "adapter": str(folder),
        "base": {"ref": opened.ref, "commit": opened.commit},
        "method": began.note.get("method"),
        "modules": len(adapter.factors),
        "rank": max(factor.a.info.shape[0] for factor in adapter.factors.values()),
        "at_start": energy.all_zero,
        "reload": _reload(adapter, opened, failures),
        "energy": energy.summary(),
    }
    if energy.all_zero and logits:
        summary["no_op"] = _no_op(adapter, opened, failures)
    if merge_drift:
        summary["merge_drift"] = _merges(adapter, opened, merge_drift)
    return Verified(summary | {"failures": failures}, tuple(failures))


def _broken(energy: Energies, adapter: Adapter, began: Adapter) -> list[str]:
    """What the note promises and the adapter does not keep: its base, its method."""
    failures = [f"the base's weight of {path!r} is not the one it was made for" for path in energy.foreign[:1]]
    method = began.note.get("method")
    if method == "off-principal" and not energy.worst_root <= TOLERANCE:
        failures.append(
            f"{energy.worst!r} has {energy.worst_root:.3g} of its norm in the subspaces it promised to stay out of "
            "(train it with hold)"
        )
    if method in DOUBLED and began is not adapter:
        for path, factor in adapter.factors.items():
            first = began.factors[path]
            a0, b0 = read_whole(first.a), read_whole(first.b)
            rank = len(a0) // 2
            trained = torch.nn.Parameter(read_whole(factor.a)), torch.nn.Parameter(read_whole(factor.b))
            residual = Tied(*trained, a0[:rank], b0[:, rank:]).residual()
            if not residual <= TOLERANCE:
                failures.append(f"{path!r} is {residual:.3g} away from the form of {method} (train it with hold)")
                break
    return failures


def _reload(adapter: Adapter, base: Checkpoint, failures: list[str]) -> dict[str, float]:
    model = _peft.attach(_peft.skeleton(base), adapter)
    largest, size = _peft.differences(model, adapter)
    if not largest <= RELOADED * size:
        failures.append(f"PEFT's D differs from the file's by {largest:.3g} (largest entry {size:.3g})")
    return {"difference_max": largest, "delta_max": size}


def _no_op(adapter: Adapter, base: Checkpoint, failures: list[str]) -> dict[str, Any]:
    model = _peft.load_base(base, torch.float32)
    before = _peft.logits(model)
    after = _peft.logits(_peft.attach(model, adapter))
    identical = torch.equal(before, after)
    difference = float((before - after).abs().max())
    if not identical:
        failures.append(f"at the start the logits differ from the base's by {difference:.3g} in float32")
    tokens = _peft.TOKENS[0] * _peft.TOKENS[1]
    return {"dtype": "float32", "tokens": tokens, "identical": identical, "difference_max": difference}


def _merges(adapter: Adapter, base: Checkpoint, cycles: int) -> dict[str, Any]:
    dtype = max((info for info in base.tensors.values() if info.is_float), key=lambda info: info.nbytes).torch_dtype
    found = _peft.merge_cycles(_peft.attach(_peft.load_base(base, dtype), adapter), cycles)
    return {
        "cycles": cycles,
        "dtypes": list(found.dtypes),
        "weights": found.weights,
        "moved": found.moved,
        "share": found.share,
        "largest": found.largest,
    }
