"""From folders to evidence: laboratories found, compared, measured matrix by matrix, and what lies beside them.

What it is: where the judge reads checkpoints. The runs of a laboratory are compared with `survey.compare` into
``OUT/compare/<name>``; nulls and controls of each matrix are kept in ``OUT/controls/<name>``. Both may be stopped and
go on. What it is not: a trainer. What is missing is left out; the claims say so.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offprincipal import survey
from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError
from offprincipal.fanout import Engine, here
from offprincipal.lab.claims.matrix import CURVES, Matrix, Roles, measure
from offprincipal.lab.claims.samples import REAL, Evidence, Seed
from offprincipal.pairs import Pair, pair
from offprincipal.results import Comparison
from offprincipal.rows import one_thread
from offprincipal.store import Store

VERSION = 1
"""Of the parts in ``OUT/controls``; it grows when matrices are measured otherwise."""


@dataclass(frozen=True)
class Item:
    """One matrix of one laboratory, to be loaded and measured wherever the engine puts it. Small and picklable."""

    pairs: Mapping[str, Pair]
    rows: Mapping[str, Mapping[str, Any]]
    roles: Roles
    seed: int

    def measured(self) -> tuple[str, dict[str, Any]]:
        """Its name, and what `matrix.measure` found."""
        first = next(iter(self.pairs.values()))
        after = {run: each.tuned.load() for run, each in self.pairs.items()}
        matrix = Matrix(
            first.name,
            first.place.kind,
            first.base.load(),
            after,
            self.roles,
            first.head_axis or 0,
            first.heads or 0,
            self.seed,
            self.rows,
        )
        with one_thread():
            return first.name, measure(matrix)


def gather(
    folders: Sequence[Path],
    out: Path,
    *,
    seed: int = 0,
    engine: Engine = here,
    progress: survey.Progress | None = None,
) -> Evidence:
    """Everything that the claims read from these folders.

    Args:
        folders: laboratories as ``lab run`` leaves them, or folders that hold several.
        out: where comparisons and measured controls are kept.
        seed: of nulls and controls.
        engine: where matrices are measured.
        progress: called after each matrix with how many of all are done, how many there are, and its laboratory.

    Raises:
        InputError: a folder does not exist, a checkpoint cannot be read, or two laboratories are no repetition.
    """
    labs = find(folders)
    _refuse_unlike(labs)
    names = _names(labs)
    plans = {lab: _plan(lab) for lab in labs}
    total = sum(len(plan) for plan in plans.values())
    seeds, done = [], 0
    for lab in labs:
        parts = []
        if plans[lab]:
            rows = _compared(lab, out / "compare" / names[lab], engine)
            items = [Item(pairs, rows.get(name, {}), _present(pairs), seed) for name, pairs in plans[lab].items()]
            for part in _measured(lab, items, out / "controls" / names[lab], seed, engine):
                parts.append(part)
                done += 1
                if progress:
                    progress(done, total, names[lab])
        order = {name: i for i, name in enumerate(plans[lab])}
        parts.sort(key=lambda part: order[part["tensor"]])
        seeds.append(Seed(names[lab], tuple(parts), records(lab), lab))
    asked = " ".join(str(folder) for folder in folders)
    return Evidence(tuple(seeds), tuple(arm_records(labs, names)), (), {}, asked, out)


def find(folders: Sequence[Path]) -> list[Path]:
    """The laboratories among these folders and directly inside them: a laboratory holds ``lab.json``."""
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                f"judge the claims in {str(folder)!r}", "there is no such folder", "run offprincipal lab run"
            )
        inside = [folder] if (folder / "lab.json").is_file() else sorted(folder.iterdir())
        found += [each for each in inside if (each / "lab.json").is_file()]
    return list(dict.fromkeys(each.resolve() for each in found))


def _refuse_unlike(labs: Sequence[Path]) -> None:
    """Two sizes of world do not average, and the same seed twice is no repetition."""
    marks = {lab: read_json(lab / "lab.json") for lab in labs}
    asked = "judge these laboratories together"
    presets = {(mark.get("preset") or {}).get("name"): str(lab) for lab, mark in marks.items()}
    if len(presets) > 1:
        raise InputError(asked, f"they have the presets {presets}", "give laboratories of one preset")
    numbers: dict[Any, Path] = {}
    for lab, mark in marks.items():
        other = numbers.setdefault(mark.get("seed"), lab)
        if other != lab:
            found = f"{str(other)!r} and {str(lab)!r} have the same seed {mark.get('seed')}"
            raise InputError(asked, found, "give repetitions: each with a seed of its own")


def _names(labs: Sequence[Path]) -> dict[Path, str]:
    return {lab: f"seed-{read_json(lab / 'lab.json').get('seed')}" for lab in labs}


def read_json(file: Path) -> Any:
    """A JSON file.

    Raises:
        InputError: it is torn.
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as problem:
        raise InputError(
            f"read {str(file)!r}", str(problem), "make it again: delete its folder and run the same command"
        ) from problem


def records(lab: Path) -> dict[str, Any]:
    """Stage to its ``run.json``, of the stages that are there."""
    return {file.parent.name: read_json(file) for file in sorted(lab.glob("*/run.json"))}


def arm_records(labs: Sequence[Path], names: Mapping[Path, str]) -> Iterator[dict[str, Any]]:
    """The records of ``lab arms``, each with the name of its laboratory and its folder."""
    for lab in labs:
        for file in sorted((lab / "arms").glob("*/lr-*/seed-*/run.json")):
            yield {**read_json(file), "lab": names[lab], "folder": file.parent}


def _plan(lab: Path) -> dict[str, dict[str, Pair]]:
    """Linear matrix to its pair in every run that is there, the float32 master where there is one."""
    if not (lab / "base").is_dir():
        return {}
    base, found = open_checkpoint(lab / "base"), {}
    for run, folder in weights(lab).items():
        for each in pair(base, open_checkpoint(folder, base=base)).pairs:
            if each.place.linear and len(each.shape) == 2:
                found.setdefault(each.name, {})[run] = each
    wanted = set(REAL.rl) & set(weights(lab))
    return {name: pairs for name, pairs in found.items() if wanted & set(pairs)}


def weights(lab: Path) -> dict[str, Path]:
    """Run to the folder of its finest weights."""
    runs = [run for run in (*REAL.rl, *REAL.sft) if (lab / run).is_dir()]
    return {run: lab / run / "master" if (lab / run / "master").is_dir() else lab / run for run in runs}


def _present(pairs: Mapping[str, Pair]) -> Roles:
    return Roles(tuple(run for run in REAL.rl if run in pairs), tuple(run for run in REAL.sft if run in pairs))


def _compared(lab: Path, out: Path, engine: Engine) -> dict[str, dict[str, dict[str, Any]]]:
    """Tensor to run to its columns, with the curves that claims read."""
    done: Comparison = survey.compare(lab / "base", weights(lab), out, engine=engine)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in done.table().to_pylist():
        if row["linear"] and row["out_features"] and row["energy_rank"]:
            found.setdefault(row["tensor"], {})[row["run"]] = {**row, "curves": {}}
    for point in done.curves(*CURVES).to_pylist():
        curves = found.get(point["tensor"], {}).get(point["run"], {}).get("curves")
        if curves is not None:
            x, y = curves.setdefault(point["curve"], [[], []])
            x.append(point["x"])
            y.append(point["y"])
    return found


def _measured(lab: Path, items: Sequence[Item], out: Path, seed: int, engine: Engine) -> Iterator[dict[str, Any]]:
    """Every matrix, from the store where it is there, else measured now and stored."""
    identities = {run: open_checkpoint(folder).identity() for run, folder in weights(lab).items()}
    identities["base"] = open_checkpoint(lab / "base").identity()
    store = Store(out, {"base": str(lab), "runs": identities, "seed": seed, "version": VERSION})
    with store.locked():
        todo = []
        for item in items:
            name = next(iter(item.pairs.values())).name
            part = store.get(name)
            if part is None:
                todo.append(item)
            else:
                yield part
        for name, part in engine(Item.measured, todo):
            store.add(name, part)
            yield part
