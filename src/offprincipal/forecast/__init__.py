"""What a number format leaves visible of an update (Gate III), before or without storing it.

What it is: the visible share of an update in fp32, fp16, bf16 and fp8, counted and in closed form, per magnitude code
and against the size of the steps, and the bytes of a sparse delta. The update is the difference of float32 masters,
the last step of an Adam state, or only a learning rate and a number of steps. What it is not: a forecast of what
training will do. Steps are taken as given, and nothing here knows whether a visible change matters.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from offprincipal.checkpoint import Checkpoint, open_checkpoint
from offprincipal.errors import InputError, UsageError
from offprincipal.forecast._adam import Moments, read_moments
from offprincipal.forecast._section import section
from offprincipal.forecast._sizes import VALUE_BYTES, break_even
from offprincipal.forecast._tally import FACTORS, Tally, Update
from offprincipal.measures import bits
from offprincipal.measures.steps import Constant, Gaussian
from offprincipal.names import canonical, family_of, locate
from offprincipal.pairs import Unpaired, pair
from offprincipal.results import versions
from offprincipal.store import explained, write_file

__all__ = ["FACTORS", "Forecast", "forecast"]

SCHEMA_VERSION = 1

DEFINITIONS = {
    "visible": "round(w0) != round(w) in the format, to nearest with ties to even, +0 equal to -0; w unrounded",
    "visible_counted": "each weight with its own step",
    "visible_expected": "closed form from the histograms of |w0| and |step| per tensor: as if steps were "
    "independent of the weights and their signs random",
    "stored": "closed form for weights on the bfloat16 grid: beyond half a gap (a quarter inward at powers of 2)",
    "within": "closed form for weights anywhere in their cell of the format: E[min(1, |step| / width of the cell)]",
    "all": "every floating tensor, a tied one once",
    "linear": "2-D weights inside blocks: no embedding, head, norm or bias",
    "fp8_e4m3": "cast as it is, saturating at 448",
    "fp8_e4m3_scaled": "divided by largest |w0| / 448 of its tensor first, the scale held fixed",
    "sparsity": "1 - visible / weights of the first update, every step multiplied by the factor and rounded again",
    "bytes": "of one delta that sends the new values, per encoding, before compression and without headers",
}


@dataclass(frozen=True)
class Forecast:
    """A finished forecast.

    Attributes:
        summary: rows, sweep, sizes and settings as plain data; ``section`` is what a report shows of it.
        curve: visible entries per update, format and magnitude code (Arrow).
    """

    summary: dict[str, Any]
    curve: pa.Table

    def row(self, form: str, update: str | None = None, scope: str = "all") -> dict[str, Any]:
        """One row of the table: of the first update, or of the one of that name."""
        wanted = self.summary["rows"][0]["update"] if update is None else update
        found = [r for r in self.summary["rows"] if (r["format"], r["update"], r["scope"]) == (form, wanted, scope)]
        if not found:
            raise UsageError(f"look up {form!r} of {wanted!r}", "the forecast has no such row", "see summary['rows']")
        return found[0]

    def save(self, directory: str | Path) -> Path:
        """Write ``forecast.json`` and ``forecast.parquet`` into a folder (a comparison's, or any) and return it.

        Raises:
            InputError: it cannot be written; nothing half-written stays.
        """
        folder, sink = Path(directory), pa.BufferOutputStream()
        pq.write_table(self.curve, sink, compression="zstd")
        with explained(f"write into {str(directory)!r}"):
            folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "forecast.parquet", sink.getvalue().to_pybytes())
        write_file(folder / "forecast.json", json.dumps(self.summary, indent=1, allow_nan=False).encode())
        return folder


@dataclass(frozen=True)
class _Work:
    """What is read, one tensor at a time, and what is asked of it."""

    kind: str
    tensors: Sequence[tuple[str, bool, Callable[[], tuple[Tensor, Tensor | None]]]]
    updates: Sequence[Update]
    left_out: Sequence[dict[str, Any]]
    told: dict[str, Any]


def forecast(
    base: str | Path,
    tuned: str | Path | None = None,
    *,
    lr: float | None = None,
    steps: int = 1,
    optimizer: str | Path | None = None,
    offline: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    command: str | None = None,
) -> Forecast:
    """Say which share of an update each number format leaves visible. One tensor is in memory at a time.

    Args:
        base: a checkpoint ref, in any floating dtype.
        tuned: its float32 master weights after the update (or an adapter, which is read in float32).
        lr: without `tuned`: the learning rate, taken as the size of every coordinate's step, as Adam's is at most
            about; with `optimizer`: instead of the stored one.
        steps: how many steps the update has (with `tuned`), or how many to foresee. Their sum lies between a random
            walk (sqrt(steps) of one) and a drift (steps times one).
        optimizer: a state of Adam that belongs to `base`; its last step is the update.
        offline: never ask the Hub.
        progress: called after each tensor with how many are done, how many there are, and its name.
        command: the command line to be recorded.

    Raises:
        InputError: something cannot be read, `tuned` is stored in fewer than 32 bits, or the state does not fit.
        UsageError: there is nothing to forecast from, or two things.

    Source: DEFINITIONS section 4, Gate III; closed forms after PNT Corollary 3.6 and arXiv 2602.03839; ours otherwise.

    >>> import torch, safetensors.torch
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     weights = {"model.layers.0.mlp.up_proj.weight": torch.tensor([[0.02, 1e-4], [0.5, 0.01]]).bfloat16()}
    ...     safetensors.torch.save_file(weights, f"{folder}/base.safetensors")
    ...     found = forecast(f"{folder}/base.safetensors", lr=1e-6, steps=100)
    >>> found.row("bf16")["share_expected"], found.row("fp32")["share_expected"]
    (0.25, 1.0)
    >>> [update["name"] for update in found.summary["updates"]]
    ['one step', 'one step, within a run', '100 steps, random walk', '100 steps, drift']
    """
    _check(tuned, lr, steps, optimizer)
    opened = open_checkpoint(base, offline=offline)
    if tuned is not None:
        work = _from_masters(opened, open_checkpoint(tuned, base=opened, offline=offline), steps)
    elif optimizer is not None:
        work = _from_moments(opened, read_moments(optimizer, opened, lr), steps, optimizer)
    else:
        work = _from_rate(opened, float(lr or 0), steps)
    tally = Tally(work.updates)
    for done, (name, linear, load) in enumerate(work.tensors):
        if progress:
            progress(done, len(work.tensors), name)
        tally.add(*load(), linear)
    if progress:
        progress(len(work.tensors), len(work.tensors), "")
    return Forecast(_summary(opened, work, tally, command), tally.curve())


def _check(tuned: object, lr: float | None, steps: int, optimizer: object) -> None:
    asked = "forecast"
    if tuned is None and lr is None and optimizer is None:
        raise UsageError(
            asked, "nothing says what the steps are", "give TUNED, --optimizer FILE, or --lr with --steps"
        )
    if tuned is not None and (lr is not None or optimizer is not None):
        raise UsageError(asked, "TUNED already says what the steps are", "leave out --lr and --optimizer, or TUNED")
    if steps < 1:
        raise UsageError(asked, f"{steps} is no number of steps", "give 1 or more")
    if lr is not None and not 0 < lr < 1e6:
        raise UsageError(asked, f"{lr:g} is no learning rate", "give a positive one, such as 1e-6")


def _from_masters(base: Checkpoint, tuned: Checkpoint, steps: int) -> _Work:
    plan = pair(base, tuned)
    coarse = [each for each in plan.pairs if each.tuned.source.info.itemsize < 4]
    if coarse:
        raise InputError(
            f"forecast from {base.ref!r} and {tuned.ref!r}",
            f"the second stores {len(coarse)} of {len(plan.pairs)} tensors in {coarse[0].tuned_dtype} "
            f"({coarse[0].name}), so its steps are rounded already",
            "give its float32 master weights, or forecast from --lr or --optimizer",
        )
    updates = [Update("whole update")]
    if steps > 1:
        updates += [Update(f"one of {steps} steps, random walk", steps**-0.5),
                    Update(f"one of {steps} steps, drift", 1 / steps)]  # fmt: skip
    tensors = [(each.name, each.place.linear, each.load) for each in plan.pairs]
    return _Work("masters", tensors, updates, _unpaired(plan.unpaired), {"tuned": _described(tuned)})


def _from_rate(base: Checkpoint, lr: float, steps: int) -> _Work:
    plan = pair(base, base)  # with itself: canonical names, and a tied weight once
    updates = [
        Update("one step", 1.0, Constant(lr), "stored"),
        Update("one step, within a run", 1.0, Constant(lr), "within"),
    ]
    if steps > 1:
        updates += [Update(f"{steps} steps, random walk", 1.0, Gaussian(lr * steps**0.5), "stored"),
                    Update(f"{steps} steps, drift", 1.0, Constant(lr * steps), "stored")]  # fmt: skip
    tensors = [(each.name, each.place.linear, lambda part=each.base: (part.load(), None)) for each in plan.pairs]
    left_out = [item for item in plan.unpaired if item.side == "base"]
    return _Work("learning rate", tensors, updates, _unpaired(left_out), {"lr": lr})


def _from_moments(base: Checkpoint, moments: dict[str, Moments], steps: int, file: str | Path) -> _Work:
    family, tensors, left_out = family_of(base.config), [], []
    for name, source in base.sources.items():
        found, info = moments.get(canonical(name, family)), source.info
        if found is None or tuple(found.first.shape) != info.shape or not info.is_float:
            reason = "the optimizer state has no moments of it" if found is None else "its moments have another shape"
            left_out.append({"side": "base", "tensor": name, "shape": list(info.shape), "reason": reason})
            continue
        linear = any(piece.place.linear for piece in locate(name, info.shape, base.config))
        tensors.append((name, linear, lambda name=name, found=found: _after(base.read(name), found)))
    if not tensors:
        raise InputError(
            f"forecast from {base.ref!r} and {str(file)!r}",
            f"no moments fit a tensor of the checkpoint (first: {next(iter(moments))!r})",
            "give the checkpoint that was saved beside the state",
        )
    updates = [Update("last step")]
    if steps > 1:
        updates += [
            Update(f"{steps} such steps, random walk", steps**0.5),
            Update(f"{steps} such steps, drift", float(steps)),
        ]
    rates = sorted({each.lr for each in moments.values()})
    return _Work(
        "optimizer", tensors, updates, left_out, {"optimizer": str(file), "lr": rates[0] if len(rates) == 1 else rates}
    )


def _after(before: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
    return before, before.double() + moments.last()


def _unpaired(items: Sequence[Unpaired]) -> list[dict[str, Any]]:
    return [{**asdict(item), "shape": list(item.shape)} for item in items]


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    dtypes = sorted({info.dtype for info in checkpoint.tensors.values()})
    return {"ref": checkpoint.ref, "commit": checkpoint.commit, "identity": checkpoint.identity(), "dtypes": dtypes}


def _summary(base: Checkpoint, work: _Work, tally: Tally, command: str | None) -> dict[str, Any]:
    sizes = bits.value(torch.arange(bits.FIRST_NONFINITE_CODE)).numpy()
    moved = int(tally.steps[: bits.FIRST_NONFINITE_CODE].sum())
    summary = {
        "schema_version": SCHEMA_VERSION,
        "kind": work.kind,
        "base": _described(base),
        **work.told,
        "updates": [{"name": update.name, "factor": update.factor} for update in work.updates],
        "weights": dict(zip(("all", "linear"), map(int, tally.weights), strict=True)),
        "mean_step": float(tally.steps[: bits.FIRST_NONFINITE_CODE] @ sizes) / moved if moved else None,
        "nonfinite": tally.nonfinite,
        "left_out": list(work.left_out),
        "rows": tally.rows(),
        "sweep": tally.sweep(),
        "break_even": {name: break_even(size) for name, size in VALUE_BYTES.items()},
        "definitions": DEFINITIONS,
        "versions": versions(),
        "command": command,
    }
    return {**summary, "section": section(summary)}
