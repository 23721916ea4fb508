"""The gates watched while a model trains: what a step changed, how far the base is, and in which directions.

What it is: two calls around an optimizer step, for any loop; ``callbacks`` makes them for transformers' trainers. The
base stays on the CPU. What it is not: the full comparison of two checkpoints (``offprincipal compare``): there are no
nulls here, and matrices take turns.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from offprincipal.factors import FactorCache
from offprincipal.measures import bits, energy, masks, spectrum
from offprincipal.measures.base import Base, base_of
from offprincipal.measures.seeds import numpy_generator
from offprincipal.measures.spectrum import Factors
from offprincipal.names import locate
from offprincipal.train.prompts import Prompts, mean_kl
from offprincipal.train.weights import Snapshot, effective_weights

SHARES = ("step_changed", "changed", "density")
NORMS = ("step_norm", "delta_norm", "relative_delta_norm")
ENERGIES = ("left", "right", "both", "off")


class Watch:
    """Measures one optimizer step and the distance from the base; every number is named ``<metric>/<group>``.

    Groups are ``all`` weights, ``linear`` ones (2-D weights inside blocks) and every kind of DEFINITIONS (q, k, v, o,
    gate, up, down, embed, norm and so on). Per group:

    * ``step_changed``, ``changed``: share of entries whose bfloat16 value this step, or all steps since the base,
      changed: what a bfloat16 copy of the model would show. ``density``: share that differs at all from the base, in
      the dtype that trains.
    * ``step_norm``, ``delta_norm``: ``||D||_F`` of the step and since the base; ``relative_delta_norm`` over
      ``||W0||_F``.

    On the prompts: ``kl_base/prompts`` KL(model || base), ``kl_step/prompts`` KL(after || before the step), in nats
    per token, exact over the vocabulary (Gate I).

    On `matrices` linear matrices, which take turns, under their kind: ``nss``, the normalised shift of the singular
    values, and ``energy_left``, ``energy_right``, ``energy_both``, ``energy_off``, the shares of ``||D||_F^2`` that
    lie in the leading left, right, both, and neither principal subspace of the base (rank `rank`, at most half the
    short side), each with ``_lift``, the share over that of an isotropic D. A D of zero has no shares.

    Args:
        model: at the base, or with an adapter that changes nothing yet; PEFT's LoRA layers count as what they apply.
        prompts: scored before and after; None leaves the KL out.
        rank: of the principal subspaces, at most 512 (*ours*: 64, from arXiv 2606.07082).
        matrices: how many matrices are factorised at each measurement; 0 leaves spectrum and energy out.
        cache: keep the base's factors on disk, where ``compare`` keeps and finds them too.
        seed: of the order in which matrices take their turns.

    Cost of a measurement: two forward passes over the prompts; reading every weight twice; for each of the matrices
    one eigenproblem of its short side, and once per matrix the base's factors unless they are cached. Host memory: the
    base once (2 bytes per parameter where it is exact in bfloat16) and the weights before the step, and two to three
    times 4 bytes x positions x vocabulary. On the accelerator one weight at a time is copied.

    >>> layer = nn.Linear(4, 4)
    >>> watch = Watch(layer, matrices=0)
    >>> watch.before_step()
    >>> layer.weight.data += 1
    >>> watch.after_step()["changed/all"]  # 16 of 20 entries
    0.8
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Prompts | None = None,
        *,
        rank: int = masks.RANK,
        matrices: int = 1,
        cache: bool = True,
        seed: int = 0,
    ):
        self.model, self._prompts, self._rank, self._matrices = model, prompts, rank, matrices
        self._cache = FactorCache() if cache else None
        config = model.config.to_dict() if hasattr(model, "config") else {}  # pyright: ignore
        weights = [(weight.name, weight.read()) for weight in effective_weights(model)]
        self._groups = {name: _groups(name, tensor, config) for name, tensor in weights}
        self._base = Snapshot(weights)
        self._norms = {name: float(tensor.double().square().sum()) for name, tensor in weights}
        turns = [name for name, groups in self._groups.items() if "linear" in groups and self._base[name].ndim == 2]
        self._turns = [str(name) for name in numpy_generator(seed, "turns").permutation(turns)] if turns else []
        self._turn = 0
        self._base_log = prompts.log_probabilities(model) if prompts else None
        self._before: Snapshot | None = None
        self._before_log: Tensor | None = None

    def before_step(self) -> None:
        """Keep the weights, and what the model expects, just before the optimizer moves them."""
        self._before = Snapshot((weight.name, weight.read()) for weight in effective_weights(self.model))
        self._before_log = self._prompts.log_probabilities(self.model) if self._prompts else None

    def after_step(self) -> dict[str, float]:
        """All metrics after the step that `before_step` announced; the turn passes to the next matrices.

        Without `before_step` the numbers of the step are left out.
        """
        chosen = [
            self._turns[(self._turn + n) % len(self._turns)] for n in range(min(self._matrices, len(self._turns)))
        ]
        self._turn += len(chosen)
        sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        found: dict[str, float] = {}
        sampled: dict[str, list[dict[str, float]]] = defaultdict(list)
        for weight in effective_weights(self.model):
            now = weight.read()
            for group in self._groups[weight.name]:
                _add(sums[group], self._counts(weight.name, now))
            if weight.name in chosen:
                sampled[self._groups[weight.name][-1]].append(self._directions(weight.name, now))
        for group, total in sums.items():
            found |= _shares(group, total)
        for kind, rows in sampled.items():
            names = {name for row in rows for name in row}
            found |= {f"{name}/{kind}": _mean([row[name] for row in rows if name in row]) for name in sorted(names)}
        found |= self._kl()
        self._before = self._before_log = None
        return found

    def _counts(self, name: str, now: Tensor) -> dict[str, float]:
        """Numerators of one weight: changed entries and squared norms."""
        base = self._base[name].to(now.device)
        counts: dict[str, float] = {
            "entries": now.numel(),
            "changed": int(bits.changed(base, now).sum()),
            "density": int((base.to(now.dtype) != now).sum()),
            "delta_sq": float((now.double() - base.double()).square().sum()),
            "base_sq": self._norms[name],
        }
        if self._before is not None:
            before = self._before[name].to(now.device)
            counts["step_changed"] = int(bits.changed(before, now).sum())
            counts["step_sq"] = float((now.double() - before.double()).square().sum())
        return counts

    def _directions(self, name: str, now: Tensor) -> dict[str, float]:
        """Spectral shift of one matrix, and where the energy of D lies, beside its chance."""
        before = self._base[name]
        factors = self._factors(before, now.device)
        rank = min(masks.principal_rank((now.shape[0], now.shape[1]), self._rank), factors.left.shape[1])
        values = factors.values.to(now.device)
        after = spectrum.factorise(now, 1, device=now.device).values
        delta = now.double() - before.to(now.device).double()
        total = float(delta.square().sum())
        found = {"nss": spectrum.nss(values, after)}
        if not total:
            return found
        left, right = (side[:, :rank].to(now.device) for side in (factors.left, factors.right))
        inside = [part / total for part in energy.inside(delta, left, right)]
        a, b = rank / now.shape[0], rank / now.shape[1]
        shares = (*inside, 1 - inside[0] - inside[1] + inside[2])
        for side, share, chance in zip(ENERGIES, shares, (a, b, a * b, (1 - a) * (1 - b)), strict=True):
            found |= {f"energy_{side}": share, f"energy_{side}_lift": share / chance}
        return found

    def _factors(self, before: Tensor, device: torch.device) -> Factors:
        """The base's factors, under the key and in the layout in which a comparison keeps them."""

        def make() -> Base:
            return base_of(before, device=device)

        return (self._cache.fetch(before, make) if self._cache else make()).factors

    def _kl(self) -> dict[str, float]:
        """KL to the base and KL of the step, on the prompts."""
        if self._prompts is None or self._base_log is None:
            return {}
        now, device = self._prompts.log_probabilities(self.model), next(self.model.parameters()).device
        found = {"kl_base/prompts": mean_kl(now, self._base_log, device)}
        if self._before_log is not None:
            found["kl_step/prompts"] = mean_kl(now, self._before_log, device)
        return found


def _groups(name: str, weight: Tensor, config: Mapping[str, Any]) -> tuple[str, ...]:
    """``all``, ``linear`` where it applies, and the kind; a fused weight is of all its kinds at once."""
    places = [piece.place for piece in locate(name, tuple(weight.shape), config)]
    kind = "+".join(dict.fromkeys(place.kind for place in places))
    return ("all", *(["linear"] if any(place.linear for place in places) else []), kind)


def _add(total: dict[str, float], counts: Mapping[str, float]) -> None:
    for name, value in counts.items():
        total[name] += value


def _shares(group: str, total: Mapping[str, float]) -> dict[str, float]:
    """Metrics of one group from its sums; what was not counted is left out."""
    found = {f"{name}/{group}": total[name] / total["entries"] for name in SHARES if name in total}
    if "step_sq" in total:
        found[f"step_norm/{group}"] = total["step_sq"] ** 0.5
    found[f"delta_norm/{group}"] = total["delta_sq"] ** 0.5
    if total["base_sq"]:
        found[f"relative_delta_norm/{group}"] = (total["delta_sq"] / total["base_sq"]) ** 0.5
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
