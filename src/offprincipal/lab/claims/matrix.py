"""One base matrix in every run of a laboratory, with the nulls and controls of each run: the judge's own measurement.

What it is: tensors in, plain data out; run wherever it is put. Each null and each control is an update derived from a
real one (``plants.py``), measured by the same code. What it is not: `survey.compare`, whose rows of the real runs it
takes over where they are given.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprincipal import geometry
from offprincipal.lab.claims import plants
from offprincipal.lab.overlaps import jaccard
from offprincipal.measures import angles, bits, energy, masks, nulls, spectrum
from offprincipal.measures.consensus import Consensus
from offprincipal.measures.levels import abs_on_mask, levels
from offprincipal.measures.seeds import numpy_generator
from offprincipal.measures.sweep import Sweep, low_changed, sweep

SCALES = (1 / 3, 1.0, 3.0, 10.0, 30.0)
"""Factors by which D is scaled and rounded again (claim P7)."""

CURVES = ("principal_count", "principal_matched", "principal_rank_count", "principal_rank_matched")
"""Curves of the principal overlap over mask size and rank (claim A1)."""

TOP = 100
"""Leading singular values whose relative change is reported (claim D3)."""


@dataclass(frozen=True)
class Roles:
    """Which runs stand for RLVR and which for SFT: the real ones, or those of a control."""

    rl: tuple[str, ...]
    sft: tuple[str, ...]

    def like(self, prefix: str) -> "Roles":
        """The runs derived from these by a null or control, such as ``"blank:rlvr-1"``."""
        return Roles(tuple(f"{prefix}:{run}" for run in self.rl), tuple(f"{prefix}:{run}" for run in self.sft))


@dataclass
class Matrix:
    """A base matrix in every run: bfloat16 `before`, and per run the float32 or finer weights `after`.

    Attributes:
        axis: the axis of heads: 0 for queries, keys and values, 1 for the output projection; 0 elsewhere.
        heads: how many heads lie along it; 0 where there are none.
        rows: columns of the runs that were measured already.
    """

    name: str
    kind: str
    before: Tensor
    after: dict[str, Tensor]
    roles: Roles
    axis: int = 0
    heads: int = 0
    seed: int = 0
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def factors_of(before: Tensor) -> geometry.Base:
    """Factors and level map of a base matrix; one direction beyond the largest subspace, for `plants.turned`."""
    shape = (before.shape[0], before.shape[1])
    made = spectrum.factorise(before, min(masks.principal_rank(shape, max(angles.GRID)) + 1, *shape))
    made = spectrum.Factors(made.values.contiguous(), made.left.contiguous(), made.right.contiguous())
    return geometry.Base(made, levels(before, made))


def measure(matrix: Matrix, *, controls: bool = True) -> dict[str, Any]:
    """Measure every run of a matrix, its nulls and, if asked, its controls with their nulls.

    Returns:
        ``tensor``, ``kind``; ``rows``: run to columns; ``groups``: ``"a|b"`` to agreement of two runs.
    """
    base = factors_of(matrix.before)
    before = matrix.before.to(torch.float64)
    deltas = {run: after.to(torch.float64) - before for run, after in matrix.after.items()}
    runs = derived(matrix, base, deltas, controls)
    after = {run: matrix.after[run] if run in matrix.after else (before + d).float() for run, d in runs.items()}
    rows = {}
    for run, weights in after.items():
        lean = LEAN.get(run.split(":")[0])
        if lean:
            rows[run] = lean(matrix.before, weights, base)
        else:
            known = matrix.rows.get(run) or columns(matrix, base, weights, run)
            rows[run] = {**known, **further(matrix.before, weights, base)}
    moved = {run: bits.changed(matrix.before, weights) for run, weights in after.items()}
    pairs = _groups(matrix.roles, moved)
    groups = {"|".join(pair): agreement(matrix, moved, pair, stripes) for pair, stripes in pairs.items()}
    return {"tensor": matrix.name, "kind": matrix.kind, "rows": rows, "groups": groups}


def derived(matrix: Matrix, base: geometry.Base, deltas: Mapping[str, Tensor], controls: bool) -> dict[str, Tensor]:
    """Every update to be measured: the real ones, their controls, and the nulls of both."""
    found = dict(deltas)
    if controls:
        found |= _controls(matrix, base, deltas)
    for run in list(found):
        for null in _nulls_of(run, matrix.roles):
            generator = numpy_generator(matrix.seed, matrix.name, run, null)
            if null == "blank":
                found[f"blank:{run}"] = plants.within_magnitude(matrix.before, found[run], generator)
            else:
                found[f"{null}:{run}"] = {"even": plants.even, "gauss": plants.gauss}[null](found[run], generator)
    size = float(np.mean([float(deltas[run].norm()) for run in matrix.roles.rl]))
    for run in (*matrix.roles.sft, matrix.roles.rl[-1]):
        own = float(deltas[run].norm())
        found[f"matched:{run}"] = deltas[run] * (size / own if own else 0.0)
    return found


def _nulls_of(run: str, roles: Roles) -> tuple[str, ...]:
    """The simulated nulls that some claim asks of this run."""
    prefix, _, plain = run.rpartition(":")
    if prefix in ("", "null", "off"):
        return ("even", "blank", "gauss") if plain in roles.rl else ("gauss",)
    return {"turned": ("gauss",), "plain": ("even",)}.get(prefix, ())


def _controls(matrix: Matrix, base: geometry.Base, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Planted runs, made from steps whose places were shuffled first, so that nothing but the plant is in them."""
    found = {}
    for run in (*matrix.roles.rl, *matrix.roles.sft):
        generator = numpy_generator(matrix.seed, matrix.name, run, "controls")
        plain = plants.even(deltas[run], generator)
        found[f"null:{run}"] = plants.within_magnitude(matrix.before, deltas[run], generator)
        if run in matrix.roles.rl:
            lines = numpy_generator(matrix.seed, matrix.name, "lines")  # the same lines in every run
            found[f"plain:{run}"] = plain
            found[f"off:{run}"] = plants.avoiding(plain, base)
            found[f"striped:{run}"] = plants.striped(plain, matrix.axis, matrix.heads, lines)
            found[f"seen:{run}"] = plants.seen(plain, generator)
        else:
            sizes = angles.grid((matrix.before.shape[0], matrix.before.shape[1])) or (1,)
            found[f"on:{run}"] = plants.aiming(plain, base)
            found[f"turned:{run}"] = plants.turned(plain, base, sizes)
        halves = numpy_generator(matrix.seed, matrix.name, "halves")  # the same halves for every run
        found[f"apart:{run}"] = plants.apart(plain, run in matrix.roles.rl, halves)
    return found


def _groups(roles: Roles, moved: Mapping[str, Tensor]) -> dict[tuple[str, str], bool]:
    """Pairs of runs whose masks are compared, likewise of controls and nulls; true where stripes are asked as well."""
    wanted = {}
    for prefix in ("", "null", "plain", "off", "striped", "apart", "even", "even:null", "even:plain", "even:off"):
        made = roles.like(prefix) if prefix else roles
        stripes = prefix in ("", "null", "striped")
        wanted |= {(a, b): stripes for i, a in enumerate(made.rl) for b in made.rl[i + 1 :]}
        wanted |= {(sft, run): False for sft in made.sft for run in made.rl}
    return {pair: stripes for pair, stripes in wanted.items() if pair[0] in moved and pair[1] in moved}


def _even(before: Tensor, after: Tensor, base: geometry.Base) -> dict[str, Any]:
    """Counts of the update mask, whole and in the two masks."""
    moved = bits.changed(before, after)
    inside = {"principal": plants.principal_mask(base), "low": plants.low_mask(base)}
    counted = {f"{name}_changed": int((moved & mask).sum()) for name, mask in inside.items()}
    return {"counted": moved.numel(), "changed": int(moved.sum()), "auc_small": small_first(before, moved), **counted}


def _inside(before: Tensor, after: Tensor, base: geometry.Base) -> dict[str, Any]:
    """Energy in both principal subspaces."""
    delta, rank = after.to(torch.float64) - before.to(torch.float64), base.levels.rank
    both = base.factors.left[:, :rank].T @ delta @ base.factors.right[:, :rank]
    return {"delta_sq": float(delta.square().sum()), "energy_both_sq": float(both.square().sum())}


def _spectrum(before: Tensor, after: Tensor, base: geometry.Base) -> dict[str, Any]:
    """How far the spectrum moved and the subspaces turned."""
    shape = (before.shape[0], before.shape[1])
    sizes, old = angles.grid(shape), base.factors
    new = spectrum.factorise(after, max(sizes, default=0))
    delta = after.to(torch.float64) - before.to(torch.float64)
    found: dict[str, Any] = {
        "counted": delta.numel(),
        "exact_zeros": int((delta == 0).sum()),
        "fine": True,
        "delta_sq": float(delta.square().sum()),
        "spectrum_base_sq": float(old.values.square().sum()),
        "spectrum_shift_sq": float((new.values - old.values).square().sum()),
        "sigma_relative_max": _relative(old.values, new.values),
    }
    for side in ("left", "right") if sizes else ():
        first, second = getattr(old, side)[:, : max(sizes)], getattr(new, side)
        for k, radians in angles.nested_angles(first, second, sizes).items():
            found[f"angle_{side}_deg_{k}"] = float(radians[-1].rad2deg())
            found[f"angle_meaningless_{k}"] = angles.gap_closed(old.values, new.values, k)
    return found


LEAN = {"even": _even, "matched": _even, "blank": _inside, "gauss": _spectrum}
"""What is measured of a simulated null: only what its claims ask."""


def columns(matrix: Matrix, base: geometry.Base, after: Tensor, run: str) -> dict[str, Any]:
    """The columns of ``tensors.parquet`` that claims read, for one run."""
    before, found = matrix.before, sweep(matrix.before, after)
    generator = numpy_generator(matrix.seed, matrix.name, run, "rounding")
    drawn = nulls.rounding_draws(found.code_total, found.changed, generator)
    shape, rank = (before.shape[0], before.shape[1]), base.levels.rank
    principal, low = plants.principal_mask(base), plants.low_mask(base)
    row = {name: value for name, value in vars(found).items() if isinstance(value, int | float)}
    row |= {"out_features": shape[0], "in_features": shape[1]}
    row |= {**_spectrum(before, after, base), **_inside(before, after, base), **_low(before, after, found, drawn)}
    row["energy_both_gauss_mean"] = energy.gauss(shape, rank).both[0]
    for name, mask in (("principal", principal), ("principal_high", principal & ~low)):
        row |= {f"{name}_{key}": value for key, value in _overlap(before, after, mask, found, drawn).items()}
    delta = (after.to(torch.float64) - before.to(torch.float64)).abs()
    row["principal_abs_sum"], row["principal_abs_matched"] = abs_on_mask(before, delta, principal)
    return row


def _overlap(
    before: Tensor, after: Tensor, mask: Tensor, found: Sweep, drawn: nulls.RoundingDraws
) -> dict[str, float]:
    """Counts of the update in a mask beside the magnitude and rounding nulls."""
    codes = bits.magnitude_code(before)[mask].to(torch.int64)
    ones = torch.bincount(codes, minlength=bits.MAGNITUDE_CODES)
    expected, variance = nulls.magnitude(found.code_total, found.code_changed).overlap(ones)
    share, _ = drawn.share(ones)
    moved = int((bits.changed(before, after) & mask).sum())
    return {"ones": int(mask.sum()), "changed": moved, "matched": expected, "matched_var": variance,
            "rounding": share * found.changed}  # fmt: skip


def _low(before: Tensor, after: Tensor, found: Sweep, drawn: nulls.RoundingDraws) -> dict[str, Any]:
    ones = masks.count(masks.ALPHA, found.counted)
    share, _ = drawn.share(nulls.low_magnitude(found.code_total, ones))
    return {
        "low_ones": ones,
        "low_changed": low_changed(before, after, found, [ones])[0],
        "low_rounding": share * found.changed,
        "rounding_scale": drawn.scale,
    }


def further(before: Tensor, after: Tensor, base: geometry.Base) -> dict[str, Any]:
    """What claims need beyond a comparison: exact zeros, the curve over magnitude, scaled steps, singular values."""
    old, new = before.to(torch.float64), after.to(torch.float64)
    delta, moved = new - old, bits.changed(before, after)
    return {
        "exact_zeros": int((delta == 0).sum()),
        "auc_small": small_first(before, moved),
        "scaled_changed": [int(bits.changed(before, bits.round_to_bf16(old + c * delta)).sum()) for c in SCALES],
        "sigma_relative_max": _relative(base.factors.values, spectrum.factorise(after, 0).values),
        "fine": after.dtype in (torch.float32, torch.float64),
    }


def small_first(before: Tensor, moved: Tensor) -> float | None:
    """AUC of ``-|W0|`` for the changed entries: P(a changed weight is smaller than an unchanged one), ties half.

    None where everything or nothing changed.

    >>> small_first(torch.tensor([[1.0, 2.0]]).bfloat16(), torch.tensor([[True, False]]))
    1.0
    """
    codes = bits.magnitude_code(before).flatten()
    total = torch.bincount(codes).double()
    yes = torch.bincount(codes[moved.flatten()], minlength=len(total)).double()
    no = total - yes
    pairs = float(yes.sum() * no.sum())
    larger = no.flip(0).cumsum(0).flip(0) - no
    return float((yes * (larger + no / 2)).sum()) / pairs if pairs else None


def _relative(before: Tensor, after: Tensor) -> float:
    """Largest relative change of the leading `TOP` singular values."""
    kept = before[:TOP]
    return float(((after[:TOP] - kept).abs() / kept.clamp(min=1e-300)).max())


def agreement(matrix: Matrix, moved: Mapping[str, Tensor], runs: tuple[str, str], stripes: bool) -> dict[str, Any]:
    """Jaccard of two update masks with its nulls; if asked also their stripes along both axes and over heads."""
    codes = bits.magnitude_code(matrix.before)
    if not stripes:
        return {"pair": jaccard(codes, *(moved[run] for run in runs)).row()}
    counted = Consensus(codes).update(moved[runs[0]]).update(moved[runs[1]])
    several = {"heads": matrix.heads, "head_axis": matrix.axis} if matrix.heads else {}
    found = counted.result(**several, seed=matrix.seed, name=matrix.name)
    return {**found.row(), "pair": found.pairs[0].row(), "axis": matrix.axis}
