"""The main path: plan, skip what is done, fan out, store, reduce. Read it first.

`compare` pairs the tensors of a base with those of its tuned runs from their headers, measures one tensor at a time in
every run that has it, keeps each finished tensor as a part file, and reduces the parts to tables. It may be stopped at
any moment and started again; serial, parallel, resumed and sharded comparisons write the same bytes.
"""

import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from offprincipal.across import steps_of
from offprincipal.checkpoint import Checkpoint, open_checkpoint
from offprincipal.errors import CheckFailed, UsageError
from offprincipal.fanout import ByName, Engine, here, processes, shard, threads, usual_jobs
from offprincipal.pairs import Plan, pair
from offprincipal.results import Comparison, write_results
from offprincipal.store import Store
from offprincipal.task import Settings, Task

WORTH_PROCESSES = 1e10
"""Work (`Task.cost`) above which processes are started: a few seconds of it (*ours*, measured)."""

MEASURE = ByName("offprincipal.measurement", "measure_tensor")
"""What is done with each task. Planning imports no torch; workers have it long before a plan is made."""

Progress = Callable[[int, int, str], None]
"""Called after each tensor with how many are done, how many there are, and the name of this one."""


@dataclass(frozen=True)
class Survey:
    """What is compared: the base, the labelled runs, how they pair, and the work that follows from it."""

    base: Checkpoint
    plans: Mapping[str, Plan]
    settings: Settings

    @property
    def key(self) -> dict[str, Any]:
        """What makes this comparison this one: refs, content and settings (not where or how fast it runs)."""
        choices = {k: v for k, v in asdict(self.settings).items() if k != "cache"}
        runs = {
            label: {"ref": plan.tuned.ref, "identity": plan.tuned.identity()} for label, plan in self.plans.items()
        }
        return {"base": self.base.ref, "base_identity": self.base.identity(), "runs": runs, "settings": choices}

    @property
    def tasks(self) -> list[Task]:
        """One task per tensor that any run has in common with the base, in the order of the model."""
        names: dict[str, list] = {}
        for label, plan in self.plans.items():
            for each in plan.pairs:
                names.setdefault(each.name, []).append((label, each))
        shown = self.pictured(names) if self.settings.geometry else None
        return [
            Task(name, tuple(pairs), self.settings, tuple(self.plans), picture=name == shown)
            for name, pairs in names.items()
        ]

    @staticmethod
    def pictured(names: Mapping[str, list]) -> str | None:
        """The matrix whose masks the report shows: an output projection in the middle (as PNT Fig. 7), else any."""
        inside = [(name, pairs[0][1].place) for name, pairs in names.items() if pairs[0][1].place.linear]
        found = [name for name, place in inside if place.kind == "o"] or [name for name, _ in inside]
        return found[len(found) // 2] if found else None


def compare(
    base: str | Path,
    tuned: Sequence[str | Path] | Mapping[str, str | Path],
    out: str | Path | None = None,
    *,
    seed: int = 0,
    geometry: bool = True,
    device: str = "cpu",
    cache: bool = True,
    trajectory: bool = False,
    strict: bool = False,
    offline: bool = False,
    engine: Engine = here,
    progress: Progress | None = None,
    command: str | None = None,
) -> Comparison:
    """Measure how each tuned checkpoint differs from the base, tensor by tensor. Safe to stop and run again.

    Args:
        base: a checkpoint ref: folder, ``.safetensors`` file, adapter folder, ``org/name`` or ``org/name@revision``.
        tuned: refs, or labels with refs, e.g. ``{"sft": "runs/sft", "rl": "org/name@v2"}``.
        out: folder for tables and parts; a temporary one, gone with the result, when None.
        seed: of the simulated nulls.
        geometry: factorise every matrix (spectrum, angles, principal masks), or count only.
        device: "cpu" or "cuda".
        cache: keep the base's factors for the next comparison.
        trajectory: the runs are checkpoints of one run, in the order of training; step numbers come from the labels.
        strict: fail when any tensor is left unpaired.
        offline: never ask the Hub.
        engine: where the work is done; see `offprincipal.fanout`.
        progress: called after each tensor.
        command: the command line to be recorded.

    Returns:
        A `Comparison`: ``.summary``, ``.table()``, ``.curves()``, ``.unpaired``, ``.save(directory)``.

    Raises:
        InputError: a checkpoint cannot be read, nothing pairs, or `out` cannot be used.
        CheckFailed: `strict`, and tensors were left unpaired.
        UsageError: no run was given, or two runs have one label.

    >>> import torch, safetensors.torch
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name, value in (("a", 1.0), ("b", 1.5)):
    ...         weights = {"model.layers.0.mlp.up_proj.weight": torch.tensor([[value, 2.0], [3.0, 4.0]]).bfloat16()}
    ...         safetensors.torch.save_file(weights, f"{folder}/{name}.safetensors")
    ...     result = compare(f"{folder}/a.safetensors", [f"{folder}/b.safetensors"], geometry=False)
    >>> result.summary["runs"][0]["label"], result.summary["runs"][0]["sparsity_bf16"]
    ('b', 0.75)
    """
    survey = plan(base, tuned, Settings(seed, geometry, device, cache), trajectory=trajectory, offline=offline)
    if strict:
        refuse_unpaired(survey)
    directory = Path(out) if out is not None else Path(mkdtemp(prefix="offprincipal-"))
    result = Comparison(directory)
    if out is None:
        weakref.finalize(result, shutil.rmtree, directory, ignore_errors=True)
    store = Store(directory, survey.key)
    with store.locked():
        measure_missing(survey.tasks, store, engine, progress)
        write_results(directory, survey.base, survey.plans, survey.settings, survey.tasks, store, command)
    return result


def measure_shard(
    survey: Survey,
    out: str | Path,
    shards: int,
    index: int,
    *,
    engine: Engine = here,
    progress: Progress | None = None,
) -> int:
    """Measure one share of a comparison into `out`, parts only; `compare` with the same arguments then gathers them.

    Every job of an array divides the work alike, from headers: disjoint shares of about equal cost.

    Returns:
        How many tensors of the whole comparison are still missing.

    Raises:
        UsageError: no such shard.
        InputError: as for `compare`.
    """
    tasks = survey.tasks
    own = shard([(task, task.cost) for task in tasks], shards, index)
    store = Store(Path(out), survey.key)
    with store.locked(f"shard-{index}-of-{shards}"):
        measure_missing(own, store, engine, progress)
    return sum(task.name not in store for task in tasks)


def plan(
    base: str | Path,
    tuned: Sequence[str | Path] | Mapping[str, str | Path],
    settings: Settings | None = None,
    *,
    trajectory: bool = False,
    offline: bool = False,
) -> Survey:
    """Open every checkpoint by its headers and pair their tensors; no weight is read.

    With `trajectory` the runs are checkpoints of one run. An adapter is applied to the base that is given here.

    Raises:
        InputError: a checkpoint cannot be read, or nothing pairs.
        UsageError: no run was given, two runs have one label, or steps that do not rise.
    """
    runs = labelled(tuned)
    settings = replace(settings or Settings(), steps=steps_of(list(runs)) if trajectory else None)
    opened = open_checkpoint(base, offline=offline)
    plans = {label: pair(opened, open_checkpoint(ref, base=opened, offline=offline)) for label, ref in runs.items()}
    return Survey(opened, plans, settings)


def labelled(tuned: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, str | Path]:
    """Label to ref. Without a label, a run is called by the last part of its ref.

    >>> labelled(["runs/sft", "org/name@v2"])
    {'sft': 'runs/sft', 'name@v2': 'org/name@v2'}
    """
    if isinstance(tuned, Mapping):
        pairs = list(tuned.items())
    else:
        pairs = [(Path(str(ref).rstrip("/")).name.removesuffix(".safetensors") or str(ref), ref) for ref in tuned]
    if not pairs:
        raise UsageError("compare", "no tuned checkpoint was given", "name at least one beside the base")
    labels = [label for label, _ in pairs]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError("compare", f"two runs are called {twice[0]!r}", "label them: name=REF")
    return dict(pairs)


def refuse_unpaired(survey: Survey) -> None:
    """Fail when anything that training could change is not compared.

    Raises:
        CheckFailed: naming the run, the first such tensors and their reasons.
    """
    for label, each in survey.plans.items():
        left = [item for item in each.unpaired if not item.harmless]
        if left:
            first = "; ".join(f"{item.side} {item.tensor}: {item.reason}" for item in left[:3])
            raise CheckFailed(
                f"compare run {label!r} with --strict",
                f"{len(left)} tensors have no partner ({first}{'; ...' if len(left) > 3 else ''})",
                "compare without --strict to leave them out; unpaired.json lists them all",
            )


def on_this_machine(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """An engine: all cores, by processes where matrices are factored and that is worth their start, else by threads.

    Factoring fills a core per tensor and holds Python's lock between the products; counting hardly needs the lock.
    Starts processes: a script needs ``if __name__ == "__main__"``.
    """
    work: list[Task] = list(items)
    if not work or work[0].settings.device != "cpu":
        return here(function, work)
    settings = work[0].settings
    if not settings.geometry:
        return _one_thread_each(threads(function, work, os.cpu_count() or 1))
    worth = sum(task.cost for task in work) > WORTH_PROCESSES
    return processes(function, work, min(usual_jobs(), len(work)) if worth else 1)


def _one_thread_each(results: Iterator[Any]) -> Iterator[Any]:
    """Hold torch to one thread while results come in: the cores are filled by tensors."""
    from offprincipal.rows import one_thread

    with one_thread():
        yield from results


def measure_missing(tasks: Sequence[Task], store: Store, engine: Engine, progress: Progress | None) -> None:
    """Measure the tasks that the store does not hold yet, largest first, and store each as it finishes."""
    todo = [task for task in tasks if task.name not in store]
    done = len(tasks) - len(todo)
    if progress:
        progress(done, len(tasks), "")
    for name, part in engine(MEASURE, sorted(todo, key=lambda task: (-task.cost, task.name))):
        store.add(name, part)
        done += 1
        if progress:
            progress(done, len(tasks), name)
