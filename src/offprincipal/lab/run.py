"""``offprincipal lab run``: the base and its four arms, one folder each. Safe to stop and run again."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import offprincipal
from offprincipal.errors import InputError, UsageError
from offprincipal.lab.judge import compare_arms, write_held_out
from offprincipal.lab.parts import check, kept_in, limit
from offprincipal.lab.pretrain import pretrain
from offprincipal.lab.progress import Progress, silent
from offprincipal.lab.quiet import quiet, stage_seed
from offprincipal.lab.rlvr import reinforce
from offprincipal.lab.settings import Preset, find_preset
from offprincipal.lab.sft import tune_on_answers
from offprincipal.lab.world import load_arm, save_arm

ARMS = {"sft": tune_on_answers, "sft-off": tune_on_answers, "rlvr-1": reinforce, "rlvr-2": reinforce}
STAGES = ("base", *ARMS)
HELD_OUT = "held-out.jsonl"
NEEDED = ("transformers", "trl", "datasets", "accelerate")


@dataclass(frozen=True)
class LabRun:
    """Where the laboratory lies: its folder, preset and seed, and per stage the folder and the content of run.json."""

    out: Path
    preset: Preset
    seed: int
    folders: dict[str, Path]
    records: dict[str, dict[str, Any]]


def run_lab(
    out: Path,
    preset: str | Preset = "tiny",
    seed: int = 0,
    progress: Progress = silent,
    *,
    minutes: float | None = None,
) -> LabRun:
    """Train the base and its arms into ``out``, skipping what is finished there.

    ``out/<stage>/`` is a Hugging Face folder in bfloat16 with its float32 weights in ``master/`` and its settings,
    versions and measurements in ``run.json``; stages are base, sft, sft-off, rlvr-1, rlvr-2. ``held-out.jsonl`` has
    the held-out problems with worked answers, for ``probe --prompts``. Every arm starts at the base as it is stored,
    in bfloat16. On one machine with the same number of threads, the same preset and seed give the same weights,
    stopped in between or not.

    Args:
        out: the folder; made if it is missing.
        preset: a name of `offprincipal.lab.settings.PRESETS`, or a preset of your own.
        seed: decides problems, first weights, order and samples, each through a hash with the stage's name.
        progress: called as ``progress(stage, done, total)`` after every step.
        minutes: stop after so many, at the end of a step; the same call goes on there (`parts`).

    Raises:
        UsageError: an unknown preset, or the extra ``lab`` is not installed.
        InputError: ``out`` holds something else, such as a run of another preset or seed, or cannot be written.
        parts.Stopped: the minutes are over.
    """
    out = Path(out)
    with limit(minutes):
        settings = open_lab(out, preset, seed, progress)
        for stage in ARMS:
            if not (out / stage).exists():
                _run_stage(out, stage, settings, seed, progress)
    write_held_out(out / HELD_OUT, settings, data_seed=seed)
    folders = {stage: out / stage for stage in STAGES}
    records = {stage: json.loads((folder / "run.json").read_text()) for stage, folder in folders.items()}
    return LabRun(out, settings, seed, folders, records)


def open_lab(out: Path, preset: str | Preset, seed: int, progress: Progress, needed: Sequence[str] = NEEDED) -> Preset:
    """Claim the folder for this preset and seed, train the base unless it is there, and return the settings.

    Raises:
        UsageError: an unknown preset, or one of the packages `needed` is not installed.
        InputError: ``out`` holds something else, or cannot be written.
    """
    settings = find_preset(preset) if isinstance(preset, str) else preset
    need_extra(needed)
    asked = f"run the laboratory in {str(out)!r}"
    claim(out, "lab.json", {"schema_version": 1, "seed": seed, "preset": dataclasses.asdict(settings)}, asked)
    if not (out / "base").exists():
        _run_stage(out, "base", settings, seed, progress)
    return settings


def need_extra(needed: Sequence[str] = NEEDED) -> None:
    """Refuse to begin without these packages of the extra ``lab``."""
    for name in needed:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            do_next = "install the extra: pip install offprincipal[lab]"
            raise UsageError("run the laboratory", f"{name} is not installed", do_next) from None


def claim(out: Path, mark_name: str, wanted: dict[str, Any], asked: str) -> None:
    """Write what a folder is for into a file in it, or check that it is for this.

    Raises:
        InputError: it is for something else, holds something else, or cannot be written.
    """
    mark = out / mark_name
    try:
        out.mkdir(parents=True, exist_ok=True)
        if mark.exists():
            found = json.loads(mark.read_text())
        elif any(out.iterdir()):
            raise InputError(asked, "the folder holds something else", "give an empty or a new folder")
        else:
            partial = out / f".{mark_name}.partial"
            partial.write_text(json.dumps(wanted, indent=1) + "\n")
            partial.rename(mark)
            return
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(asked, str(error), "give a folder that can be written") from error
    if found != wanted:
        made = f"it was made with other settings ({_settings(found)})"
        raise InputError(asked, made, "give another folder, or the same settings to go on")


def _settings(found: Any) -> str:
    """The settings in a mark, in words; a preset by its name."""
    if not isinstance(found, dict):
        return "none that can be read"
    named = {key: value.get("name") if isinstance(value, dict) else value for key, value in sorted(found.items())}
    return ", ".join(f"{key} {value!r}" for key, value in named.items() if key != "schema_version")


def _run_stage(out: Path, stage: str, preset: Preset, seed: int, progress: Progress) -> None:
    """Train one stage of the laboratory."""
    own = stage_seed(seed, stage)

    def train() -> tuple[Any, Any]:
        if stage == "base":
            return pretrain(preset, seed=own, data_seed=seed, progress=progress)
        model, tokenizer = load_arm(out / "base")
        ARMS[stage](model, tokenizer, preset, arm=stage, seed=own, data_seed=seed, progress=progress)
        return model, tokenizer

    write_stage(out / stage, None if stage == "base" else out / "base", train, preset, seed=seed, own=own)


def write_stage(
    folder: Path, base: Path | None, train: Callable[[], tuple[Any, Any]], preset: Preset, *, seed: int, own: int
) -> None:
    """Train, judge and write one stage; it appears under its name only when it is whole.

    A stage that was stopped goes on where it was (`parts`); its seconds are then those of the last part.

    Args:
        folder: of the stage, named like it.
        base: which it is judged against; None for itself.
        train: gives model and tokenizer; called with the global generators seeded by `own`.
        preset: of the laboratory.
        seed: of the laboratory.
        own: seed of the stage.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    started = time.monotonic()
    check(folder.name, "before it began")
    with kept_in(folder.with_name(f".{folder.name}.training")):
        with quiet(own):
            model, tokenizer = train()
            trained = time.monotonic()
            save_arm(model, tokenizer, partial)
            record = {
                "stage": folder.name,
                "seed": seed,
                "stage_seed": own,
                "settings": dataclasses.asdict(preset),
                "versions": versions(),
                "threads": torch.get_num_threads(),
                "parameters": model.num_parameters(),
                "seconds_training": round(trained - started, 1),
                **compare_arms(base or partial, partial, preset, data_seed=seed),
                "seconds": round(time.monotonic() - started, 1),
            }
        (partial / "run.json").write_text(json.dumps(record, indent=1) + "\n")
        os.replace(partial, folder)


def versions() -> dict[str, str]:
    """Of everything that decides the numbers."""
    packages = ("torch", *NEEDED, "tokenizers", "safetensors", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"offprincipal": offprincipal.__version__, "python": platform.python_version(), **found}
