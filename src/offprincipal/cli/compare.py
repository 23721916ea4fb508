"""``offprincipal compare``."""

import shlex
import sys
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from offprincipal.cli.answers import as_json, terminal
from offprincipal.cli.uncollected import uncollected
from offprincipal.errors import UsageError


def run_labels(refs: tuple[str, ...]) -> dict[str, str]:
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


@click.command(epilog="Example: offprincipal compare runs/base sft=runs/sft rl=runs/rl -o out/compare")
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
    from offprincipal import fanout

    report = report and num_shards is None
    workers = engine == "processes" and options["geometry"] and options["device"] == "cpu"
    if workers:
        fanout.warm("offprincipal.worker", jobs)  # their imports take a second, which ours fill
        if report:
            _import_what_draws()
    with uncollected():
        from offprincipal import survey
        from offprincipal.terminal import notes, print_comparison, progress_bar

        if engine == "processes" and not workers:
            import_module(survey.MEASURE.module)

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
        if report and not workers:
            progress = _importing_what_draws(progress)
        command = shlex.join(["offprincipal", *sys.argv[1:]])
        result = survey.compare(
            base, run_labels(tuned), out, engine=where, progress=progress, command=command, **options
        )
    if json_:
        as_json(result.summary)
    else:
        print_comparison(result.summary, result.table(), terminal())
    notes.print(f"results: {result.directory}")
    if report:
        _draw_if_possible(result.directory)


def _importing_what_draws(progress: Any) -> Any:
    """The same progress; its first tensor starts the imports of the end, which take a second, beside the others."""
    waiting = [threading.Thread(target=_import_what_draws)]

    def told(done: int, total: int, name: str) -> None:
        if name and waiting:
            waiting.pop().start()
        progress(done, total, name)

    return told


def _import_what_draws() -> None:
    with uncollected(), suppress(UsageError):  # what is missing is said when it is time to draw
        import pyarrow

        from offprincipal.report.page import need_extra, template

        pyarrow.array([0])  # its first conversion imports pandas, where there is pandas
        need_extra()
        template()
        from offprincipal.report import parts  # noqa: F401


def _one_shard(
    base: str, tuned: tuple[str, ...], out: Path, share: tuple[int, int], where: Any, progress: Any, options: Any
) -> int:
    from offprincipal import survey
    from offprincipal.task import Settings

    settings = Settings(**{name: options[name] for name in ("seed", "geometry", "device", "cache")})
    planned = survey.plan(
        base, run_labels(tuned), settings, trajectory=options["trajectory"], offline=options["offline"]
    )
    if options["strict"]:
        survey.refuse_unpaired(planned)
    return survey.measure_shard(planned, out, *share, engine=where, progress=progress)


def _draw_if_possible(directory: Path) -> None:
    from offprincipal.report import draw
    from offprincipal.terminal import notes

    try:
        with uncollected():
            notes.print(f"report: {draw(directory)}")
    except UsageError as missing:
        notes.print(f"no report: {missing.found}; {missing.do_next}, then: offprincipal report {directory}")
