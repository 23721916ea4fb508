"""``offprincipal reproduce``."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offprincipal.cli.answers import as_json, terminal
from offprincipal.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from offprincipal.reproduce import Reproduction


@click.command(epilog="Example: offprincipal reproduce deepscaler -o out/deepscaler --free-disk")
@click.argument("name", required=False)
@click.option("--list", "list_", is_flag=True, help="List the registry, with what is known of each entry's ids.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for the comparison.")
@click.option("--geometry", is_flag=True, help="Factorise as well; the published sparsities need counts only.")
@click.option(
    "--free-disk", is_flag=True, help="Delete each weight file after its last use, if this run downloaded it."
)
@click.option("--offline", is_flag=True, help="Never ask the Hub; use what is in its cache.")
@click.option("--json", "json_", is_flag=True, help="Print as JSON on stdout.")
def reproduce(name: str | None, list_: bool, out: Path | None, json_: bool, **options: Any) -> None:
    """Measure a published pair again from the Hub and hold it against what was published.

    Exit code 1 when a number lies outside its tolerance. Safe to stop and run again.
    """
    from offprincipal import reproduce as reproducing
    from offprincipal.terminal import notes, progress_bar

    if list_:
        _list(json_)
        return
    if name is None or out is None:
        missing = "no name was given" if name is None else "no folder was given"
        raise UsageError("reproduce", missing, "offprincipal reproduce NAME -o DIR; --list shows the names")
    entry = reproducing.find(name)
    if entry.note:
        notes.print(f"{entry.name} ({entry.ids}): {entry.note}")
    command = shlex.join(["offprincipal", *sys.argv[1:]])
    with progress_bar("tensors") as progress:
        done = reproducing.reproduce(entry, out, progress=progress, command=command, **options)
    if json_:
        as_json(done.to_dict())
    else:
        _print(done)
    notes.print(f"results: {done.comparison.directory}")
    if done.failed:
        first = done.failed[0]
        observed = "nothing" if first.observed is None else f"{first.observed:.4f}"
        raise CheckFailed(
            f"reproduce {entry.name!r}",
            f"{len(done.failed)} of {len(done.checks)} numbers lie outside their tolerance, first "
            f"{first.expected.what}: observed {observed}, {first.expected.source} says {first.expected.value:g}",
            "compare ids, revisions and what was counted (docs/reproduce.md)",
        )


def _list(json_: bool) -> None:
    from dataclasses import asdict

    from offprincipal.reproduce import registry

    entries = registry().values()
    if json_:
        as_json([asdict(entry) for entry in entries])
        return
    rows = []
    for entry in entries:
        told = "; ".join(f"{each.what} {each.value:g}" for each in entry.expected if each.decides)
        pair = f"{entry.base} -> {', '.join(ref or '?' for ref in entry.runs.values())}"
        rows.append([entry.name, entry.table, entry.ids, pair, told or "-"])
    terminal().print(_table("Public pairs", ("name", "table", "ids", "pair", "published"), rows))


def _print(done: "Reproduction") -> None:
    summary, rows = done.comparison.summary, []
    for check in done.checks:
        each, seen = check.expected, check.observed
        verdict = ("inside" if check.inside else "outside") if each.decides else "(second source)"
        cells = [each.what, "-" if seen is None else f"{seen:.4f}", f"{each.value:.4f}"]
        cells += ["-" if seen is None else f"{seen - each.value:+.4f}", f"{each.tolerance:g}", each.source, verdict]
        rows.append(cells)
    columns = ("number", "observed", "expected", "difference", "tolerance", "source", "")
    if rows:
        terminal().print(_table(f"{done.entry.name}: {done.entry.algorithm}", columns, rows))
    keys = ("sparsity_bf16", "sparsity_bf16_linear", "sparsity_native", "sparsity_atol_1e-5")
    measured = [[run["label"], run["ref"], run["commit"] or "-", *(f"{run[key]:.4f}" for key in keys)]
                for run in summary["runs"]]  # fmt: skip
    terminal().print(_table("What was measured", ("run", "ref", "commit", *keys), measured))


def _table(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
