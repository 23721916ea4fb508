"""G1 to G5: is there a leash? Statements about KL, Fisher and clipping on models small enough to be exact.

What it is: a softmax policy with two layers, log-linear families and tables, everything in float64. What it is not:
the KL of trained arms (``drift``), or the gates of a real model (``offprincipal probe``).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from offprincipal.lab.claims.numerics import failing, record
from offprincipal.lab.claims.record import Control, Record
from offprincipal.lab.claims.samples import REAL, Evidence
from offprincipal.measures.seeds import torch_generator

INSTANCES = 16
WORDS, HIDDEN, INPUTS = 5, 3, 3
STEPS = tuple(0.2 * 2.0**-i for i in range(6))
"""Lengths of the step along one direction; below them cancellation in float64 takes over."""


class Policy:
    """A softmax over a few words behind one tanh layer: small enough that KL, Fisher and Hessians are exact."""

    def __init__(self, number: int):
        self.generator = torch_generator(0, "claims", "policy", str(number))
        self.inputs = self.draw(INPUTS)
        self.theta = self.draw(HIDDEN * INPUTS + WORDS * HIDDEN)
        self.direction = torch.nn.functional.normalize(self.draw(len(self.theta)), dim=0)

    def draw(self, *shape: int) -> Tensor:
        """Gaussian numbers of this policy's own stream, float64."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def log_probabilities(self, theta: Tensor) -> Tensor:
        """Log pi(word), [WORDS]."""
        first = theta[: HIDDEN * INPUTS].view(HIDDEN, INPUTS)
        second = theta[HIDDEN * INPUTS :].view(WORDS, HIDDEN)
        return (second @ torch.tanh(first @ self.inputs)).log_softmax(0)

    def kl(self, theta: Tensor) -> float:
        """KL(pi_theta || pi)."""
        log_p, log_q = self.log_probabilities(theta), self.log_probabilities(self.theta)
        return float((log_p.exp() * (log_p - log_q)).sum())

    def hessians(self) -> Tensor:
        """Second derivatives of log pi(word) at theta, [WORDS, p, p]."""
        each = [lambda theta, word=word: self.log_probabilities(theta)[word] for word in range(WORDS)]
        return torch.stack([hessian(function, self.theta) for function in each])  # pyright: ignore

    def fisher(self) -> Tensor:
        """``E grad log pi grad log pi^T`` at theta, [p, p]."""
        slopes: Any = jacobian(self.log_probabilities, self.theta)
        return slopes.T @ (self.log_probabilities(self.theta).exp()[:, None] * slopes)


@cache
def _policies() -> tuple[Policy, ...]:
    return tuple(Policy(i) for i in range(INSTANCES))


def _slope(steps: Sequence[float], values: Sequence[float]) -> float:
    """Slope of ln|value| over ln(step), least squares."""
    return float(np.polyfit(np.log(steps), np.log(np.abs(values)), 1)[0])


def g1(evidence: Evidence) -> Record:
    """KL(theta + t d) against t^2 d^T F d / 2: the ratio at the smallest step, and the order of what is left."""
    ratios, odd, even = [], [], []
    for policy in _policies():
        form = float(policy.direction @ policy.fisher() @ policy.direction) / 2
        ahead = [policy.kl(policy.theta + t * policy.direction) for t in STEPS]
        behind = [policy.kl(policy.theta - t * policy.direction) for t in STEPS]
        square = [t * t * form for t in STEPS]
        ratios.append(ahead[-1] / square[-1])
        odd.append(_slope(STEPS, [a - s for a, s in zip(ahead, square, strict=True)]))
        even.append(_slope(STEPS, [(a + b) / 2 - s for a, b, s in zip(ahead, behind, square, strict=True)]))
    orders = float(np.median(odd)), float(np.median(even))
    furthest = max(abs(ratio - 1) for ratio in ratios)
    holds = furthest < 0.02 and abs(orders[0] - 3) < 0.1 and abs(orders[1] - 4) < 0.1
    why = (
        f"ratio within {furthest:.1e} of 1 at t = {STEPS[-1]:g}; what is left falls like t^{orders[0]:.2f}, "
        f"its even part like t^{orders[1]:.2f} (medians of {INSTANCES})"
    )
    wrong = sum(abs(ratio / 2 - 1) > 0.02 for ratio in ratios)
    return record(
        "G1", holds, why, failing("the form without its half", wrong), evidence, order=orders[0], even=orders[1]
    )


def _projected(number: int, temperature: float, features: int) -> tuple[float, float]:
    """D(pi+ || pi) and D(q~ || pi) for a log-linear family: q~ tilts pi by exp(R / beta), pi+ is its M-projection."""
    generator = torch_generator(0, "claims", "projection", str(number))
    phi = torch.randn(8, 8, generator=generator, dtype=torch.float64)[:, :features]
    log_pi = torch.randn(8, generator=generator, dtype=torch.float64).log_softmax(0)
    reward = torch.randn(8, generator=generator, dtype=torch.float64)
    log_tilted = (log_pi + reward / temperature).log_softmax(0)
    tilted, theta = log_tilted.exp(), torch.zeros(features, dtype=torch.float64)
    for _ in range(20):  # Newton: quadratic from near the start
        now = (log_pi + phi @ theta).softmax(0)
        gradient = phi.T @ (now - tilted)
        centred = phi - now @ phi
        theta = theta - torch.linalg.lstsq(centred.T @ (now[:, None] * centred), gradient[:, None]).solution[:, 0]
    log_new = (log_pi + phi @ theta).log_softmax(0)
    return float((log_new.exp() * (log_new - log_pi)).sum()), float((tilted * (log_tilted - log_pi)).sum())


def g2(evidence: Evidence) -> Record:
    """The ratio D(pi+ || pi) / D(q~ || pi) as the tilt weakens: at most 1 in the limit; 1 for a full table."""
    ratios = {
        temperature: [np.divide(*_projected(i, temperature, 3)) for i in range(INSTANCES)]
        for temperature in (10.0, 100.0, 1000.0)
    }
    table = [float(np.divide(*_projected(i, 100.0, 8))) for i in range(INSTANCES)]
    largest = {f"beta {t:g}": float(max(found)) for t, found in ratios.items()}
    off = max(abs(each - 1) for each in table)
    holds = largest["beta 1000"] <= 1 + 1e-3 and off < 1e-6
    told = ", ".join(f"{name}: {value:.4f}" for name, value in largest.items())
    why = f"largest ratio over {INSTANCES} families: {told}; full tables differ from 1 by {off:.1e}"
    loose = sum(each > 0.5 for each in ratios[1000.0])
    return record("G2", holds, why, failing("at most one half", loose), evidence, **largest)


def g3(evidence: Evidence) -> Record:
    """On a plane of directions with Fisher at least mu: both bounds, as the step shrinks."""
    ratios, broken, half = [], 0, 0
    for policy in _policies():
        plane = torch.linalg.qr(policy.draw(len(policy.theta), 2))[0]
        fisher = plane.T @ policy.fisher() @ plane
        step = torch.nn.functional.normalize(policy.draw(2), dim=0) * STEPS[-1]
        leash = policy.kl(policy.theta + plane @ step)
        bound = math.sqrt(2 * leash / float(torch.linalg.eigvalsh(fisher)[0]))
        ratios.append(math.sqrt(float(step @ fisher @ step) / (2 * leash)))
        broken += float(step.norm()) > bound * 1.02
        half += float(step.norm()) > bound / 2
    furthest = max(abs(ratio - 1) for ratio in ratios)
    why = f"sqrt(D^T F D / 2K) within {furthest:.1e} of 1; ||D|| <= sqrt(2K / mu) broken in {broken} of {INSTANCES}"
    holds = furthest < 0.02 and broken == 0
    return record("G3", holds, why, failing("half the bound", half), evidence, broken=broken, cases=INSTANCES)


def g4(evidence: Evidence) -> Record:
    """H under the tilted policy against F, with L the largest norm of a word's second derivatives at theta."""
    broken = tight = 0
    for policy in _policies():
        second, log_pi = policy.hessians(), policy.log_probabilities(policy.theta)
        tilt = (log_pi + policy.draw(WORDS)).log_softmax(0)
        apart = -torch.einsum("w,wij->ij", tilt.exp() - log_pi.exp(), second)
        size = float(torch.linalg.matrix_norm(apart, 2))
        largest = float(torch.linalg.matrix_norm(second, 2).max())
        divergence = float((tilt.exp() * (tilt - log_pi)).sum())
        broken += size > largest * math.sqrt(2 * divergence) + 1e-12
        tight += size > largest * math.sqrt(2 * divergence) / 20
    why = f"broken in {broken} of {INSTANCES} cases"
    return record("G4", broken == 0, why, failing("a twentieth of the bound", tight), evidence, cases=INSTANCES)


def _clipped(number: int, rate: float) -> Tensor:
    """Ratios of sampled words after four clipped policy-gradient steps on one batch of a table of 32 prompts."""
    generator = torch_generator(0, "claims", "clip", str(number))
    old = torch.randn(32, 16, generator=generator, dtype=torch.float64).log_softmax(1)
    words = torch.multinomial(old.exp(), 8, replacement=True, generator=generator)
    reward = (words < 4).double()
    advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
    logits, before = old.clone(), old.gather(1, words)
    for _ in range(4):
        now = logits.log_softmax(1)
        ratio = (now.gather(1, words) - before).exp()
        clipped = ((ratio > 1.28) & (advantage > 0)) | ((ratio < 0.8) & (advantage < 0))
        weight = torch.where(clipped, 0.0, ratio * advantage)
        push = torch.zeros_like(logits).scatter_add_(1, words, weight)
        logits = logits + rate * (push - weight.sum(1, keepdim=True) * now.exp())
    return (logits.log_softmax(1).gather(1, words) - before).exp()


def g5(evidence: Evidence) -> Record:
    """The lemma where its hypothesis is given, and how often clipping leaves the hypothesis unmet."""
    bound, broken = max(-math.log(0.8), math.log(1.28)), 0
    for i in range(INSTANCES):
        drawn = torch.rand(1000, generator=torch_generator(0, "claims", "ratios", str(i)), dtype=torch.float64)
        broken += float((-(0.8 + 0.48 * drawn).log()).mean().abs()) > bound
    rates = (0.01, 0.1, 0.3, 1.0)
    outside = {rate: [_clipped(i, rate) for i in range(INSTANCES)] for rate in rates}
    shares = {f"step {r:g}": float(torch.cat([((x < 0.8) | (x > 1.28)).double().flatten() for x in found]).mean())
              for r, found in outside.items()}  # fmt: skip
    updates = {seed.records[run]["settings"]["rlvr"]["updates"] for seed in evidence.seeds for run in REAL.rl
               if run in seed.records}  # fmt: skip
    real = (
        "; the laboratory makes one update per rollout, so its ratios are 1 and its clipping never acts"
        if updates == {1}
        else ""
    )
    told = ", ".join(f"{name} {100 * value:.1f} %" for name, value in shares.items())
    why = (
        f"where all ratios lie in [.8, 1.28] the bound is broken in {broken} of {INSTANCES}; clipping does not keep "
        f"them there: outside after four clipped updates of a table: {told}{real}"
    )
    holds = broken == 0 and max(shares.values()) == 0
    still = max(float((_clipped(i, 0.0) - 1).abs().max()) for i in range(4))
    control = Control("no step at all", still < 1e-12, f"ratios differ from 1 by {still:.1e}")
    return record("G5", holds, why, control, evidence, **shares)


def numeric() -> Iterator[tuple[str, Callable[[Evidence], Record]]]:
    """The claims that need no checkpoint."""
    yield from (("G1", g1), ("G2", g2), ("G3", g3), ("G4", g4), ("G5", g5))
