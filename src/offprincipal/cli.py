"""The command line: parse, call one public function, print where the result lies."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from offprincipal import __version__
from offprincipal.errors import OffprincipalError, UsageError


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 a check failed, 2 usage, 3 input not readable, 130 stopped."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as problem:
        problem.show()
        sys.exit(problem.exit_code)
    except OffprincipalError as problem:
        print(f"offprincipal: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("offprincipal: stopped; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """What reinforcement learning does to the weights of a language model, measured.

    A checkpoint REF is a folder, a .safetensors file, a folder with an adapter, org/name, or org/name@revision.
    """


def _as_json(answer: Any) -> None:
    click.echo(json.dumps(answer, indent=1))


def _terminal() -> Any:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 140  # a file or a pipe has no width of its own
    return Console(width=width, highlight=False)


@cli.command(epilog="Example: offprincipal inspect Qwen/Qwen3-8B-Base --json")
@click.argument("ref")
@click.option("--json", "json_", is_flag=True, help="Print everything as JSON on stdout.")
@click.option("--all", "all_", is_flag=True, help="List every tensor, not only the first 40.")
@click.option("--plan", is_flag=True, help="Estimate what comparing it costs: bytes, flops, memory, hours.")
@click.option("--runs", default=1, show_default=True, help="With --plan: how many tuned checkpoints.")
@click.option("--offline", is_flag=True, help="Never ask the Hub; use what is in its cache.")
def inspect(ref: str, json_: bool, all_: bool, plan: bool, runs: int, offline: bool) -> None:
    """Show what a checkpoint holds, from its headers alone: no weight is read (on the Hub: range requests)."""
    from offprincipal.checkpoint import describe, open_checkpoint
    from offprincipal.terminal import print_cost, print_description

    checkpoint = open_checkpoint(ref, offline=offline)
    description = describe(checkpoint).to_dict()
    cost = None
    if plan:
        from offprincipal.cost import plan_cost

        cost = plan_cost(checkpoint, runs=runs)
    if json_:
        _as_json(description | ({"plan": cost.to_dict()} if cost else {}))
    elif cost:
        print_cost(ref, cost.lines(), _terminal())
    else:
        print_description(description, _terminal(), None if all_ else 40)


def _run_labels(refs: tuple[str, ...]) -> dict[str, str]:
    """``name=REF`` or ``REF``; a path that exists is never split at its equals sign."""
    from offprincipal.survey import labelled

    pairs = []
    for ref in refs:
        label, split, rest = ref.partition("=")
        named = bool(split) and bool(label) and "/" not in label and not Path(ref).exists()
        pairs.append((label, rest) if named else (next(iter(labelled([ref]))), ref))
    labels = [label for label, _ in pairs]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError("compare", f"two runs are called {twice[0]!r}", "label them: name=REF")
    return dict(pairs)


@cli.command(epilog="Example: offprincipal compare runs/base sft=runs/sft rl=runs/rl -o out/compare")
@click.argument("base")
@click.argument("tuned", nargs=-1, required=True, metavar="[LABEL=]TUNED...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for tables and report.")
@click.option("--trajectory", is_flag=True, help="The TUNED are steps of one run, in the order of training.")
@click.option("--no-geometry", "geometry", is_flag=True, flag_value=False, default=True, help="Count only.")
@click.option("--no-report", "report", is_flag=True, flag_value=False, default=True, help="Do not draw report.html.")
@click.option("-j", "--jobs", type=int, help="Worker processes; default: one per core if the work is worth it.")
@click.option(
    "--engine",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Where the work is done.",
)
@click.option("--num-shards", type=int, help="Of a job array: how many jobs share the work.")
@click.option("--shard-index", type=int, help="Which of them this is, from 0: measures its share, writes parts only.")
@click.option("--device", default="cpu", show_default=True, help="Where tensors are measured: cpu or cuda.")
@click.option("--seed", default=0, show_default=True, help="Seed of the simulated nulls.")
@click.option(
    "--no-cache",
    "cache",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Neither read nor keep the base's factors.",
)
@click.option("--strict", is_flag=True, help="Fail (exit 1) when any tensor is left unpaired.")
@click.option("--offline", is_flag=True, help="Never ask the Hub; use what is in its cache.")
@click.option("--json", "json_", is_flag=True, help="Print summary.json on stdout.")
def compare(
    base: str,
    tuned: tuple[str, ...],
    out: Path,
    report: bool,
    jobs: int | None,
    engine: str,
    num_shards: int | None,
    shard_index: int | None,
    json_: bool,
    **options: Any,
) -> None:
    """Measure how each TUNED checkpoint differs from BASE, tensor by tensor. Safe to stop and run again.

    Writes summary.json, tensors.parquet, curves.parquet, unpaired.json and report.html into the folder given with -o.
    """
    from offprincipal import fanout, survey
    from offprincipal.terminal import notes, print_comparison, progress_bar

    if engine == "ray":
        where = fanout.engine("ray", gpus_per_task=1 if options["device"] == "cuda" else 0)
    else:
        where = survey.on_this_machine if jobs is None else fanout.engine("processes", jobs)
    if (num_shards is None) != (shard_index is None):
        raise UsageError("compare one shard", "only one of --num-shards and --shard-index was given", "give both")
    with progress_bar("tensors") as progress:
        if num_shards is not None and shard_index is not None:
            left = _one_shard(base, tuned, out, (num_shards, shard_index), where, progress, options)
            notes.print(f"shard {shard_index} of {num_shards} is done; {left} tensors of the whole are missing")
            return
        command = shlex.join(["offprincipal", *sys.argv[1:]])
        result = survey.compare(
            base, _run_labels(tuned), out, engine=where, progress=progress, command=command, **options
        )
    if json_:
        _as_json(result.summary)
    else:
        print_comparison(result.summary, result.table(), _terminal())
    notes.print(f"results: {result.directory}")
    if report:
        _draw_if_possible(result.directory)


def _one_shard(
    base: str, tuned: tuple[str, ...], out: Path, share: tuple[int, int], where: Any, progress: Any, options: Any
) -> int:
    from offprincipal import survey
    from offprincipal.rows import Settings

    settings = Settings(**{name: options[name] for name in ("seed", "geometry", "device", "cache")})
    planned = survey.plan(
        base, _run_labels(tuned), settings, trajectory=options["trajectory"], offline=options["offline"]
    )
    if options["strict"]:
        survey.refuse_unpaired(planned)
    return survey.measure_shard(planned, out, *share, engine=where, progress=progress)


def _draw_if_possible(directory: Path) -> None:
    from offprincipal.report import draw
    from offprincipal.terminal import notes

    try:
        notes.print(f"report: {draw(directory)}")
    except UsageError as missing:
        notes.print(f"no report: {missing.found}; {missing.do_next}, then: offprincipal report {directory}")


@cli.command(epilog="Example: offprincipal report out/compare --figures paper/figures")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--figures", type=click.Path(path_type=Path), help="Also write every chart here as SVG and PDF.")
def report(directory: Path, figures: Path | None) -> None:
    """Draw DIRECTORY/report.html again from the tables of a comparison (extra: offprincipal[report])."""
    from offprincipal.report import draw
    from offprincipal.terminal import notes

    notes.print(f"report: {draw(directory, figures=figures)}")


@cli.command(epilog="Example: offprincipal cache --clear")
@click.option("--clear", is_flag=True, help="Delete every cached factor.")
@click.option("--json", "json_", is_flag=True, help="Print as JSON on stdout.")
def cache(clear: bool, json_: bool) -> None:
    """Show, or clear, the cached factors of base matrices."""
    from offprincipal.factors import FactorCache

    store = FactorCache()
    files, size = store.size()
    freed = store.clear() if clear else 0
    if json_:
        _as_json({"folder": str(store.folder), "matrices": files, "bytes": size, "freed": freed})
    elif clear:
        click.echo(f"cleared {files} matrices, {freed:,} bytes, in {store.folder}")
    else:
        click.echo(f"{files} matrices, {size:,} bytes, in {store.folder}")


@cli.group()
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
        _as_json(run.records)
    notes.print(f"checkpoints: {run.out}")
