"""``offprincipal lab``."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from offprincipal.cli.answers import as_json, terminal
from offprincipal.errors import UsageError


@click.group()
def lab() -> None:
    """The laboratory: a world small enough to know the answer (extra: offprincipal[lab])."""


_MINUTES = click.option(
    "--minutes", type=float, help="Stop cleanly after so many (exit 130); the same command goes on there."
)


@lab.command("run", epilog="Example: offprincipal lab run --preset tiny -o lab")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the checkpoints.")
@click.option("--preset", default="tiny", show_default=True, help="Size of the world: micro, mini, tiny or small.")
@click.option("--seed", default=0, show_default=True, help="Decides problems, weights, order and samples.")
@click.option("--intervene", is_flag=True, help="Then RLVR again from a rotated and a permuted base, and compare.")
@click.option("--neurons", is_flag=True, help="With --intervene: a third base, its MLP neurons in another order.")
@_MINUTES
@click.option("--json", "json_", is_flag=True, help="Print every arm's record as JSON on stdout.")
def lab_run(
    out: Path, preset: str, seed: int, intervene: bool, neurons: bool, minutes: float | None, json_: bool
) -> None:
    """Train a base and its arms (SFT, off-distribution SFT, two RLVR) into folders. Safe to stop and run again."""
    from offprincipal.lab.progress import show_progress
    from offprincipal.lab.run import run_lab
    from offprincipal.terminal import notes

    if neurons and not intervene:
        raise UsageError("permute neurons", "--neurons was given alone", "give --intervene as well")
    if intervene:
        _intervene(out, json_, preset=preset, seed=seed, neurons=neurons, minutes=minutes)
        return
    with show_progress(notes) as progress:
        run = run_lab(out, preset=preset, seed=seed, progress=progress, minutes=minutes)
    if json_:
        as_json(run.records)
    notes.print(f"checkpoints: {run.out}")


def _intervene(out: Path, json_: bool, **options: Any) -> None:
    """The laboratory with its interventions, and their table."""
    from offprincipal.lab.intervene import run_interventions
    from offprincipal.lab.overlaps import print_interventions
    from offprincipal.lab.progress import show_progress
    from offprincipal.terminal import notes

    with show_progress(notes) as progress:
        run = run_interventions(out, progress=progress, **options)
    if json_:
        as_json({**run.lab.records, "interventions": run.answer})
    else:
        print_interventions(run.answer, terminal())
    notes.print(f"checkpoints: {run.lab.out}")
    notes.print(f"interventions: {run.out / 'interventions.json'}")


def _list(kind: type) -> Any:
    """A click callback that reads ``a,b,c`` as values of this kind."""

    def read(context: click.Context, option: click.Parameter, text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
        except ValueError as problem:
            raise click.BadParameter(f"{text!r} is not a list of numbers ({problem})", context, option) from None

    return read


@lab.command("arms", epilog="Example: offprincipal lab arms --arms dense,safe,random,lora --seeds 0,1,2 -o lab")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of a laboratory, or new.")
@click.option("--preset", default="tiny", show_default=True, help="Size of the world: micro, mini, tiny or small.")
@click.option("--seed", default=0, show_default=True, help="Of the laboratory: decides problems and base.")
@click.option("--arms", default="", callback=_list(str), help="Which, with commas between; default: all of them.")
@click.option("--lr", "learning_rates", default="", callback=_list(float), help="Learning rates to try with each arm.")
@click.option("--seeds", default="0", show_default=True, callback=_list(int), help="Seeds of the runs.")
@click.option("--rank", default=8, show_default=True, help="Of the adapters.")
@click.option("-j", "--jobs", default=1, show_default=True, help="Worker processes, one run and one thread each.")
@_MINUTES
@click.option("--json", "json_", is_flag=True, help="Print the ranking as JSON on stdout.")
def lab_arms(out: Path, json_: bool, arms: tuple[str, ...], **options: Any) -> None:
    """RLVR from one base, by other rules about which weights may move: dense, masked, adapters. Safe to run again.

    Arms: dense; linear, safe, principal, nonprincipal, low, random (masks); lora, lora-1 (of rank 1), dora, pissa,
    milora, geora, rlpo, rlmo, off-principal (adapters); only if named random-2 to random-5, other draws of random.
    Each is checked to have trained what it says, and fails (exit 1) if it has not.
    """
    from offprincipal.lab.arms import run_arms
    from offprincipal.lab.kinds import ARMS
    from offprincipal.lab.progress import show_progress
    from offprincipal.lab.ranking import print_ranking
    from offprincipal.terminal import notes

    with show_progress(notes) as progress:
        run = run_arms(out, arms=arms or ARMS, progress=progress, **options)
    if json_:
        as_json(run.ranking)
    else:
        print_ranking(run.ranking, terminal())
    notes.print(f"arms: {run.out}")


@lab.command("matched", epilog="Example: offprincipal lab matched lab -o out/claims -j 2")
@click.argument("directories", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder of matched.json; default: DIR/claims.")
@click.option(
    "--algorithms", default="", callback=_list(str), help="Which, with commas between; default: all of them."
)
@click.option("-j", "--jobs", type=int, help="Worker processes, one thread each; default: one per core.")
@_MINUTES
@click.option("--json", "json_", is_flag=True, help="Print matched.json on stdout.")
def lab_matched(
    directories: tuple[Path, ...],
    out: Path | None,
    algorithms: tuple[str, ...],
    jobs: int | None,
    minutes: float | None,
    json_: bool,
) -> None:
    """Other algorithms beside RLVR at equal learning rate, accuracy, KL and norm. Safe to stop and run again.

    DIR is what lab run left, or a folder of several; into each go runs of rlvr, rejection (SFT on the base's own right
    answers), sft, sft-off (a format that the base never wrote), rlvr-bf16 (stored in bfloat16) and rlvr-sgd, at 1, 3
    and 10 times the rate of RLVR, and at its rate rlvr-math and rlvr-code (one family of problems) and rlvr-batch
    (advantages scaled over the batch). Writes matched.json; lab claims on the same folder judges D4, S2 and L7.
    """
    from offprincipal import fanout
    from offprincipal.lab.claims.matching import study
    from offprincipal.lab.courses import ALGORITHMS
    from offprincipal.lab.matched import print_matched, run_matched, write
    from offprincipal.lab.progress import show_progress
    from offprincipal.terminal import notes

    target = out or directories[0] / "claims"
    engine = fanout.engine("processes", fanout.usual_jobs() if jobs is None else jobs)
    with show_progress(notes) as progress:
        which = algorithms or ALGORITHMS
        labs = run_matched(directories, algorithms=which, engine=engine, progress=progress, minutes=minutes)
    answer = study(labs)
    assert answer is not None  # every laboratory has its courses now
    written = write(answer, target)
    if json_:
        as_json(answer)
    else:
        print_matched(answer, terminal())
    notes.print(f"matched: {written}")


@lab.command("claims", epilog="Example: offprincipal lab claims lab/seed-0 lab/seed-1 lab/seed-2 -o out/claims")
@click.argument("directories", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder of the scoreboard; default: DIR/claims.")
@click.option("--seed", default=0, show_default=True, help="Of the nulls and controls.")
@click.option("-j", "--jobs", type=int, help="Worker processes; default: one per core.")
@click.option("--publish", type=click.Path(path_type=Path), help="Also write page, data and figures into this folder.")
@click.option("--json", "json_", is_flag=True, help="Print claims.json on stdout.")
def lab_claims(
    directories: tuple[Path, ...], out: Path | None, seed: int, jobs: int | None, publish: Path | None, json_: bool
) -> None:
    """Judge the paper's claims on laboratories, one seed each: every number beside its null and its controls.

    DIR is what lab run left, or a folder of several. Writes claims.json and claims.md. Safe to stop and run again.
    """
    from offprincipal import fanout
    from offprincipal.lab.claims import judge_claims
    from offprincipal.lab.claims.scoreboard import print_scoreboard
    from offprincipal.terminal import notes, progress_bar

    target = out or directories[0] / "claims"
    engine = fanout.engine("processes", fanout.usual_jobs() if jobs is None else jobs)
    command = shlex.join(["offprincipal", *sys.argv[1:]])
    with progress_bar("matrices") as progress:
        answer = judge_claims(directories, target, seed=seed, engine=engine, progress=progress, command=command)
    if json_:
        as_json(answer)
    else:
        print_scoreboard(answer, terminal())
    notes.print(f"claims: {target / 'claims.md'}")
    if publish:
        _publish(answer, directories, target, publish, engine)
        notes.print(f"study: {publish / 'README.md'}")


def _publish(answer: dict[str, Any], directories: tuple[Path, ...], target: Path, out: Path, engine: Any) -> None:
    """The study as a folder, without the folders of this machine."""
    from offprincipal.lab import coordinates
    from offprincipal.lab.claims import matching
    from offprincipal.lab.claims.scoreboard import markdown
    from offprincipal.lab.travel import study
    from offprincipal.report.study import publish

    hide = {lab["folder"]: f"lab/{lab['name']}" for lab in answer["laboratories"]}
    hide |= {str(folder.resolve()): "lab" for folder in directories} | {str(target.resolve()): "out/claims"}
    hide |= {str(out.resolve()): "docs/results"}
    arms, moved = study(directories, target, engine=engine), coordinates.study(directories)
    matched = matching.study(directories)
    publish(answer, markdown(answer), arms, out, hide=hide, moved=moved, matched=matched)
