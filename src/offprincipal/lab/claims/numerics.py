"""P1 to P5, P10: statements about bfloat16, tried on every value there is.

What it is: checks over the whole finite domain (32,639 adjacent pairs of magnitudes), or over seeded draws where the
domain is not finite; no checkpoint is read. What it is not: the measures (``measures.bits``), which are tried here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from offprincipal.lab.claims.record import Control, Record
from offprincipal.lab.claims.samples import Evidence
from offprincipal.lab.claims.verdict import NOT_SUPPORTED, SUPPORTED
from offprincipal.measures import bits
from offprincipal.measures.seeds import torch_generator

FIRST_NORMAL = 0x0080
"""Magnitude code of the smallest normal bfloat16."""

PAIRS = 1 << 20
"""Random pairs of values."""


def record(id_: str, holds: bool, why: str, control: Control, evidence: Evidence, **numbers: Any) -> Record:
    """A numeric claim: supported when it holds throughout. Its negative control is a statement that must fail."""
    return Record(
        id_,
        SUPPORTED if holds else NOT_SUPPORTED,
        why,
        negative=control,
        numbers=numbers,
        settings={"domain": "every finite bfloat16 magnitude, or seeded draws"},
        command=f"offprincipal lab claims {evidence.asked}",
    )


def failing(what: str, failures: int) -> Control:
    """A false statement beside the claim: the check works when it finds failures there."""
    return Control(what, bool(failures > 0), f"{failures} counterexamples")


def _magnitudes(first: int = 0) -> Tensor:
    """Every finite magnitude from this code on, rising (float64)."""
    return bits.value(torch.arange(first, bits.FIRST_NONFINITE_CODE))


def eta_changed(left: Tensor, right: Tensor, eta: float) -> Tensor:
    """PNT Definition 2.1 as it is written: ``|w' - w| > eta max(|w|, |w'|)``, in float64."""
    return (right - left).abs() > eta * torch.maximum(left.abs(), right.abs())


def p1(evidence: Evidence) -> Record:
    """All adjacent pairs of either sign, the zeros, and random pairs of any values."""
    values = _magnitudes()
    codes = torch.randint(0, bits.FIRST_NONFINITE_CODE, (2, PAIRS), generator=torch_generator(0, "claims", "P1"))
    signs = torch.randint(0, 2, (2, PAIRS), generator=torch_generator(0, "claims", "P1", "signs")) * 2.0 - 1
    drawn = bits.value(codes) * signs
    zeros = torch.tensor([0.0, -0.0, 0.0, -0.0], dtype=torch.float64)
    left = torch.cat([values[:-1], -values[:-1], values, drawn[0], zeros[:2]])
    right = torch.cat([values[1:], -values[1:], -values, drawn[1], zeros[2:]])
    stored = bits.changed(left, right)
    mismatches = int((stored != eta_changed(left, right, bits.ETA)).sum())
    loose = int((stored != eta_changed(left, right, 2.0**-7)).sum())
    why = f"{mismatches} mismatches in {len(left):,} pairs; +0 and -0 count as equal under both rules"
    control = failing("the same with a tolerance of 2^-7", loose)
    return record("P1", mismatches == 0, why, control, evidence, pairs=len(left), mismatches=mismatches)


def p2(evidence: Evidence) -> Record:
    """Relative gaps of all adjacent normal values: the least is exactly 2^-8, at binade boundaries."""
    values = _magnitudes(FIRST_NORMAL)
    gaps = (values[1:] - values[:-1]) / values[1:]
    equal, below = int((gaps == 2.0**-8).sum()), int((gaps < 2.0**-8).sum())
    why = (
        f"as stated (>) it fails: the gap is exactly 2^-8 at {equal} of {len(gaps):,} adjacent pairs, at powers of "
        f"two, and below it at {below}; with >= it holds. Harmless for the tolerance of 1e-3"
    )
    numbers = {"pairs": len(gaps), "equal": equal, "below": below, "least": float(gaps.min())}
    control = failing("a gap of at least 2^-7.9", int((gaps < 2.0**-7.9).sum()))
    return record("P2", equal == 0 and below == 0, why, control, evidence, **numbers)


def p3(evidence: Evidence) -> Record:
    """ULP over magnitude at every normal value below the largest."""
    values = _magnitudes(FIRST_NORMAL)
    relative = (values[1:] - values[:-1]) / values[:-1]
    outside = int(((relative <= 2.0**-8) | (relative > 2.0**-7)).sum())
    why = f"{outside} of {len(relative):,} normal values outside; from {relative.min():.6g} to {relative.max():.6g}"
    control = failing("the interval (2^-8, 2^-7) without its end", int((relative >= 2.0**-7).sum()))
    return record("P3", outside == 0, why, control, evidence, values=len(relative), outside=outside)


def p4(evidence: Evidence) -> Record:
    """The two examples of the paper, by both rules."""
    large = torch.tensor([1024.001]), torch.tensor([1024.002])
    small = torch.tensor([1e-6]), torch.tensor([2e-6])
    found = {
        name: {"bfloat16": bool(bits.changed(*pair)), "atol 1e-5": bool(bits.changed_atol(*pair))}
        for name, pair in (("1024.001, 1024.002", large), ("1e-6, 2e-6", small))
    }
    expected = [{"bfloat16": False, "atol 1e-5": True}, {"bfloat16": True, "atol 1e-5": False}]
    why = "1024.001 and 1024.002 store alike and count as changed; 1e-6 and 2e-6 differ and count as equal"
    same = (torch.tensor([1.0]), torch.tensor([1.5]))
    agree = Control(
        "1 and 1.5, where both rules must agree", bool(bits.changed(*same)) and bool(bits.changed_atol(*same))
    )
    return record("P4", list(found.values()) == expected, why, agree, evidence, **found)


def p5(evidence: Evidence) -> Record:
    """Steps just below, at and just above half an ULP, outward and inward, at every normal value."""
    values = _magnitudes(FIRST_NORMAL)[1:-1]
    codes = torch.arange(FIRST_NORMAL + 1, bits.FIRST_NONFINITE_CODE - 1)
    half = bits.ulp(values).to(torch.float64) / 2
    power, odd = (codes & 0x7F) == 0, (codes & 1) == 1
    inward = torch.where(power, half / 2, half)
    shy, over = 1 - 2.0**-20, 1 + 2.0**-20
    wrong = {
        "outward, below half": _flips(values, half * shy),
        "outward, above half": ~_flips(values, half * over),
        "outward, at half: ties go to even": _flips(values, half) != odd,
        "inward, below the threshold": _flips(values, -inward * shy),
        "inward, above the threshold": ~_flips(values, -inward * over),
    }
    counted = {name: int(found.sum()) for name, found in wrong.items()}
    quarter = int(power.sum())
    why = (
        f"{sum(counted.values())} exceptions at {len(values):,} values to: half an ULP, ties to even, and a quarter "
        f"downward at the {quarter} powers of two"
    )
    control = failing("half an ULP downward at powers of two as well", int(_flips(values, -half * shy).sum()))
    return record("P5", not any(counted.values()), why, control, evidence, **counted)


def _flips(values: Tensor, steps: Tensor) -> Tensor:
    return bits.visible(values, steps)


def p10(evidence: Evidence) -> Record:
    """Both rules on the same pairs: bfloat16 weights of several scales and their float32 tunes."""
    found = {f"weights of sd {scale:g}": _bias(scale, 2.0**-9) for scale in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)}
    still = max(abs(_bias(scale, 0.0)) for scale in (1e-4, 1.0))
    why = "changed by atol minus changed in bfloat16: " + ", ".join(f"{k} {v:+.3f}" for k, v in found.items())
    control = Control("identical pairs, where both rules must agree", still == 0, f"largest difference {still:g}")
    biased = min(found.values()) < -0.01 and max(found.values()) > 0.01
    return record("P10", biased, why, control, evidence, **found)


def _bias(scale: float, relative: float) -> float:
    """Share of 100,000 Gaussian pairs that changed by the absolute tolerance, minus by bfloat16."""
    generator = torch_generator(0, "claims", "P10", str(scale))
    weights = (torch.randn(100_000, generator=generator) * scale).bfloat16()
    tuned = weights.float() + torch.randn(100_000, generator=generator) * scale * relative
    return float(bits.changed_atol(weights, tuned).double().mean() - bits.changed(weights, tuned).double().mean())


CLAIMS: tuple[tuple[str, Callable[[Evidence], Record]], ...] = (
    ("P1", p1), ("P2", p2), ("P3", p3), ("P4", p4), ("P5", p5), ("P10", p10),
)  # fmt: skip
