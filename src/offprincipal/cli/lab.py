"""``offprincipal lab``."""

from pathlib import Path

import click

from offprincipal.cli.answers import as_json


@click.group()
def lab() -> None:
    """The laboratory: a world small enough to know the answer (extra: offprincipal[lab])."""


@lab.command("run", epilog="Example: offprincipal lab run --preset tiny -o lab")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the checkpoints.")
@click.option("--preset", default="tiny", show_default=True, help="Size of the world: micro, tiny or small.")
@click.option("--seed", default=0, show_default=True, help="Decides problems, weights, order and samples.")
@click.option("--json", "json_", is_flag=True, help="Print every arm's record as JSON on stdout.")
def lab_run(out: Path, preset: str, seed: int, json_: bool) -> None:
    """Train a base and its arms (SFT, off-distribution SFT, two RLVR) into folders. Safe to stop and run again."""
    from offprincipal.lab.progress import show_progress
    from offprincipal.lab.run import run_lab
    from offprincipal.terminal import notes

    with show_progress(notes) as progress:
        run = run_lab(out, preset=preset, seed=seed, progress=progress)
    if json_:
        as_json(run.records)
    notes.print(f"checkpoints: {run.out}")
