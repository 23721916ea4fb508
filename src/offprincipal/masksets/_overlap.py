"""How far two mask sets overlap, matrix by matrix, beside what chance, magnitude and rounding would give."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from offprincipal import tables
from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError
from offprincipal.masksets._layout import take
from offprincipal.masksets._maskset import MaskSet
from offprincipal.measures import masks, nulls
from offprincipal.measures.consensus import RunPair
from offprincipal.measures.excess import z_score
from offprincipal.measures.levels import cross
from offprincipal.measures.seeds import numpy_generator
from offprincipal.names import Piece

Progress = Callable[[int, int, str], None]

MEANS = ("overlap", "overlap_chance")


@dataclass(frozen=True)
class Overlap:
    """The overlap ``|A and B| / |B|`` of two sets.

    Attributes:
        summary: over the matrices inside blocks (all, where none is): means are unweighted, ``_pooled`` are weighted
            by count, keys as in the runs of a comparison's ``summary.json``.
        rows: one record per matrix, numerators and denominators beside their ratios.
    """

    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


def overlap(
    a: "str | Path | MaskSet",
    b: "str | Path | MaskSet",
    *,
    base: str | Path | None = None,
    seed: int = 0,
    offline: bool = False,
    progress: Progress | None = None,
) -> Overlap:
    """Which share of B lies in A, and what independent masks would give; with the base, what magnitude alone gives.

    Args:
        a: a mask chosen from the base (principal, low, safe, ...).
        b: an update mask: the denominator, as in PNT section 4.2.
        base: the checkpoint both were made for; its values are checked. Adds the magnitude null (exact: expected,
            excess with a bootstrap interval over matrices, z) and the rounding null (seeded draws).
        seed: of the rounding null.
        offline: never ask the Hub for the base.
        progress: called before each weight.

    Returns:
        An `Overlap`. With the base its numbers are those of ``offprincipal compare`` to the last bit.

    Raises:
        InputError: the sets are for different weights or another base, or B is empty.

    >>> from tempfile import TemporaryDirectory
    >>> from offprincipal.masksets import save_masks
    >>> with TemporaryDirectory() as folder:
    ...     a = save_masks(f"{folder}/a", {"w": torch.tensor([[True, True, False, False]])})
    ...     b = save_masks(f"{folder}/b", {"w": torch.tensor([[True, False, False, False]])})
    ...     found = overlap(a, b).summary
    >>> found["overlap"], found["overlap_chance"], found["lift"], found["jaccard"]
    (1.0, 0.5, 2.0, 0.5)
    """
    asked = f"overlap {str(getattr(a, 'path', a))!r} with {str(getattr(b, 'path', b))!r}"
    first, second = MaskSet.open(a), MaskSet.open(b)
    first.check_like(second, asked)
    if not second.header["ones"]:
        raise InputError(
            asked, "the second mask is empty, and it is the denominator", "give a mask with weights in it"
        )
    opened = None if base is None else open_checkpoint(base, offline=offline)
    if opened:
        first.check_names(opened)
    rows = []
    for done, name in enumerate(first.names):
        if progress:
            progress(done, len(first), name)
        weight = None if opened is None else opened.read(name)
        for record in (first, second):
            record.check_weight(name, weight, opened.ref if opened else "")
        left, right = first[name], second[name]
        for piece in first.pieces(name):
            matrix = None if weight is None else take(weight, piece.cut)
            rows.append(row(piece, take(left, piece.cut), take(right, piece.cut), matrix, seed))
    if progress:
        progress(len(first), len(first), "")
    inside = [each for each in rows if each["linear"]] or rows
    return Overlap(tables.without_nonfinite(summarise(inside, opened is not None)), tables.without_nonfinite(rows))


def row(piece: Piece, a: Tensor, b: Tensor, weight: Tensor | None, seed: int) -> dict[str, Any]:
    """One matrix: counts, overlap, Jaccard, and with the base's values both nulls."""
    entries, in_a, in_b, both = a.numel(), int(a.sum()), int(b.sum()), int((a & b).sum())
    chance = in_a * in_b / max(entries, 1)
    low, high = masks.feasible(in_b, in_a, entries)
    found: dict[str, Any] = {
        "tensor": piece.name, "kind": piece.place.kind, "layer": piece.place.layer, "expert": piece.place.expert,
        "linear": piece.place.linear, "counted": entries, "a": in_a, "b": in_b, "both": both,
        "overlap": both / in_b if in_b else None, "overlap_chance": in_a / entries if entries else None,
        "lift": masks.lift(both, in_b, in_a, entries), "feasible_low": low, "feasible_high": high,
    }  # fmt: skip
    expected = variance = 0.0
    if weight is not None and entries:
        table = cross(weight, weight, a.to(torch.uint8) + 2 * b.to(torch.uint8))[:, :4, 0].to(torch.int64)
        total, of_a, of_b = table.sum(dim=1), table[:, 1] + table[:, 3], table[:, 2] + table[:, 3]
        expected, variance = nulls.magnitude(total, of_b).overlap(of_a)
        drawn = nulls.rounding_draws(total, in_b, numpy_generator(seed, piece.name, "rounding"))
        share, spread = drawn.share(of_a)
        found |= {"matched": expected, "matched_var": variance, "rounding": share * in_b,
                  "rounding_var": spread * in_b**2,
                  "excess_z": z_score(float(both), expected, variance)}  # fmt: skip
    pair = RunPair(0, 1, entries, in_a, in_b, both, chance, expected, variance)
    found |= {"either": pair.either, "jaccard": pair.jaccard, "jaccard_bernoulli": pair.jaccard_bernoulli}
    return found | ({} if weight is None else {"jaccard_matched": pair.jaccard_matched.mean})


def summarise(rows: Sequence[Mapping[str, Any]], matched: bool) -> dict[str, Any]:
    """Means over the matrices where B is not empty, and pooled counts; with `matched` the nulls of the base."""
    moved = [each for each in rows if each["b"]]
    total = {key: sum(each[key] for each in rows) for key in ("counted", "a", "b", "both", "either")}
    # numpy's mean, as a comparison takes it: the last bit depends on the order of the sum
    mean, chance = (float(np.mean([each[key] for each in moved])) if moved else None for key in MEANS)
    found: dict[str, Any] = {"matrices": len(moved), **total, "overlap": mean, "overlap_chance": chance}
    found["lift"] = mean / chance if mean is not None and chance else None
    found["overlap_pooled"] = total["both"] / total["b"] if total["b"] else None
    if matched:
        found |= _nulls(rows)
    union = [each for each in rows if each["either"]]
    keys = ["jaccard", "jaccard_bernoulli", *(["jaccard_matched"] if matched else [])]
    found |= {key: _mean(union, key) for key in keys}
    if matched:
        sums = [sum(each[key] for each in union) for key in ("both", "matched", "matched_var")]
        found["jaccard_excess_z"] = z_score(float(sums[0]), sums[1], sums[2])
    found["jaccard_pooled"] = total["both"] / total["either"] if total["either"] else None
    return found


def _nulls(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The overlap beside its nulls, with interval and z, by the very function that a comparison uses."""
    columns = {"changed": "b", "counted": "counted", "m_ones": "a", "m_changed": "both", "m_matched": "matched",
               "m_matched_var": "matched_var", "m_rounding": "rounding", "m_rounding_var": "rounding_var"}  # fmt: skip
    table = pa.table({name: [each.get(key) for each in rows] for name, key in columns.items()})
    return {key.replace("overlap_m", "overlap"): value for key, value in tables.overlap(table, "m").items()
            if key != "overlap_m_matrices"}  # fmt: skip


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [each[key] for each in rows]
    return sum(values) / len(values) if values else None
