"""D1 to D3, D5, D6: do subspaces turn, does the spectrum move, and is the update off-principal, beyond its norm?

What it is: logarithms of ratios, oriented so that positive is what the paper says. RL and SFT runs differ in norm; the
Gaussian null of each run has that run's norm, so that what exceeds it is not size. What it is not: the angles or
spectra (``measures``).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from offprincipal.lab.claims.matrix import Roles
from offprincipal.lab.claims.samples import REAL, Evidence, Row, Value, log_ratio, per_couple, per_run
from offprincipal.lab.claims.verdict import Measured
from offprincipal.lab.claims.weights import NOTHING, Weighed, planted
from offprincipal.measures.angles import GRID


def angle(row: Row) -> float | None:
    """Mean over sizes k with an open gap of ln(larger of the left and right angles, degrees)."""
    logs = []
    for k in GRID:
        left, right = (row.get(f"angle_{side}_deg_{k}") for side in ("left", "right"))
        if left is not None and right is not None and not row.get(f"angle_meaningless_{k}") and max(left, right) > 0:
            logs.append(math.log(max(left, right)))
    return sum(logs) / len(logs) if logs else None


def nss(row: Row) -> float | None:
    """Ln of ``||s(W) - s(W0)|| / ||s(W0)||``."""
    moved = log_ratio(row.get("spectrum_shift_sq"), row.get("spectrum_base_sq"))
    return None if moved is None else moved / 2


def curve(row: Row) -> float | None:
    """Ln of the largest relative change of the leading hundred singular values."""
    return log_ratio(row.get("sigma_relative_max"), 1.0)


def kappa(row: Row) -> float | None:
    """Ln of ``||s(W) - s(W0)||^2 / ||D||^2``; the factor max(out, in) of kappa_spec cancels in ratios."""
    return log_ratio(row.get("spectrum_shift_sq"), row.get("delta_sq"))


def _sft_over_rl(value: Callable[[Row], float | None]) -> tuple[Value, Value]:
    """The contrast SFT against RL, and the same after each run's own Gaussian null was taken off."""

    def raw(sft: Row, rl: Row, *_: Row) -> float | None:
        return _minus(value(sft), value(rl))

    def beyond(sft: Row, rl: Row, sft_null: Row, rl_null: Row) -> float | None:
        return _minus(_minus(value(sft), value(rl)), _minus(value(sft_null), value(rl_null)))

    return raw, beyond


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _contrast(
    evidence: Evidence, roles: Roles, value: Callable[[Row], float | None], words: str, factor: float
) -> tuple[Measured, ...]:
    raw, beyond = _sft_over_rl(value)
    over = {"Gaussian steps of equal norm": per_couple(evidence, roles, beyond, "gauss")}
    return (Measured(words, per_couple(evidence, roles, raw), over, tuple(over), math.log(factor)),)


def d1(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """RL turns the principal subspaces little, SFT much."""
    return _contrast(evidence, roles, angle, "ln(largest angle of SFT / of RL), mean over k", 1.5)


def d2(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """RL moves the spectrum far less than SFT."""
    return _contrast(evidence, roles, nss, "ln(NSS of SFT / of RL)", 3.0)


def d3(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """Singular value curves stay nearly identical under RL and visibly move under SFT."""
    return _contrast(evidence, roles, curve, "ln(largest relative change of s_k, k <= 100, SFT / RL)", 1.5)


def d5(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """More than small norm: RL moves the spectrum less than Gaussian steps of the same norm do."""
    sample = per_run(evidence, roles.rl, lambda row, null: _minus(kappa(null), kappa(row)), "gauss")
    return (Measured("ln(kappa_spec of Gaussian steps / of RL)", sample, least=math.log(1.25)),)


def _inside(row: Row) -> float | None:
    return log_ratio(row.get("energy_both_sq"), row.get("delta_sq"))


def d6(evidence: Evidence, roles: Roles) -> tuple[Measured, ...]:
    """Off-principal in subspace: less energy in both principal subspaces than isotropic noise, and than magnitude."""

    def below(row: Row) -> float | None:
        expected, found = row.get("energy_both_gauss_mean"), _inside(row)
        return None if not expected or found is None else math.log(expected) - found

    over = {"magnitude": per_run(evidence, roles.rl, lambda row, null: _minus(_inside(null), _inside(row)), "blank")}
    words = "ln(chance energy in both principal subspaces / energy of RL)"
    return (Measured(words, per_run(evidence, roles.rl, below), over, tuple(over), math.log(1.1)),)


def means(evidence: Evidence) -> Mapping[str, Any]:
    """The plain values per run, means over seeds and matrices: angle, NSS, curve, kappa_spec and lift."""
    measures: dict[str, Value] = {
        "angle_deg (geometric mean over k)": lambda row: _power(angle(row)),
        "nss": lambda row: _power(nss(row)),
        "sigma_relative_max": lambda row: row.get("sigma_relative_max"),
        "kappa_spec": lambda row: _times(_power(kappa(row)), max(row["out_features"], row["in_features"])),
        "energy_principal_lift": lambda row: _times(_power(_inside(row)), 1 / row["energy_both_gauss_mean"]),
    }
    return {
        run: {name: _mean(per_run(evidence, (run,), value)) for name, value in measures.items()}
        for run in (*REAL.rl, *REAL.sft)
    }


def _power(value: float | None) -> float | None:
    return None if value is None else math.exp(value)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _mean(sample: Any) -> float | None:
    values = [x for seed in sample for x in seed]
    return sum(values) / len(values) if values else None


TURNED = (
    Roles(REAL.like("null").rl, REAL.like("turned").sft),
    "an SFT update of equal norm that turns the leading subspace and stretches its singular values",
)
OFF = planted("off", "half of the update's part in the principal subspaces taken away")

CLAIMS = (
    Weighed("D1", d1, TURNED, NOTHING, means),
    Weighed("D2", d2, TURNED, NOTHING, means),
    Weighed("D3", d3, TURNED, NOTHING, means),
    Weighed("D5", d5, OFF, NOTHING, means),
    Weighed("D6", d6, OFF, NOTHING, means),
)
