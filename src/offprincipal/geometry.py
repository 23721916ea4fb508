"""The geometry of one pair: did the update turn the principal subspaces, move the spectrum, avoid what is principal?

What it is: one base and one tuned matrix in, one frozen record of columns and curves out. The base is factorised once
(and kept, where a `Keep` is given), a tuned side near it carried over, one further away factorised too, the difference
taken by its eigenvalues alone. Read `measure` from top to bottom. What it is not: the elementwise counts
(``measures.sweep``), or the formulas (``measures.spectrum``, ``angles``, ``masks``, ``energy``, ``nulls``).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from offprincipal.errors import CheckFailed
from offprincipal.measures import angles, bits, energy, masks, nulls, spectrum
from offprincipal.measures._slices import widened
from offprincipal.measures.base import Base, base_of
from offprincipal.measures.delta import Delta, delta_of
from offprincipal.measures.levels import Levels, abs_on_mask, cross
from offprincipal.measures.seeds import numpy_generator
from offprincipal.measures.tuned import tuned_of

SPECTRUM_POINTS = 256
"""Singular value curves keep at most this many points, log-spaced in k (*ours*)."""

Curve = tuple[str, np.ndarray, np.ndarray]


class Keep(Protocol):
    """Somewhere to keep what depends on the base alone (``factors.FactorCache``)."""

    def fetch(self, before: Tensor, make: Callable[[], Base]) -> Base:
        """What is kept for exactly these bytes, or what `make` returns."""
        ...


@dataclass(frozen=True)
class Geometry:
    """What was measured on one pair.

    Attributes:
        columns: column name to value; a column that does not apply is absent.
        lines: curves as (name, x, y).
    """

    columns: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[Curve, ...] = ()

    def row(self) -> dict[str, Any]:
        """The columns of ``tensors.parquet`` that are measured here."""
        return dict(self.columns)

    def curves(self) -> list[Curve]:
        """The curves of ``curves.parquet`` that are measured here."""
        return list(self.lines)


def measure(
    before: Tensor,
    after: Tensor,
    *,
    name: str,
    seed: int = 0,
    factors: Keep | None = None,
    device: str | torch.device = "cpu",
    drawn: nulls.RoundingDraws | None = None,
) -> Geometry:
    """Measure spectrum, subspaces, masks and energy of one pair of matrices.

    Args:
        before: the base, ``[out, in]``, any floating dtype, any size.
        after: the tuned side, same shape.
        name: the tensor's name: seeds its simulated null, and stands in the error if a check fails.
        seed: of the comparison.
        factors: where the base's factors are kept between runs; None computes them.
        device: where the matrix products and eigenvectors are computed; masks are chosen on the CPU.
        drawn: draws of the rounding null of this pair, where the caller has them; else drawn here, the same ones.

    Returns:
        Columns and curves; empty for a matrix without entries. NaN and infinite entries of either side are zero on
        both (column ``geometry_holes`` counts them); factors are then not kept.

    Raises:
        CheckFailed: a bound of DEFINITIONS 3 does not hold, which is a bug in the numbers.

    Memory: at most about ten float32 copies of the matrix. Source: DEFINITIONS sections 2, 3 and 5.

    >>> w = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> found = measure(w, w * 2, name="w").row()
    >>> found["spectrum_base_sq"], found["spectrum_shift_sq"], found["delta_s1"]
    (10.0, 10.0, 3.0)
    """
    if not before.numel():
        return Geometry()
    holes = _holes(before, after)
    shape = (before.shape[0], before.shape[1])

    def make() -> Base:
        return base_of(before, holes=holes, device=device)

    base = make() if factors is None or holes is not None else factors.fetch(before, make)
    known = base.factors
    tuned = tuned_of(before, after, known, angles.grid(shape), holes=holes, device=device)
    delta = delta_of(before, after, known, tuned.products, holes=holes, device=device)
    first, second = known.values.cpu(), tuned.values
    columns: dict[str, Any] = {"geometry_holes": 0 if holes is None else int(holes.sum())}
    lines: list[Curve] = []
    for part in (
        _spectrum(first, second, delta),
        _angles(first, second, tuned.angles, delta, name),
        _energy(delta, shape),
        _overlaps(before, after, base.levels, numpy_generator(seed, name, "rounding") if drawn is None else drawn),
        _threshold_free(before, after, base.levels, holes),
    ):
        columns.update(part.columns)
        lines.extend(part.lines)
    _check(first, second, delta, name)
    return Geometry(columns, tuple(lines))


def _holes(before: Tensor, after: Tensor) -> Tensor | None:
    """Where either side is NaN or infinite; None where nothing is."""
    first, second = masks.nonfinite(before), masks.nonfinite(after)
    if first is None or second is None:
        return second if first is None else first
    return first | second


def _spectrum(before: Tensor, after: Tensor, delta: Delta) -> Geometry:
    """Singular values of both sides, their distance, and the ranks of the difference."""
    shift = spectrum.ky_fan(before, after)
    columns = {
        "spectrum_base_sq": float(before.square().sum()),
        "spectrum_shift_sq": float((after - before).square().sum()),
        "base_s1": float(before[0]),
        "tuned_s1": float(after[0]),
        "delta_s1": float(delta.values[0]),
        "delta_entropy_rank": spectrum.entropy_rank(delta.values),
        "delta_rank_1e6": spectrum.rank_at(delta.values, 1e-6),
        "delta_rank_99": spectrum.rank_of_energy(delta.values, 0.99),
        "base_stable_rank": spectrum.stable_rank(before),
        **{f"ky_fan_{k}": float(shift[k - 1]) for k in angles.GRID if k <= len(shift)},
    }
    last = len(before)
    at = np.unique(np.geomspace(1, last, min(last, SPECTRUM_POINTS)).round().astype(np.int64))
    x = at.astype(np.float64)
    return Geometry(
        columns, (("spectrum_base", x, before.numpy()[at - 1]), ("spectrum_tuned", x, after.numpy()[at - 1]))
    )


def _angles(
    before: Tensor, after: Tensor, turned: Mapping[str, Mapping[int, Tensor]], delta: Delta, name: str
) -> Geometry:
    """Largest principal angle per size, left and right, with the gap; the whole curve at the largest size."""
    columns, lines, largest = {}, [], float(delta.values[0])
    for side, found in turned.items():
        for k, radians in found.items():
            columns[f"angle_{side}_deg_{k}"] = math.degrees(float(radians[-1]))
            _check_angle(float(radians[-1]), before, after, k, largest, f"{side} subspace of {name!r}")
        widest = found[max(found)].cpu().rad2deg().numpy()
        lines.append((f"angles_{side}", np.arange(1.0, len(widest) + 1), widest))
    for k in turned.get("left", ()):
        columns[f"angle_gap_{k}"] = spectrum.gap(before, k)
        columns[f"angle_meaningless_{k}"] = angles.gap_closed(before, after, k)
    tried = min(max(angles.GRID), len(before) // 2)
    columns |= {"bound_sizes": tried, "bound_vacuous": angles.vacuous(before, largest, tried)}
    return Geometry(columns, tuple(lines))


def _check_angle(radians: float, before: Tensor, after: Tensor, k: int, delta_norm: float, what: str) -> None:
    """Raise where an angle exceeds what the perturbation can cause (Wedin, gap corrected by Weyl)."""
    bound = angles.sine_bound(spectrum.gap(before, k), delta_norm)
    slack = angles.ACCURACY + 16 * (angles.uncertainty(before, k) + angles.uncertainty(after, k))
    if math.sin(radians) > bound + slack:
        raise CheckFailed(
            f"measure the {what} at k = {k}",
            f"the sine {math.sin(radians):.6g} exceeds ||D||_2/(gap - ||D||_2) = {bound:.6g}",
            "this is a bug in the numbers; please report it with the two tensors",
        )


def _check(before: Tensor, after: Tensor, delta: Delta, name: str) -> None:
    """Raise where the singular values moved further than the difference allows."""
    broken = spectrum.broken_bounds(before, after, delta.values)
    if broken:
        raise CheckFailed(
            f"measure the spectrum of {name!r}",
            "; ".join(broken),
            "this is a bug in the numbers; please report it with the two tensors",
        )


def _energy(delta: Delta, shape: tuple[int, int]) -> Geometry:
    """Energy of the difference in the principal subspaces beside both nulls; no rank, no columns."""
    rank = delta.rank
    columns: dict[str, Any] = {"energy_rank": rank}
    if rank:
        expected = {"gauss": energy.gauss(shape, rank), "haar": energy.haar(delta.values, shape, rank)}
        for side, observed in zip(("left", "right", "both"), delta.inside, strict=True):
            columns[f"energy_{side}_sq"] = observed
            for null, moments in expected.items():
                columns[f"energy_{side}_{null}_mean"], columns[f"energy_{side}_{null}_sd"] = getattr(moments, side)
    return Geometry(columns)


def _overlaps(
    before: Tensor, after: Tensor, found: Levels, source: np.random.Generator | nulls.RoundingDraws
) -> Geometry:
    """Overlap of the update with the principal masks beside the magnitude and rounding nulls, all from one table."""
    table = cross(before.cpu(), after.cpu(), found.level)
    used = torch.from_numpy(masks.count_codes(before)).nonzero().flatten()
    still, moving = table[used].to(torch.float64).unbind(2)  # few codes occur; counts are exact in float64
    by_level = still + moving

    def by_code(counts: Tensor) -> Tensor:
        return torch.zeros(bits.MAGNITUDE_CODES, dtype=torch.int64).index_copy_(0, used, counts.to(torch.int64))

    total, moved = by_code(by_level.sum(dim=1)), by_code(moving.sum(dim=1))
    changed_by_level, changed = moving.sum(dim=0), int(moved.sum())
    draws = source if isinstance(source, nulls.RoundingDraws) else nulls.rounding_draws(total, changed, source)
    magnitude = nulls.magnitude(total, moved)

    def against(mask: Tensor) -> dict[str, float]:
        ones = by_code(by_level @ mask.to(torch.float64))
        expected, variance = magnitude.overlap(ones)
        share, spread = draws.share(ones)
        return {
            "ones": int(ones.sum()),
            "changed": int(changed_by_level[mask].sum()),
            "matched": expected,
            "matched_var": variance,
            "rounding": share * changed,
            "rounding_var": spread * changed**2,
        }

    principal, low = found.principal(), found.low()
    columns: dict[str, Any] = {"principal_rank": found.rank, "principal_alpha": masks.ALPHA}
    for mask, inside in (("principal", principal), ("principal_high", principal & ~low), ("safe", low | ~principal)):
        columns |= {f"{mask}_{key}": value for key, value in against(inside).items()}
        columns[f"{mask}_ties"] = found.ties[found.ranks.index(found.rank)]
    by_alpha = [against(found.principal(alpha)) for alpha in masks.ALPHAS]
    by_rank = [against(found.at_rank(rank)) for rank in found.ranks]
    lines = _series("principal", np.array(masks.ALPHAS), by_alpha)
    lines += _series("principal_rank", np.array(found.ranks, dtype=np.float64), by_rank)
    return Geometry(columns, tuple(lines))


def _series(mask: str, x: np.ndarray, rows: list[dict[str, float]]) -> list[Curve]:
    keys = (("count", "changed"), ("matched", "matched"), ("rounding", "rounding"))
    return [(f"{mask}_{name}", x, np.array([row[key] for row in rows], dtype=np.float64)) for name, key in keys]


def _threshold_free(before: Tensor, after: Tensor, found: Levels, holes: Tensor | None) -> Geometry:
    """Sum of |D| on the principal mask against what magnitude predicts, where the tuned side is wider than bf16."""
    if after.dtype not in (torch.float32, torch.float64):
        return Geometry()
    cpu = torch.device("cpu")
    delta = (widened(after, cpu) - widened(before, cpu)).abs()
    if holes is not None:
        delta = delta.masked_fill(holes.cpu(), 0.0)
    observed, expected = abs_on_mask(before, delta, found.principal()[found.level.to(torch.int64)])
    return Geometry({"principal_abs_sum": observed, "principal_abs_matched": expected})
