"""A base to a mask set: plan from headers, one job per stored weight, over any engine, kept as each is finished."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offprincipal.checkpoint import Checkpoint, Source, open_checkpoint, read_whole
from offprincipal.errors import InputError
from offprincipal.fanout import Engine, here
from offprincipal.masksets._draft import Draft, Made, described, made
from offprincipal.masksets._files import Entry
from offprincipal.masksets._layout import put, take
from offprincipal.masksets._maskset import MaskSet
from offprincipal.masksets._rules import FACTORED, Rule, choose, rule_of
from offprincipal.measurement import content_hash
from offprincipal.names import Cut
from offprincipal.pairs import Pair, Part, Plan, pair
from offprincipal.rows import one_thread
from offprincipal.task import Settings

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Target:
    """One canonical matrix inside a stored weight: its name, its rows there, and its tuned side."""

    name: str
    cut: Cut
    shape: tuple[int, ...]
    tuned: Part | None


@dataclass(frozen=True)
class Job:
    """One stored weight and what of it is masked, one matrix after the other. Small and picklable."""

    name: str
    source: Source
    targets: tuple[Target, ...]
    rule: Rule
    settings: Settings
    like: Entry | None = None

    @property
    def cost(self) -> float:
        """Work as a comparison counts it: every weight once, times the short side where a matrix is factored."""
        factored = self.rule.kind in FACTORED
        return float(
            sum(rows * columns * (1 + (min(rows, columns) if factored else 0)) for rows, columns in self._sides)
        )

    @property
    def _sides(self) -> list[tuple[int, int]]:
        return [(target.shape[0], target.shape[1]) for target in self.targets]


def build_masks(
    base: str | Path,
    out: str | Path,
    kind: str = "safe",
    *,
    rank: int | None = None,
    alpha: float | None = None,
    density: float | None = None,
    seed: int | None = None,
    like: "str | Path | MaskSet | None" = None,
    tuned: str | Path | None = None,
    include_all: bool = False,
    device: str = "cpu",
    cache: bool = True,
    offline: bool = False,
    engine: Engine = here,
    progress: Progress | None = None,
) -> MaskSet:
    """Choose a mask for every matrix of a base and write them as a set. Safe to stop and run again.

    Args:
        base: a checkpoint ref: folder, file, adapter folder, ``org/name`` or ``org/name@revision``.
        out: folder of the set; a set of the same job that is there already is returned as it is.
        kind: ``principal`` (largest part of ``|W0^(rank)|``), ``nonprincipal`` (its complement), ``low`` (smallest
            ``|W0|``), ``safe`` (low or nonprincipal), ``random``, or ``update`` (what `tuned` changed in bfloat16).
        rank: of the principal mask, 1 to 512; 64 if nothing is said; capped at half the short side.
        alpha: fraction of each matrix that M_princ and M_low take: exactly ``round(alpha n)`` entries; 0.5 if nothing
            is said.
        density: instead of alpha, what the finished mask has of each matrix. A safe mask has more than about .74 of a
            trained matrix whatever its alpha; less is refused.
        seed: of a random mask, hashed with the name of each matrix; 0 if nothing is said.
        like: a mask set whose number of ones a random mask matches, matrix by matrix.
        tuned: the checkpoint of an update mask.
        include_all: every 2-D weight, embeddings and heads too; else those inside blocks, as PNT's shares count.
        device: where factors are computed, "cpu" or "cuda".
        cache: keep and use the base's factors.
        offline: never ask the Hub.
        engine: where the work is done; see `offprincipal.fanout`. The result is the same, bit for bit.
        progress: called after each weight.

    Returns:
        The opened set. A fused weight has one mask in its stored shape, chosen for each matrix in it, expert by
        expert. Memory: one stored weight and its mask per worker, and what factors take (docs/geometry.md).

    Raises:
        UsageError: a kind or option that makes no sense.
        InputError: a checkpoint cannot be read, nothing is to be masked, the mask is empty, the density cannot be
            had, or `out` is in use or holds something else.

    Source: DEFINITIONS of docs/masks.md; PNT sections 4.2, 4.3 and 5.1.

    >>> from safetensors.torch import save_file
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     weights = {"model.layers.0.mlp.up_proj.weight": torch.tensor([[1.0, -3.0], [0.5, 2.0]])}
    ...     save_file(weights, f"{folder}/base.safetensors")
    ...     masks = build_masks(f"{folder}/base.safetensors", f"{folder}/low", "low")
    ...     print(masks["model.layers.0.mlp.up_proj.weight"].tolist())
    [[True, False], [True, False]]
    """
    options = {"rank": rank, "alpha": alpha, "density": density, "seed": seed, "like": like, "tuned": tuned}
    rule = rule_of(kind, options)
    asked = f"build {kind} masks for {str(base)!r}"
    opened = open_checkpoint(base, offline=offline)
    after = open_checkpoint(tuned, base=opened, offline=offline) if tuned is not None else None
    likened = MaskSet.open(like) if like is not None else None
    jobs, left_out = plan_jobs(
        pair(opened, after or opened), rule, Settings(0, True, device, cache), include_all, asked
    )
    if likened:
        jobs = _likened(jobs, likened, asked)
    words = rule.words() | {"include_all": include_all} | _sources(after, likened)
    with Draft(out, words, described(opened), asked) as draft:
        _make_missing(jobs, draft, engine, progress)
        return draft.finish((job.name for job in jobs), left_out)


def plan_jobs(
    plan: Plan, rule: Rule, settings: Settings, include_all: bool, asked: str
) -> tuple[list[Job], dict[str, Any]]:
    """One job per stored weight that has something to mask, in the order of the model, and what is left out, by kind.

    Raises:
        InputError: nothing is to be masked.
    """
    chosen: dict[str, list[Pair]] = {}
    left: dict[str, list[int]] = {}
    embeddings = {each.base.source.info.name for each in plan.pairs if each.place.kind == "embed"}
    for each in plan.pairs:
        twice = each.place.kind == "head" and each.base.source.info.name in embeddings  # tied here, untied when tuned
        if not twice and (each.place.linear or (include_all and len(each.shape) == 2)):
            chosen.setdefault(each.base.source.info.name, []).append(each)
        else:
            left.setdefault(each.place.kind, []).append(each.count)
    for item in plan.unpaired:
        if item.side == "base" and not item.harmless:
            left.setdefault("without a partner", []).append(int(np.prod(item.shape, dtype=np.int64)))
    if not chosen:
        model = plan.base.config.get("model_type", "no config.json")
        found = f"it has no 2-D weight inside a block, as far as its names tell ({model})"
        raise InputError(asked, found, "add --include-all to take every 2-D weight")
    update = rule.kind == "update"
    jobs = [
        Job(
            name,
            found[0].base.source,
            tuple(Target(p.name, p.base.cut, p.shape, p.tuned if update else None) for p in found),
            rule,
            settings,
        )
        for name, found in chosen.items()
    ]
    return jobs, {kind: {"tensors": len(counts), "weights": sum(counts)} for kind, counts in left.items()}


def make_mask(job: Job) -> tuple[str, np.ndarray, dict[str, Any]]:
    """Read one stored weight and choose its mask; the name, bits or positions, and the record of the header.

    Raises:
        InputError: a file has gone or changed since the plan was made, or the rule cannot be met.
    """
    weight = read_whole(job.source)
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    like = job.like.load() if job.like else None
    for target in job.targets:
        ones = None if like is None else int(take(like, target.cut).sum())
        tuned = target.tuned.load() if target.tuned else None
        with one_thread():
            chosen = choose(
                job.rule, target.name, take(weight, target.cut), tuned=tuned, ones=ones,
                cache=job.settings.cache, device=job.settings.device,
            )  # fmt: skip
        put(mask, target.cut, chosen)
    done = made(mask, content_hash(weight))
    return job.name, done.stored.numpy(), dict(done.record)


def _sources(tuned: Checkpoint | None, like: MaskSet | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if tuned:
        found["tuned"] = {"ref": tuned.ref, "commit": tuned.commit, "identity": tuned.identity()}
    if like:
        found["like"] = like.named()
    return found


def _likened(jobs: list[Job], like: MaskSet, asked: str) -> list[Job]:
    """The jobs with the masks whose sizes they match."""
    differing = sorted({job.name for job in jobs} ^ set(like.names))
    differing += [job.name for job in jobs if job.name in like and like.shape(job.name) != job.source.info.shape]
    if differing:
        found = f"{str(like.path)!r} and this base differ in {differing[0]!r} ({len(differing)} names or shapes)"
        raise InputError(asked, found, "give masks of this base, with the same --include-all")
    return [replace(job, like=like.entries[job.name]) for job in jobs]


def _make_missing(jobs: list[Job], draft: Draft, engine: Engine, progress: Progress | None) -> None:
    """Make what the draft does not hold yet, largest first, and keep each mask as it is finished."""
    todo = [job for job in jobs if job.name not in draft]
    done = len(jobs) - len(todo)
    if progress:
        progress(done, len(jobs), "")
    for name, stored, record in engine(make_mask, sorted(todo, key=lambda job: (-job.cost, job.name))):
        draft.add(name, Made(torch.from_numpy(stored), record))
        done += 1
        if progress:
            progress(done, len(jobs), name)
