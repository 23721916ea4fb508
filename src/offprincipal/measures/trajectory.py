"""How the update of one tensor grew over the checkpoints of one run.

What it is: `Trajectory` takes the checkpoints of one tensor in order, one at a time, and keeps what the last one is
needed for: one bit per weight and step, three float64 sums per weight, K vectors per step. `Path` is the frozen
result. What it is not: spectra and angles of each step, which `spectrum` and `angles` measure as for any pair.

Sources: never/cancelled/effective from Mukherjee et al. (arXiv 2505.11711, the PRIME timeline); linearity from
arXiv 2601.04537; Sim_K from arXiv 2606.07082; the energy weighting and the nulls are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from offprincipal.errors import InputError
from offprincipal.measures import bits, seeds
from offprincipal.measures._agreement import Agreement, RunPair
from offprincipal.measures._leading import Leading, leading
from offprincipal.measures.consensus import Consensus

K = 16
"""Dimension of the compared subspaces (arXiv 2606.07082)."""

STRAIGHT = 0.7
"""R2 above which a weight counts as straight (arXiv 2601.04537)."""


@dataclass(frozen=True)
class Step:
    """One checkpoint of the path, measured against the base and against the last checkpoint.

    Attributes:
        step: the number it was given.
        counted: entries of the tensor.
        changed: entries that differ from the base in bfloat16.
        changed_since_previous: entries that differ from the checkpoint before (from the base for the first).
        with_end: this mask against the last one, with its chance and matched nulls; None for the last itself.
        nonfinite: entries that are not finite in the base or here; they count as unmoved in what follows.
        delta_sq: squared Frobenius norm of D. The rest is None unless the tensor is a matrix with a factored D.
        rank1_sq: largest squared singular value of D; its share of `delta_sq` is the rank-1 part.
        rank1_gauss: that share for a large Gaussian matrix, ``(sqrt(out) + sqrt(in))^2 / (out in)``.
        kept: right singular vectors kept, K or the rank of D.
        gap_sq: gap of the squared singular values behind them.
        sim_end_sq: squared Frobenius norm of V(t)^T V(end).
        sim_end_k: its largest possible value; the ratio is Sim_K.
        sim_end_chance: expectation of that ratio for a random subspace.
    """

    step: float
    counted: int
    changed: int
    changed_since_previous: int
    with_end: RunPair | None
    nonfinite: int
    delta_sq: float
    rank1_sq: float | None = None
    rank1_gauss: float | None = None
    kept: int | None = None
    gap_sq: float | None = None
    sim_end_sq: float | None = None
    sim_end_k: int | None = None
    sim_end_chance: float | None = None

    def row(self) -> dict:
        """Flat record; the pair with the end as ``end_both``, ``end_either``, ``end_jaccard``, ..."""
        flat = {key: value for key, value in vars(self).items() if key != "with_end"}
        names = ("both", "either", "both_chance", "both_matched", "both_matched_var")
        names += ("jaccard", "jaccard_bernoulli", "jaccard_matched", "jaccard_matched_sd")
        pair = self.with_end.row() if self.with_end else {}
        return flat | {f"end_{name}": pair.get(name) for name in names}


@dataclass(frozen=True)
class Path:
    """The whole path of one tensor.

    Attributes:
        steps: one record per checkpoint.
        counted: entries; `never` + `cancelled` + `effective`.
        never: entries equal to the base at every checkpoint.
        cancelled: entries that moved and are back at the base at the end.
        effective: entries that differ from the base at the end.
        variation_sq: sum over weights of the variation of w(t) around its mean over the base and the checkpoints.
        linear_sq: the part of it that a straight line in the step explains; the ratio is the energy-weighted R2.
        linear_random_walk: that ratio in expectation for a path of independent increments, steps as given.
        moved: weights with any variation; `straight` those of them with an R2 above `STRAIGHT`.
        agreement: the masks of the checkpoints as a consensus: overlaps of all steps, stripes and their stability.
    """

    steps: tuple[Step, ...]
    counted: int
    never: int
    cancelled: int
    effective: int
    variation_sq: float | None
    linear_sq: float | None
    linear_random_walk: float | None
    moved: int | None
    straight: int | None
    agreement: Agreement

    def row(self) -> dict:
        """Flat record of the whole path; that of its steps is `rows`."""
        flat = {key: value for key, value in vars(self).items() if key not in ("steps", "agreement")}
        ratio = self.linear_sq / self.variation_sq if self.linear_sq is not None and self.variation_sq else None
        return {"checkpoints": len(self.steps)} | flat | {"linear_r2_energy": ratio}

    def rows(self) -> list[dict]:
        """One flat record per checkpoint."""
        return [step.row() for step in self.steps]


class Trajectory:
    """Takes the checkpoints of one tensor in order, one at a time.

    Args:
        base: the tensor before training, ``[out, in]`` or ``[n]``, any floating dtype.
        steps: when the checkpoints were taken: positive and rising, in any unit; the base is step 0.
        k: dimension of the compared subspaces, capped at half the short side.
        path: whether to keep the sums for linearity and to factor D; without, only masks are kept.
        seed: of the random starts and nulls, hashed with `name`.
        name: the tensor's name.

    Raises:
        InputError: no steps, or steps that do not rise from above zero.

    >>> walk = Trajectory(torch.zeros(4, 4), [1, 2])
    >>> for step in (1.0, 2.0):
    ...     _ = walk.update(torch.full((4, 4), step))
    >>> walk.result().row()["linear_r2_energy"]
    1.0
    """

    def __init__(
        self,
        base: Shaped[Tensor, "..."],
        steps: Sequence[float | int],
        *,
        k: int = K,
        path: bool = True,
        seed: int = 0,
        name: str = "",
    ):
        at = [0.0, *map(float, steps)]
        if len(at) < 2 or any(after <= before for before, after in pairwise(at)):
            found = f"the steps are {list(steps)}"
            raise InputError(
                f"follow {name!r} over a run", found, "give rising step numbers above 0, one per checkpoint"
            )
        self.base, self.previous, self.at = base, base, torch.tensor(at, dtype=torch.float64)
        self.k = min(k, min(base.shape) // 2) if base.ndim == 2 else 0
        self.path, self.seed, self.name = path, seed, name
        self.masks = Consensus(bits.magnitude_code(base))
        self.sums = torch.zeros(3, *base.shape, dtype=torch.float64, device=base.device) if path else None
        self.found: list[dict] = []
        self.factors: list[Leading | None] = []

    def update(self, tuned: Shaped[Tensor, "..."]) -> "Trajectory":
        """Add the next checkpoint.

        Raises:
            InputError: more checkpoints than steps, or another shape.
        """
        number = len(self.found) + 1
        if number >= len(self.at):
            found = f"only {len(self.at) - 1} steps were announced"
            raise InputError(f"add checkpoint {number} of {self.name!r}", found, "give one step per checkpoint")
        if tuned.shape != self.base.shape:
            found = f"its shape is {tuple(tuned.shape)} and the base's is {tuple(self.base.shape)}"
            raise InputError(f"add checkpoint {number} of {self.name!r}", found, "give checkpoints of one run")
        mask = bits.changed(self.base, tuned)
        self.masks.update(mask)
        delta = tuned.to(torch.float64) - self.base.to(torch.float64)
        nonfinite = int((~torch.isfinite(delta)).sum())
        if nonfinite:
            delta = torch.where(torch.isfinite(delta), delta, 0.0)
        self.found.append(
            {
                "step": float(self.at[number]),
                "counted": mask.numel(),
                "changed": int(mask.sum()),
                "changed_since_previous": int(bits.changed(self.previous, tuned).sum()),
                "nonfinite": nonfinite,
                "delta_sq": float(delta.square().sum()),
            }
        )
        if self.sums is not None:
            self.sums[0].add_(delta)
            self.sums[1].add_(delta, alpha=float(self.at[number] - self.at.mean()))
            self.sums[2].addcmul_(delta, delta)
        generator = seeds.torch_generator(self.seed, self.name, "trajectory", str(number), device=delta.device)
        self.factors.append(leading(delta, self.k, generator) if self.path and self.k else None)
        self.previous = tuned
        return self

    def result(self, *, heads: int | None = None, head_axis: int | None = None) -> Path:
        """The frozen result; `heads` as for `Consensus.result`.

        Raises:
            InputError: fewer checkpoints than steps.
        """
        if len(self.found) < len(self.at) - 1:
            found = f"{len(self.found)} of {len(self.at) - 1} checkpoints were added"
            raise InputError(f"summarise the path of {self.name!r}", found, "add every checkpoint, the last one too")
        agreement = self.masks.result(heads=heads, head_axis=head_axis, seed=self.seed, name=self.name)
        last, never = len(self.found) - 1, int(agreement.times[0])
        ends = {pair.left: pair for pair in agreement.pairs if pair.right == last}
        effective, counted = agreement.changed[-1], agreement.counted
        return Path(
            steps=tuple(
                Step(**found, with_end=ends.get(number), **self._geometry(factor))
                for number, (found, factor) in enumerate(zip(self.found, self.factors, strict=True))
            ),
            counted=counted,
            never=never,
            cancelled=counted - never - effective,
            effective=effective,
            **self._linearity(),
            agreement=agreement,
        )

    def _geometry(self, factor: Leading | None) -> dict:
        end = self.factors[-1]
        if factor is None or end is None:
            return {}
        out, into = self.base.shape
        kept, kept_end = factor.vectors.shape[1], end.vectors.shape[1]
        if not kept:
            return {"rank1_sq": 0.0, "kept": 0, "gap_sq": 0.0}
        most = min(kept, kept_end)
        shared = float((factor.vectors.T @ end.vectors).square().sum()) if most else None
        return {
            "rank1_sq": float(factor.squares[0]),
            "rank1_gauss": (out**0.5 + into**0.5) ** 2 / (out * into),
            "kept": kept,
            "gap_sq": factor.gap_sq,
            "sim_end_sq": shared,
            "sim_end_k": most,
            "sim_end_chance": max(kept, kept_end) / into if most else None,
        }

    def _linearity(self) -> dict:
        """R2 of a straight line with intercept through the base and the checkpoints, from three sums per weight.

        The residual needs no second pass: with steps centred, variation = sum D^2 - (sum D)^2 / N and the explained
        part is (sum c D)^2 / sum c^2. Two points always lie on a line, so one checkpoint gives None.
        """
        names = ("variation_sq", "linear_sq", "linear_random_walk", "moved", "straight")
        if self.sums is None or len(self.at) < 3:
            return dict.fromkeys(names)
        centred = self.at - self.at.mean()
        total, trend, square = self.sums
        variation = (square - total.square() / len(self.at)).clamp(min=0)
        linear = trend.square() / float(centred.square().sum())
        moved = square > 0
        straight = moved & (linear > STRAIGHT * variation)
        found = (float(variation.sum()), float(linear.sum()), random_walk_linearity(self.at))
        return dict(zip(names, (*found, int(moved.sum()), int(straight.sum())), strict=True))


def random_walk_linearity(at: Float[Tensor, " points"]) -> float:
    """Energy-weighted R2 of a straight line, in expectation, for independent increments of variance per unit step.

    ``E[explained] / E[variation]`` from the covariance ``min(s, t)`` of a random walk; 0.6 for many equal steps. So an
    R2 of 0.7 is far less than it sounds. Ours.

    >>> round(random_walk_linearity(torch.arange(1001, dtype=torch.float64)), 3)
    0.6
    """
    covariance = torch.minimum(at[:, None], at[None, :])
    centred = at - at.mean()
    variation = covariance.diagonal().sum() - covariance.sum() / len(at)
    return float(centred @ covariance @ centred / centred.square().sum() / variation)
