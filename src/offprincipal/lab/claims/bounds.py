"""T1 to T4: the perturbation bounds, tried on seeded random matrices and on a small family that breaks the first.

What it is: property checks in float64 by a full SVD; on real pairs the share of ranks at which T1's bound says
nothing. What it is not: `measures.spectrum`, which checks its own numbers by T2 and T3 on every pair.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprincipal.lab.claims.numerics import failing, record
from offprincipal.lab.claims.record import Record
from offprincipal.lab.claims.samples import REAL, Evidence, per_run
from offprincipal.measures.seeds import numpy_generator

INSTANCES = 400
SLACK = 1e-9
"""Rounding of float64 SVDs, relative to the norms."""


@cache
def _instances() -> tuple[tuple[Tensor, Tensor], ...]:
    """Base and update: random shapes, falling spectra, norms from 1e-4 to 1 of the base; and 2 x 2 turns."""
    found = []
    for i in range(INSTANCES):
        generator = numpy_generator(0, "claims", "bounds", str(i))
        rows, columns = generator.integers(2, 13, size=2)
        base = generator.standard_normal((rows, columns)) * (1.0 + np.arange(columns)) ** -generator.uniform(0, 2)
        delta = generator.standard_normal((rows, columns))
        delta *= 10 ** generator.uniform(-4, 0) * np.linalg.norm(base) / np.linalg.norm(delta)
        found.append((torch.from_numpy(base), torch.from_numpy(delta)))
    found += [_turn(size) for size in np.linspace(0.02, 0.49, 48)]
    return tuple(found)


def _turn(size: float) -> tuple[Tensor, Tensor]:
    """diag(1, 0) and the update of spectral norm `size` that turns it as far as that can: ``sin(2t) = 2 size``."""
    angle = math.asin(2 * size) / 2
    # rotating toward the second axis and shrinking at once keeps ||D|| at `size` while the sine exceeds it
    found = torch.tensor([[-size * math.sin(2 * angle), size * math.cos(2 * angle)],
                          [size * math.cos(2 * angle), size * math.sin(2 * angle)]], dtype=torch.float64)  # fmt: skip
    return torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)), found


def _sines() -> Iterator[tuple[float, float, float]]:
    """Per instance and k: the largest sine of either side, ||D||_2 and the gap, where it is open."""
    for base, delta in _instances():
        (u0, s0, v0), (u1, _, v1) = (torch.linalg.svd(m) for m in (base, base + delta))
        size = float(torch.linalg.matrix_norm(delta, 2))
        for k in range(1, len(s0)):
            gap = float(s0[k - 1] - s0[k])
            if gap > 1e-6 * float(s0[0]):
                sines = [_sine(a[:, :k], b[:, :k]) for a, b in ((u0, u1), (v0.T, v1.T))]
                yield max(sines), size, gap


def _sine(before: Tensor, after: Tensor) -> float:
    return float(torch.linalg.matrix_norm(after - before @ (before.T @ after), 2))


def t1(evidence: Evidence) -> Record:
    """Constant 1 with the unperturbed gap, and the two bounds that hold."""
    rows = list(_sines())
    broken = sum(sine > size / gap + SLACK for sine, size, gap in rows)
    mended = sum(sine > size / (gap - size) + SLACK for sine, size, gap in rows if size < gap * (1 - SLACK))
    twice = sum(sine > min(1.0, 2 * size / gap) + SLACK for sine, size, gap in rows)
    worst = max(sine * gap / size for sine, size, gap in rows if size < gap)
    vacuous = _vacuous(evidence)
    real = "" if vacuous is None else f"; on the real pairs it says nothing at {100 * vacuous:.0f} % of ranks"
    why = (
        f"with constant 1 it fails in {broken} of {len(rows):,} cases (the sine reaches {worst:.3g} times the bound); "
        f"||D|| / (gap - ||D||) fails in {mended}, min(1, 2 ||D|| / gap) in {twice}{real}"
    )
    numbers = {"cases": len(rows), "broken": broken, "broken with gap - ||D||": mended, "broken with 2": twice,
               "vacuous share on real pairs": vacuous}  # fmt: skip
    control = failing("half the bound", sum(sine > size / gap / 2 + SLACK for sine, size, gap in rows))
    return record("T1", broken == 0, why, control, evidence, **numbers)


def _vacuous(evidence: Evidence) -> float | None:
    sample = per_run(
        evidence,
        (*REAL.rl, *REAL.sft),
        lambda row: row["bound_vacuous"] / row["bound_sizes"] if row.get("bound_sizes") else None,
    )
    values = [x for seed in sample for x in seed]
    return sum(values) / len(values) if values else None


def _spectra() -> Iterator[tuple[Tensor, float, float]]:
    """Per instance: differences of the singular values, ||D||_2 and ||D||_F."""
    for base, delta in _instances():
        before, after = torch.linalg.svdvals(base), torch.linalg.svdvals(base + delta)
        yield after - before, float(torch.linalg.matrix_norm(delta, 2)), float(delta.norm())


def t2(evidence: Evidence) -> Record:
    """Weyl for each value and Mirsky for all together."""
    rows = list(_spectra())
    weyl = sum(float(shift.abs().max()) > size + SLACK for shift, size, _ in rows)
    mirsky = sum(float(shift.norm()) > norm + SLACK for shift, _, norm in rows)
    half = sum(float(shift.abs().max()) > size / 2 + SLACK for shift, size, _ in rows)
    why = f"broken in {weyl} (Weyl) and {mirsky} (Mirsky) of {len(rows)} cases"
    return record("T2", weyl + mirsky == 0, why, failing("half the bound", half), evidence, cases=len(rows))


def t3(evidence: Evidence) -> Record:
    """Every k at once."""
    broken = quarter = 0
    for shift, size, _ in _spectra():
        moved = shift.cumsum(0).abs() / torch.arange(1, len(shift) + 1, dtype=torch.float64)
        broken += int((moved > size + SLACK).any())
        quarter += int((moved > size / 4 + SLACK).any())
    cases = len(_instances())
    why = f"broken in {broken} of {cases} cases"
    return record("T3", broken == 0, why, failing("a quarter of the bound", quarter), evidence, cases=cases)


def t4(evidence: Evidence) -> Record:
    """Projectors of equal rank: their distance is the largest sine."""
    wrong, rows, worst = 0, 0, 0.0
    for base, delta in _instances():
        u0, s0, _ = torch.linalg.svd(base)
        u1 = torch.linalg.svd(base + delta)[0]
        for k in range(1, len(s0)):
            first, second = u0[:, :k], u1[:, :k]
            distance = float(torch.linalg.matrix_norm(first @ first.T - second @ second.T, 2))
            gap = abs(distance - _sine(first, second))
            wrong, rows, worst = wrong + (gap > SLACK), rows + 1, max(worst, gap)
    why = f"largest difference {worst:.1e} in {rows:,} cases"
    unequal = torch.eye(3, dtype=torch.float64)
    other = float(torch.linalg.matrix_norm(unequal[:, :1] @ unequal[:, :1].T - unequal[:, :2] @ unequal[:, :2].T, 2))
    control = failing("ranks that differ", int(abs(other - _sine(unequal[:, :2], unequal[:, :1])) > SLACK))
    return record("T4", wrong == 0, why, control, evidence, cases=rows, largest_difference=worst)


CLAIMS: tuple[tuple[str, Callable[[Evidence], Any]], ...] = (("T1", t1), ("T2", t2), ("T3", t3), ("T4", t4))
