"""Gate II: is the loss sharp or flat along the update, and along what is principal? Read `measure_curvature` first.

What it is: Rayleigh quotients ``v' F v`` and ``v' H v`` (|v| = 1) of the base's loss, in each matrix and through all
of them, for the update, its parts on and off the principal subspace and entries, and the same parts of random
directions; with an interval and the power of the test. What it is not: a proof that curvature steered the update,
which a quotient at the base cannot be, or a spectrum of the Hessian.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from offprincipal.errors import InputError, UsageError
from offprincipal.measures.masks import RANK
from offprincipal.probes import forms
from offprincipal.probes.directions import Direction, Matrix, Region, joined, matrices_of, wanted
from offprincipal.probes.models import Model, check_device, load_model, open_all
from offprincipal.probes.results import described, prepare, write
from offprincipal.probes.texts import Batch, Text, check_ids, padded, read_texts
from offprincipal.probes.tokens import one_tokenizer
from offprincipal.probes.verdicts import DEFINITIONS, judged, shown

AT_ONCE = 1 << 27
"""Numbers held by the directions that are differentiated together (*ours*): half a gigabyte in float32."""

ALL = "all matrices together"

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        prompts: the prompt file; its scored tokens are the labels of the loss.
        batches: into how many the texts are dealt: the unit of resampling.
        draws: random directions per matrix.
        rank: of the principal subspace; capped at half the short side.
        matrices: so many, spread over the model, or all of them.
        seed: of draws and bootstrap.
        device: where the model computes.
    """

    prompts: str
    batches: int = 16
    draws: int = 5
    rank: int = RANK
    matrices: int | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.batches, self.draws) < 2:
            found, do_next = "an interval needs two batches and two draws", "give at least two of each"
            raise UsageError("probe the curvature", found, do_next)
        if self.rank < 1 or (self.matrices is not None and self.matrices < 0):
            raise UsageError("probe the curvature", "a size is below its least", "give a rank from 1, matrices from 0")
        check_device(self.device)


def measure_curvature(
    base: str | Path,
    tuned: Sequence[str | Path] | Mapping[str, str | Path],
    out: str | Path,
    *,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Curvature of the base's loss along each tuned checkpoint's update, beside random directions.

    Args:
        base: a checkpoint ref with config.json and tokenizer, on this disk or in the Hub's cache.
        tuned: refs, or labels with refs.
        out: folder for ``probe-curvature.json`` and ``probe-curvature.parquet`` (one row per matrix, direction and
            batch: sums along the unit direction, and tokens). In the folder of a comparison its report shows them.
        progress: called as ``progress(done, total, what)`` after each matrix.
        command: the command line to be recorded.
        **options: fields of `Settings`; ``prompts`` is needed.

    Returns:
        The content of ``probe-curvature.json``.

    Raises:
        InputError: a checkpoint or the prompts cannot be used, or nothing changed inside the blocks.
        UsageError: the extra ``hf`` is missing, or the options make no sense.

    Arithmetic: float32 model, sums in float64. Cost: four to ten forward passes per direction and batch; random
    directions are shared by all runs. Memory: the base, the update of each run, one byte per weight for masks, and the
    directions that are differentiated together. Left out: embeddings, head, norms, biases.
    """
    settings = Settings(**options)
    before, runs = open_all(base, tuned)
    tokenizer = one_tokenizer(before, list(runs.values()))
    texts = read_texts(settings.prompts, tokenizer)
    folder = prepare(out)
    model = load_model(before, device=settings.device, derivatives=True)
    check_ids(texts, model.vocabulary, model.longest, f"probe {before.ref!r}")
    dealt = deal(texts, settings.batches, settings.device)
    matrices = matrices_of(model)
    deltas = {label: updates(model, load_model(checkpoint), matrices, label) for label, checkpoint in runs.items()}
    regions = {
        matrix: _region(model, matrix, settings) for matrix in matrices if any(matrix in d for d in deltas.values())
    }
    rows = list(_measured(model, dealt, deltas, regions, settings, progress))
    found = [
        {"label": label, **described(checkpoint), "unchanged_matrices": len(matrices) - len(deltas[label])}
        | judged(rows, label, ALL, settings.seed)
        for label, checkpoint in runs.items()
    ]
    answer = {
        "base": described(before),
        "runs": found,
        "batches": len(dealt),
        "tokens": sum(int(batch.scored.sum()) for batch in dealt),
        "settings": asdict(settings),
        "definitions": DEFINITIONS,
        "command": command,
        "section": shown(found, len(dealt), settings.draws),
    }
    return write(folder, "curvature", answer, {"probe-curvature": pa.Table.from_pylist(rows)})


def deal(texts: Sequence[Text], count: int, device: str) -> list[Batch]:
    """The texts dealt out like cards into at most `count` batches.

    Raises:
        InputError: there is only one text.
    """
    count = min(count, len(texts))
    if count < 2:
        raise InputError(
            "probe the curvature", "there is one prompt", "give at least two: the interval is over batches"
        )
    return [padded(texts[i::count], device) for i in range(count)]


def updates(model: Model, tuned: Model, matrices: Sequence[Matrix], label: str) -> dict[Matrix, Tensor]:
    """The update of every matrix that changed, float32 on the CPU (the difference is taken in float64).

    Raises:
        InputError: the models have different parameters, or no matrix changed.
    """
    old, new = model.weights(), tuned.weights()
    found = {}
    for matrix in matrices:
        partner = new.get(matrix.parameter)
        if partner is None or partner.shape != old[matrix.parameter].shape:
            what = f"it has no {matrix.parameter} of the base's shape"
            raise InputError(f"probe the curvature along {label!r}", what, "give a tune of this base")
        delta = (matrix.take(partner).double().cpu() - matrix.take(old[matrix.parameter]).double().cpu()).float()
        if bool(delta.any()):
            found[matrix] = delta
    if not found:
        what = "no linear matrix differs from the base's: D = 0"
        raise InputError(f"probe the curvature along {label!r}", what, "give a checkpoint that was trained")
    return found


def _region(model: Model, matrix: Matrix, settings: Settings) -> Region:
    return Region.of(matrix.take(model.weights()[matrix.parameter]).cpu(), settings.rank)


Row = dict[str, Any]
Updates = Mapping[str, Mapping[Matrix, Tensor]]
Named = tuple[str, Direction, Mapping[Matrix, Tensor]]


def _measured(
    model: Model,
    dealt: Sequence[Batch],
    deltas: Updates,
    regions: Mapping[Matrix, Region],
    settings: Settings,
    progress: Progress | None,
) -> Iterator[Row]:
    """One row per block, direction and batch: all matrices together for each run, then matrix by matrix."""
    limit = len(regions) if settings.matrices is None else min(settings.matrices, len(regions))
    chosen = [
        matrix for i, matrix in enumerate(regions) if i * limit // len(regions) != (i - 1) * limit // len(regions)
    ]
    work: list[tuple[Row, Sequence[Named]]] = []
    every = wanted(settings.draws)
    for label, delta in deltas.items():
        work.append(({"block": ALL, "layer": None, "kind": None}, [(label, each, delta) for each in every]))
    for matrix in chosen:
        about = {"block": matrix.piece.name, "layer": matrix.piece.place.layer, "kind": matrix.piece.place.kind}
        alone = {label: {matrix: delta[matrix]} for label, delta in deltas.items() if matrix in delta}
        own = [(label, each, delta) for label, delta in alone.items() for each in every if not each.random]
        shared = next(iter(alone.values()))  # in one matrix a draw does not depend on the update
        work.append((about, own + [("", each, shared) for each in every if each.random]))
    for done, (about, directions) in enumerate(work, 1):
        yield from _block(about, directions, model, dealt, regions, settings.seed)
        if progress:
            progress(done, len(work), about["block"])


def _block(
    about: Row,
    directions: Sequence[Named],
    model: Model,
    dealt: Sequence[Batch],
    regions: Mapping[Matrix, Region],
    seed: int,
) -> Iterator[Row]:
    """One row per direction and batch: both forms along the unit direction; so many directions at a time as fit.

    A random direction that all runs share has no run. A part that is empty (the update is zero there) has no row.
    """
    width = model.module.get_output_embeddings().weight.shape[1]
    entries = sum(delta.numel() for delta in directions[0][2].values())
    held = entries + 64 * width * max(batch.ids.numel() for batch in dealt)
    step = max(1, AT_ONCE // held)
    for start in range(0, len(directions), step):
        made = [
            (label, each, joined(each, deltas, regions, seed, model))
            for label, each, deltas in directions[start : start + step]
        ]
        made = [found for found in made if any(bool(tensor.any()) for tensor in found[2].values())]
        if not made:
            continue
        along = {name: torch.stack([tensors[name] for _, _, tensors in made]) for name in made[0][2]}
        for number, batch in enumerate(dealt):
            found = forms.curvature(model, batch, along)
            for i, (label, each, _) in enumerate(made):
                yield {
                    **about, "run": label, "part": each.part, "draw": each.draw, "batch": number,
                    "tokens": int(batch.scored.sum()), "fisher": float(found.fisher[i]),
                    "hessian": float(found.hessian[i]),
                }  # fmt: skip
