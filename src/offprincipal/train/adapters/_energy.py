"""Where an adapter's D lies: its energy in the leading subspaces of the base, module by module, D never formed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offprincipal.checkpoint import Adapted, Checkpoint, read_whole
from offprincipal.fanout import Engine, here
from offprincipal.measurement import content_hash
from offprincipal.measures import masks
from offprincipal.rows import one_thread
from offprincipal.survey import Progress
from offprincipal.train.adapters._folder import Adapter, Factor
from offprincipal.train.adapters._lowrank import Product
from offprincipal.train.adapters._recipe import PRINCIPAL_RANK, leading
from offprincipal.train.adapters._targets import Module


@dataclass(frozen=True)
class Energy:
    """One module.

    Attributes:
        path: of the module.
        xxh3: content of the base's weight, as the adapter's note has it.
        k: leading directions on each side.
        norm_sq: ``||D||^2``; 0 where D is exactly zero, and then the shares are 0.
        left: ``||U_k^T D||^2 / ||D||^2``; chance is ``k / out``.
        right: ``||D V_k||^2 / ||D||^2``; chance is ``k / in``.
        chance: of both.
    """

    path: str
    xxh3: str
    k: int
    norm_sq: float
    left: float
    right: float
    chance: tuple[float, float]


@dataclass(frozen=True)
class Energies:
    """All modules of an adapter.

    Attributes:
        modules: in the order of the names.
        foreign: modules whose base weight is not the one that the note names.
    """

    modules: tuple[Energy, ...]
    foreign: tuple[str, ...]

    @property
    def all_zero(self) -> bool:
        """Whether D is exactly zero everywhere: the adapter is at its start."""
        return not any(each.norm_sq for each in self.modules)

    @property
    def worst(self) -> str:
        """The module with the largest share on either side."""
        return max(self.modules, key=lambda each: max(each.left, each.right)).path

    @property
    def worst_root(self) -> float:
        """Root of the largest share: a norm beside the norm of D."""
        return math.sqrt(max(max(each.left, each.right) for each in self.modules))

    def summary(self) -> dict[str, Any]:
        """Unweighted means over the modules with a D, beside chance; None where no module has one."""
        moved = [each for each in self.modules if each.norm_sq]

        def mean(values: list[float]) -> float | None:
            return sum(values) / len(values) if values else None

        return {
            "k_max": max(each.k for each in self.modules),
            "modules_moved": len(moved),
            "delta_norm": math.sqrt(sum(each.norm_sq for each in moved)),
            "left_mean_unweighted": mean([each.left for each in moved]),
            "left_chance": mean([each.chance[0] for each in moved]),
            "right_mean_unweighted": mean([each.right for each in moved]),
            "right_chance": mean([each.chance[1] for each in moved]),
            "worst_root": self.worst_root if moved else None,
            "worst_module": self.worst if moved else None,
        }


def measure_energy(
    adapter: Adapter,
    whole: Checkpoint,
    note: Mapping[str, Any],
    *,
    cache: bool = True,
    engine: Engine = here,
    progress: Progress | None = None,
) -> Energies:
    """Energy of every module of the adapter.

    Args:
        adapter: its factors.
        whole: the same folder as `open_checkpoint` reads it, so that every factor has its base weight.
        note: of the folder where it began, with each module's k and content; may be empty (k is 64 then).
        cache: read and keep the base's factors.
        engine: where the subspaces are computed.
        progress: called after each module.

    Raises:
        InputError: a file has gone or changed.
    """
    known, work = note.get("modules", {}), []
    adapted = {source.update.a.info.name: source for source in whole.sources.values() if isinstance(source, Adapted)}
    for path, factor in adapter.factors.items():
        below = adapted[factor.a.info.name]
        module = Module(path, below.base, (), below.update.transposed)
        k = known.get(path, {}).get("k") or masks.principal_rank(module.shape, PRINCIPAL_RANK)
        work.append((module, factor, min(k, min(module.shape)), cache))
    found: dict[str, Energy] = {}
    for each in engine(energy_of, sorted(work, key=lambda item: -item[0].cost)):
        found[each.path] = each
        if progress:
            progress(len(found), len(work), each.path)
    modules = tuple(found[path] for path in sorted(found))
    foreign = [each.path for each in modules if known.get(each.path, {}).get("base_xxh3", each.xxh3) != each.xxh3]
    return Energies(modules, tuple(foreign))


def energy_of(work: tuple[Module, Factor, int, bool]) -> Energy:
    """Load one weight and its factors, and measure."""
    module, factor, k, cache = work
    with one_thread():
        weight = module.load()
        digest = content_hash(weight)
        chance = k / module.shape[0], k / module.shape[1]
        product = Product(read_whole(factor.a).double(), read_whole(factor.b).double(), factor.scaling)
        size = 0.0 if product.is_zero() else product.norm() ** 2
        if not size:
            return Energy(module.path, digest, k, 0.0, 0.0, 0.0, chance)
        base = leading(weight, k, cache)
        left, right = product.inside(base.left[:, :k], base.right[:, :k])
    return Energy(module.path, digest, k, size, left / size, right / size, chance)
