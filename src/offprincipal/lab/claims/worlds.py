"""Planted worlds: synthetic laboratories whose truth is known, to try the judge itself.

What it is: small base matrices with falling spectra and updates in which one thing was planted, or nothing, measured
by the same code as a real laboratory (``matrix.measure``). What it is not: trained. All constants are *ours*.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from offprincipal.geometry import Base
from offprincipal.lab.claims.matrix import Matrix, factors_of, measure
from offprincipal.lab.claims.plants import SEEN, apart, outside, principal_mask, seen, turned
from offprincipal.lab.claims.samples import REAL, Evidence, Seed
from offprincipal.measures import bits
from offprincipal.measures.seeds import numpy_generator

SHAPES = (("q", (64, 48), 0), ("o", (48, 64), 1))
"""Kind, shape and head axis of the matrices of a world."""

HEADS = 8


@dataclass(frozen=True)
class World:
    """What is planted: the size of the steps as a product of factors, all 1 by default, so that nothing is.

    Attributes:
        weights: factor on the steps at principal weights; below 1 avoids them, above 1 aims at them.
        subspace: share of the part in both principal subspaces that is taken away; negative adds to it.
        magnitude: the steps grow like ``|w|`` to this power.
        shared: sd of a log-normal factor per weight that both RLVR runs have in common.
        lines: sd of a log-normal factor per line of the head axis, common to both RLVR runs.
        sft: as `weights`, for the SFT run.
        sft_growth: the SFT run's norm over the RLVR runs'.
        sft_turns: the SFT run turns subspaces and moves the spectrum instead.
        sparse: the RLVR runs' norm lies in a tenth of the entries, chosen at random.
        apart: SFT moves one random half of each matrix, RLVR the other.
        rounding: Gaussian steps of about half an ulp; else a tenth of the weights move by more than any ulp, and the
            factors act on the chance to be among them, so that rounding hides nothing.
    """

    weights: float = 1.0
    subspace: float = 0.0
    magnitude: float = 0.0
    shared: float = 0.0
    lines: float = 0.0
    sft: float = 1.0
    sft_growth: float = 2.0
    sft_turns: bool = False
    sparse: bool = False
    apart: bool = False
    rounding: bool = True


def weights_with_spectrum(shape: tuple[int, int], generator: np.random.Generator) -> Tensor:
    """A base matrix, bfloat16, rms .02: random singular vectors, singular values like ``(1 + i) ** -0.5``."""
    short = min(shape)
    left, right = (np.linalg.qr(generator.standard_normal((side, short)))[0] for side in shape)
    found = (left * (1.0 + np.arange(short)) ** -0.5) @ right.T
    return torch.from_numpy(found * (0.02 / np.sqrt(np.mean(found**2)))).bfloat16()


def world_updates(world: World, before: Tensor, base: Base, axis: int, seed: int, name: str) -> Mapping[str, Tensor]:
    """D of the runs ``rlvr-1``, ``rlvr-2`` and ``sft`` in a planted world, float64; a function of seed and name."""
    magnitude = before.to(torch.float64).abs()
    common = (magnitude / magnitude.mean()).clamp(min=1e-3) ** world.magnitude
    principal = principal_mask(base)
    field = numpy_generator(seed, name, "field")
    scale = common * torch.where(principal, world.weights, 1.0)
    scale = scale * torch.from_numpy(np.exp(world.shared * field.standard_normal(tuple(before.shape))))
    lines = torch.from_numpy(np.exp(world.lines * field.standard_normal(before.shape[axis])))
    scale = scale * (lines[:, None] if axis == 0 else lines[None, :])
    found = {}
    for run in ("rlvr-1", "rlvr-2"):
        found[run] = outside(_steps(scale, before, world, numpy_generator(seed, name, run)), base, world.subspace)
    steps = common * torch.where(principal, world.sft, 1.0)
    generator = numpy_generator(seed, name, "sft")
    found["sft"] = _steps(steps, before, world, generator) * world.sft_growth
    if world.sft_turns:
        found["sft"] = turned(found["sft"], base, (16,))
    if world.sparse:
        found |= {run: seen(found[run], numpy_generator(seed, name, run, "sparse")) for run in REAL.rl}
    if world.apart:
        found = {run: apart(d, run in REAL.rl, numpy_generator(seed, name, "halves")) for run, d in found.items()}
    return found


def _steps(scale: Tensor, before: Tensor, world: World, generator: np.random.Generator) -> Tensor:
    """Steps of random sign: Gaussian of this scale, or one visible size with a chance of this scale."""
    drawn = torch.from_numpy(generator.standard_normal(tuple(scale.shape)))
    scale = scale / scale.square().mean().sqrt()
    if world.rounding:
        return drawn * scale * (0.5 * float(bits.ulp(before.abs().mean())))
    chosen = torch.from_numpy(generator.random(tuple(scale.shape))) < (SEEN * scale).clamp(max=1)
    largest = 2.0 ** math.ceil(math.log2(float(before.abs().max())))
    return torch.where(chosen, drawn.sign() * largest * 2.0**-7, 0.0)


def planted_evidence(world: World, number: int, *, seeds: int = 4, controls: bool = False) -> Evidence:
    """A laboratory of so many seeds in which `world` is planted; a function of the world's number."""
    found = []
    for seed in range(seeds):
        stream = 1_000_003 * number + seed
        parts = []
        for kind, shape, axis in SHAPES:
            name = f"model.layers.0.self_attn.{kind}_proj.weight"
            before = weights_with_spectrum(shape, numpy_generator(stream, name, "base"))
            updates = world_updates(world, before, factors_of(before), axis, stream, name)
            after = {run: (before.to(torch.float64) + delta).float() for run, delta in updates.items()}
            matrix = Matrix(name, kind, before, after, REAL, axis, HEADS, stream)
            parts.append(measure(matrix, controls=controls))
        found.append(Seed(f"world-{number}-{seed}", tuple(parts)))
    return Evidence(tuple(found))


@dataclass(frozen=True)
class Truth:
    """A world, the claims that are planted in it, and those that it touches on the way, so that either may be said."""

    world: World
    planted: frozenset[str] = frozenset()
    touched: frozenset[str] = frozenset()


def _truth(world: World, planted: str = "", touched: str = "") -> Truth:
    return Truth(world, frozenset(planted.split()), frozenset(touched.split()))


ALSO = "A2 A6 S1 P9 L1 L2 L3 L5 D5 D6"
"""What steps that avoid the principal weights touch: places that runs share, and the principal subspaces."""

TRUTHS = {
    "nothing": _truth(World(), "P6 P7 P8"),
    "steps grow with |w|": _truth(World(magnitude=0.5), "P6 P7 P8"),
    "steps shrink with |w|": _truth(World(magnitude=-0.5), "P6 P7 P8 P9 A2"),
    "nothing, no rounding": _truth(World(rounding=False)),
    "off the principal weights": _truth(World(weights=0.6), "P6 P7 P8 A1 A3 A5", "A2 A6 S1 P9 L1 L2 L3 L5 D5 D6"),
    "the same, no rounding": _truth(
        World(weights=0.4, rounding=False), "A1 A3 A5", "A2 A6 S1 P6 P9 L1 L2 L3 L5 D5 D6"
    ),
    "on the principal weights": _truth(World(weights=1.5, sft=1.5), "P6 P7 P8 A4", "A6 P9 L1 L2 L3 L5 S1"),
    "off the principal subspaces": _truth(World(subspace=0.9), "P6 P7 P8 D5 D6", "D1 D2 D3 A1 A2 A3 A5"),
    "on the principal subspaces": _truth(World(subspace=-1.0), "P6 P7 P8", "D1 D2 D3 L1 L2 P9 S1"),
    "two runs share places": _truth(World(shared=0.6), "P6 P7 P8 P9 L1 L2", "S1"),
    "two runs share lines": _truth(World(lines=0.5), "P6 P7 P8 P9 L1 L2 L3 L5", "S1 D1 D2 D3 D5 D6"),
    "RL is sparse": _truth(World(sparse=True), "S1", "A6 P9"),
    "RL and SFT apart": _truth(World(apart=True), "P6 A6", "P7 P8 P9 L1 L2 S1"),
    "SFT turns subspaces": _truth(World(sft_turns=True), "P6 P7 P8 D1 D2 D3", "A4 A6 S1"),
}
"""Worlds by name: what a right judge says. RLVR and SFT differ in norm in all of them, which must not count."""
