"""One method with its numbers, and what it makes of one module: the unit of work.

What it is: the choice among the formulas of ``_starts.py``. What it is not: them, or the folder (``_init.py``).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from offprincipal.errors import InputError, UsageError
from offprincipal.factors import FactorCache
from offprincipal.measurement import content_hash
from offprincipal.measures import angles, masks, spectrum
from offprincipal.measures.base import base_of
from offprincipal.measures.seeds import torch_generator
from offprincipal.measures.spectrum import Factors
from offprincipal.rows import one_thread
from offprincipal.train.adapters import _starts
from offprincipal.train.adapters._starts import Start
from offprincipal.train.adapters._targets import Module

METHODS = {
    "lora": "A random (Kaiming uniform), B = 0: PEFT's default",
    "rlpo": "A = leading right singular vectors, unscaled, B = 0 (arXiv 2606.31813, re-implemented from the paper)",
    "rlmo": "A = trailing right singular vectors, unscaled, B = 0 (arXiv 2606.31813, re-implemented from the paper)",
    "pissa": "B A from the leading singular triplets (arXiv 2404.02948), as plain LoRA of twice the rank",
    "milora": "B A from the trailing singular triplets (arXiv 2406.09044), as plain LoRA of twice the rank",
    "geora": "B A from the SVD of the low part of W (arXiv 2601.09361, re-implemented from the paper), twice the rank",
    "off-principal": "A random and orthonormal off the leading right singular vectors, B = 0 (ours)",
}
"""Method to what it is."""

DOUBLED = ("pissa", "milora", "geora")
"""Methods whose original form changes the base: here D = B A - B0 A0 on the base as it is."""

PRINCIPAL_RANK = masks.RANK
"""Directions that off-principal adapters stay out of, capped at half the short side."""


@dataclass(frozen=True)
class Recipe:
    """What every module of one adapter has in common. Picklable."""

    method: str
    rank: int
    alpha: float
    k: int
    rho: float
    seed: int
    cache: bool

    @property
    def scaling(self) -> float:
        """``alpha / rank``: what B A is multiplied by."""
        return self.alpha / self.rank

    def excluded(self, shape: tuple[int, int]) -> int:
        """How many leading directions an off-principal adapter of this matrix stays out of."""
        return masks.principal_rank(shape, self.k)


def recipe_of(method: str, rank: int, alpha: float, k: int, rho: float, seed: int, cache: bool) -> Recipe:
    """The recipe, its numbers checked.

    Raises:
        UsageError: an unknown method, or numbers that make no sense.
    """
    asked = "make an adapter"
    if method not in METHODS:
        raise UsageError(asked, f"there is no method {method!r}", f"choose one of {', '.join(METHODS)}")
    for name, value, fine in (
        ("rank", rank, rank >= 1),
        ("alpha", alpha, 0 < alpha < 1e9),
        ("k", k, k >= 1),
        ("rho", rho, 0 < rho <= 1),
    ):
        if not fine:
            raise UsageError(
                asked, f"{name} is {value}", "rank and k are at least 1, alpha is positive, rho within 0..1"
            )
    return Recipe(method, rank, float(alpha), k, rho, seed, cache)


def refuse_small(module: Module, recipe: Recipe) -> None:
    """Raise where the matrix has fewer directions than are asked for.

    Raises:
        InputError: with the module, its short side and what would fit.
    """
    short = min(module.shape)
    k = recipe.excluded(module.shape) if recipe.method == "off-principal" else 0
    if recipe.rank + k <= short:
        return
    what = f"rank {recipe.rank}" + (f" beside the {k} leading directions" if k else "")
    raise InputError(
        f"adapt {module.path!r} with {recipe.method}",
        f"its short side is {short}, too small for {what}",
        f"ask for at most --rank {short - k}"
        + (", or for fewer --directions" if k else "")
        + ", or --target other modules",
    )


Factored = dict[str, Tensor]
"""What one module contributes: a, b (float32), hash, and left, right of an off-principal one."""


def start_module(work: tuple[Module, Recipe]) -> tuple[str, str, Factored]:
    """Load one weight and compute its factors: path, content hash, tensors to be stored.

    Raises:
        InputError: the weight holds NaN or infinite values, or its file has gone.
    """
    module, recipe = work
    with one_thread():
        weight = module.load()
        digest = content_hash(weight)
        if masks.nonfinite(weight) is not None:
            raise InputError(
                f"adapt {module.path!r}", "its weight holds NaN or infinite values", "mend the base first"
            )
        generator = torch_generator(recipe.seed, module.path, recipe.method)
        tensors = _tensors(weight, module.shape, recipe, generator)
    return module.path, digest, {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def _tensors(weight: Tensor, shape: tuple[int, int], recipe: Recipe, generator: torch.Generator) -> Factored:
    extra: Factored = {}
    rank, method = recipe.rank, recipe.method
    if method == "lora":
        start = _starts.kaiming(shape[1], rank, generator)
    elif method in ("rlmo", "milora"):
        found = _starts.last(weight, rank)
        start = (
            _starts.right_rows(found, rank, trailing=True)
            if method == "rlmo"
            else _starts.scaled_triplets(found, found.values, recipe.scaling)
        )
    elif method == "off-principal":
        k = recipe.excluded(shape)
        found = leading(weight, k, recipe.cache)
        extra = {"left": found.left[:, :k], "right": found.right[:, :k]}
        start = _starts.off_principal(found.right[:, :k], rank, generator)
    else:
        found = leading(weight, rank, recipe.cache)
        start = _ofleading(weight, found, recipe)
    a, b = (start.a, start.a.new_zeros(shape[0], rank)) if start.b is None else _starts.doubled(start)
    return {"a": a, "b": b, **extra}


def _ofleading(weight: Tensor, found: Factors, recipe: Recipe) -> Start:
    if recipe.method == "rlpo":
        return _starts.right_rows(found, recipe.rank)
    if recipe.method == "geora":
        return _starts.geora(weight, found, recipe.rank, recipe.rho)
    top = _starts.first(found, recipe.rank)
    return _starts.scaled_triplets(top, top.values, recipe.scaling)


def leading(weight: Tensor, count: int, cache: bool) -> Factors:
    """At least `count` leading triplets: the cached factors of the base where they reach that far."""
    keep = masks.principal_rank((weight.shape[0], weight.shape[1]), max(angles.GRID))
    if count > keep or not cache:
        return spectrum.factorise(weight, max(count, keep))
    return FactorCache().fetch(weight, lambda: base_of(weight)).factors
