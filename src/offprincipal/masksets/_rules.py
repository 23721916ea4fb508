"""One matrix to one mask: the rules by their names, and the size that a density asks for."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from offprincipal.errors import InputError, UsageError
from offprincipal.factors import FactorCache
from offprincipal.measures import bits, masks
from offprincipal.measures.base import Base, base_of
from offprincipal.measures.seeds import torch_generator

KINDS = ("safe", "principal", "nonprincipal", "low", "random", "update")
"""The masks that can be built: PNT sections 2.2, 4.2, 4.3 and 5.1."""

USES = {
    "safe": ("rank", "alpha", "density"),
    "principal": ("rank", "alpha", "density"),
    "nonprincipal": ("rank", "alpha", "density"),
    "low": ("alpha", "density"),
    "random": ("alpha", "density", "seed", "like"),
    "update": ("tuned",),
}
"""Which options mean something to which kind."""

FACTORED = ("safe", "principal", "nonprincipal")
"""Kinds that need the factors of a matrix."""

LARGEST_RANK = max(masks.RANKS)
"""So many leading vectors are kept with the factors of a base."""


@dataclass(frozen=True)
class Rule:
    """How a mask is chosen: a kind and its constants; None where the kind has no use for one."""

    kind: str
    rank: int | None = None
    alpha: float | None = None
    density: float | None = None
    seed: int | None = None

    def words(self) -> dict[str, Any]:
        """The rule as plain data, without what it does not use."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def size(self, entries: int) -> int:
        """How many entries the top fraction behind this rule has, unless a density is asked of a safe mask.

        >>> Rule("principal", 64, 0.5).size(10), Rule("nonprincipal", 64, density=0.3).size(10)
        (5, 7)
        """
        if self.density is None:
            return masks.count(masks.ALPHA if self.alpha is None else self.alpha, entries)
        inside = masks.count(self.density, entries)
        return entries - inside if self.kind == "nonprincipal" else inside


def rule_of(kind: str, given: dict[str, Any]) -> Rule:
    """The rule with its defaults filled in: rank 64, alpha 0.5, seed 0.

    Raises:
        UsageError: no such kind, an option that means nothing to it or is missing, or a number out of range.

    >>> rule_of("low", {"alpha": None}).words()
    {'kind': 'low', 'alpha': 0.5}
    """
    asked = f"build a mask of kind {kind!r}"
    if kind not in KINDS:
        raise UsageError(asked, "there is no such kind", f"choose one of {', '.join(KINDS)}")
    given = {option: value for option, value in given.items() if value is not None}
    idle = [option for option in given if option not in USES[kind]]
    if idle:
        takes = ", ".join(USES[kind])
        raise UsageError(asked, f"{idle[0]} means nothing to it", f"leave it out; {kind} takes {takes}")
    if kind == "update" and "tuned" not in given:
        raise UsageError(asked, "no tuned checkpoint was given", "name it after the base")
    sizes = [option for option in ("alpha", "density", "like") if option in given]
    if len(sizes) > 1:
        raise UsageError(asked, f"{' and '.join(sizes)} were given together", "give one of them")
    for option, low, high in (("rank", 1, LARGEST_RANK), ("alpha", 0.0, 1.0), ("density", 0.0, 1.0)):
        if not low <= given.get(option, low) <= high:
            raise UsageError(asked, f"{option} is {given[option]}", f"give one from {low} to {high}")
    defaults = {"rank": masks.RANK, "seed": 0} | ({} if sizes else {"alpha": masks.ALPHA})
    chosen = {option: given.get(option, defaults.get(option)) for option in USES[kind]}
    return Rule(kind, **{key: value for key, value in chosen.items() if key not in ("like", "tuned")})


def choose(
    rule: Rule,
    name: str,
    weight: Tensor,
    *,
    tuned: Tensor | None = None,
    ones: int | None = None,
    cache: bool = True,
    device: str = "cpu",
) -> Tensor:
    """The mask of one matrix.

    Args:
        rule: kind and constants.
        name: canonical name of the matrix: seeds its random mask, and stands in an error.
        weight: the base, ``[out, in]``, any floating dtype.
        tuned: the tuned side, for an update mask.
        ones: how many a random mask has, instead of what the rule says.
        cache: keep and use the factors of the base.
        device: where factors are computed.

    Returns:
        bool ``[out, in]`` on the CPU. Ties as in ``measures.masks``.

    Raises:
        InputError: the rule cannot give the density that is asked for.

    >>> choose(Rule("low", alpha=0.5), "w", torch.tensor([[1.0, -2.0]])).tolist()
    [[True, False]]
    """
    entries = weight.numel()
    if not entries:
        return torch.zeros(weight.shape, dtype=torch.bool)
    if rule.kind == "update":
        assert tuned is not None  # `rule_of` has seen to it
        return bits.changed(weight, tuned)
    if rule.kind == "low":
        return masks.smallest(weight, rule.size(entries))
    if rule.kind == "random":
        generator = torch_generator(rule.seed or 0, name, "random mask")
        draws = torch.rand(weight.shape, dtype=torch.float64, generator=generator)
        return masks.largest(draws, rule.size(entries) if ones is None else ones)
    base = _factored(weight, cache, device)
    if rule.kind == "safe":
        return _safe(rule, name, weight, base)
    principal = _principal(rule, base, rule.size(entries))
    return principal if rule.kind == "principal" else ~principal


def _factored(weight: Tensor, cache: bool, device: str) -> Base:
    """Factors and level map of the base, as a comparison makes and keeps them; nonfinite entries count as zero."""
    holes = masks.nonfinite(weight)

    def make() -> Base:
        return base_of(weight, holes=holes, device=device)

    return FactorCache().fetch(weight, make) if cache and holes is None else make()


def _principal(rule: Rule, base: Base, size: int) -> Tensor:
    """The `size` largest entries of the low-rank part: from the level map where it has them, as in a comparison."""
    shape = (base.levels.level.shape[0], base.levels.level.shape[1])
    rank = masks.principal_rank(shape, rule.rank or masks.RANK)
    by_level = None
    if rank == base.levels.rank and rule.alpha in masks.ALPHAS:
        by_level = base.levels.principal(rule.alpha)
    elif rank in base.levels.ranks and rule.alpha == masks.ALPHA:
        by_level = base.levels.at_rank(rank)
    if by_level is not None:
        return by_level[base.levels.level.to(torch.int64)]
    return masks.largest(masks.low_rank(base.factors, rank), size)


def _safe(rule: Rule, name: str, weight: Tensor, base: Base) -> Tensor:
    """M_low united with the complement of M_princ, both of one size."""
    if rule.density is None:
        size = rule.size(weight.numel())
        return masks.safe(masks.smallest(weight, size), _principal(rule, base, size))
    rank = masks.principal_rank((weight.shape[0], weight.shape[1]), rule.rank or masks.RANK)
    score = masks.low_rank(base.factors, rank)

    def union(size: int) -> Tensor:
        return masks.safe(masks.smallest(weight, size), masks.largest(score, size))

    target = masks.count(rule.density, weight.numel())
    found = size_for(lambda size: int(union(size).sum()), target, weight.numel())
    if found is None:
        least = int(union(weight.numel() // 2).sum()) / weight.numel()
        raise InputError(
            f"build a safe mask of density {rule.density:g}",
            f"that of {name!r} has {least:.4f} at alpha 0.5: half is not principal, and small weights come on top",
            f"ask for {least:.4f} or more, or take kind low or nonprincipal",
        )
    return union(found)


def size_for(ones: Callable[[int], int], target: int, entries: int) -> int | None:
    """The size of M_low and M_princ at which their safe mask has `target` ones; None where half is still too many.

    When both grow by one entry, the safe mask gains or loses at most one. So every number of ones between those of
    two sizes is met in between, though the number does not fall steadily: a bracket around the target always holds
    it. False position after Illinois, every fourth step a bisection: some ten looks where bisection needs 24.

    >>> size_for(lambda size: 10 - size, 7, 10)
    3
    """
    low, high = 0, entries // 2
    over, under = entries - target, ones(high) - target  # how far the ends of the bracket are from the target
    if under > 0:
        return None
    left, right, turn, side = float(over), float(under), 0, 0  # the same, less for an end that stayed twice
    while over and under:
        share = 0.5 if turn % 4 == 3 else left / (left - right)
        middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
        found = ones(middle) - target
        if found >= 0:
            low, over, left, right, side = middle, found, float(found), right / (2 if side > 0 else 1), 1
        else:
            high, under, left, right, side = middle, found, left / (2 if side < 0 else 1), float(found), -1
        turn += 1
    return high if over else low
