"""What a person sees in the terminal: tables that always show the null beside the number, and progress."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from offprincipal import tables

notes = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
"""Everything that is not the machine's answer goes to stderr."""


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, a dash where there is none.

    >>> percent(0.1234), percent(None)
    ('12.3 %', '-')
    """
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def short(value: float | None) -> str:
    """Three significant digits, a dash where there is none.

    >>> short(0.00012345), short(None)
    ('0.000123', '-')
    """
    return "-" if value is None else f"{value:.3g}"


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal, a line per tenth of the work elsewhere."""
    if not notes.is_terminal:
        yield _lines(what)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total, name: bars.update(task, completed=done, total=total)


def _lines(what: str) -> Callable[[int, int, str], None]:
    said = {"tenth": -1}

    def tell(done: int, total: int, name: str) -> None:
        tenth = 10 * done // total if total else 10
        if tenth > said["tenth"]:
            said["tenth"] = tenth
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return tell


def titled_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None
) -> Table:
    """A table of this product: a bold title, the first column to the left, numbers to the right."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    return table


LAYER_LINES = 48
"""Tables by layer are printed while all runs together have at most so many lines (*ours*; the report has them all)."""


def print_comparison(summary: Mapping[str, Any], rows: pa.Table, console: Console) -> None:
    """The summary of a comparison: runs, then overlap with its nulls, then kinds and, if they are few, layers."""
    runs = summary["runs"]
    console.print(_changed_table(runs))
    for mask, title in (
        ("low", "the half with the smallest |W0|"),
        ("principal", "the half largest in the rank-64 part"),
    ):
        if any(f"overlap_{mask}" in run for run in runs):
            console.print(_overlap_table(runs, mask, title))
    if any(run.get("nss_mean") is not None for run in runs):
        console.print(_geometry_table(runs))
    if summary.get("consensus"):
        console.print(_consensus_table(summary["consensus"]))
    layers = {run["label"]: tables.grouped(tables.pick(rows, "run", run["label"]), "layer") for run in runs}
    few = sum(map(len, layers.values())) <= LAYER_LINES
    for label, by_layer in layers.items():
        console.print(_group_table(label, "kind", tables.grouped(tables.pick(rows, "run", label), "kind")))
        if few:
            console.print(_group_table(label, "layer", by_layer))
    if not few:
        console.print("by layer: too many lines for a screen; see report.html or tensors.parquet")
    left = [run for run in runs if run["unpaired_count"]]
    for run in left:
        console.print(f"{run['label']}: {run['unpaired_count']} tensors or parts not compared; see unpaired.json")


def _changed_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            run["label"],
            *(
                percent(run[key])
                for key in ("sparsity_bf16", "sparsity_bf16_linear", "sparsity_native", "sparsity_atol_1e-5")
            ),
            short(run["relative_delta_norm"]),
            f"{run['changed']:,} / {run['counted']:,}",
        ]
        for run in runs
    ]
    columns = (
        "run",
        "unchanged (bf16)",
        "linear only",
        "native dtype",
        "|D| <= 1e-5",
        "|D| / |W0|",
        "changed / counted",
    )
    return titled_table("What changed", columns, rows)


def _overlap_table(runs: Sequence[Mapping[str, Any]], mask: str, title: str) -> Table:
    name = f"overlap_{mask}"
    rows = [
        [
            run["label"],
            *(percent(run.get(key)) for key in (name, f"{name}_chance", f"{name}_rounding", f"{name}_matched")),
            excess_interval(run, name),
            short(run.get(f"{name}_excess_z")),
        ]
        for run in runs
    ]
    columns = ("run", "share of changes", "chance", "rounding null", "magnitude null", "excess, points", "z")
    caption = (
        "This mask is a function of |W0|, so the magnitude null equals the observation by construction: read the "
        "rounding null."
        if mask == "low"
        else None
    )
    return titled_table(f"Changes that fall into {title}", columns, rows, caption)


def excess_interval(run: Mapping[str, Any], name: str) -> str:
    """The excess of an overlap over its magnitude null in points, with its interval; a dash where there is none."""
    low, high = run.get(f"{name}_excess_low"), run.get(f"{name}_excess_high")
    if run.get(f"{name}_excess") is None:
        return "-"
    spread = "" if low is None or high is None else f" [{100 * low:+.2f}, {100 * high:+.2f}]"
    return f"{100 * run[f'{name}_excess']:+.2f}{spread}"


def _geometry_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for run in runs:
        angles = run.get("angle_max_deg") or {}
        angle = ", ".join(f"{short(value)} (k={k})" for k, value in angles.items() if value is not None)
        keys = ("nss_mean", "nss_max", "spectral_residual_mean", "kappa_spec_mean", "energy_principal_lift")
        rows.append([run["label"], *(short(run.get(key)) for key in keys), angle or "-"])
    columns = (
        "run",
        "NSS mean",
        "NSS max",
        "spectral residual",
        "kappa_spec",
        "energy lift",
        "largest angle, degrees",
    )
    return titled_table(
        "Spectrum and subspaces", columns, rows, "energy lift and kappa_spec are 1 for isotropic noise"
    )


def _consensus_table(consensus: Mapping[str, Any]) -> Table:
    keys = ("jaccard", "jaccard_bernoulli", "jaccard_matched", "excess_z")
    rows = [[f"{pair['a']}, {pair['b']}", *(short(pair[key]) for key in keys)] for pair in consensus["pairs"]]
    columns = ("runs", "Jaccard", "independent masks", "magnitude null", "z over magnitude")
    return titled_table("Which weights several runs changed alike (mean over linear matrices)", columns, rows)


def _group_table(label: str, by: str, groups: Sequence[Mapping[str, Any]]) -> Table:
    has = {mask for mask in ("low", "principal") if any(f"overlap_{mask}" in group for group in groups)}
    columns = [by, "tensors", "unchanged (bf16)", "|D| / |W0|"]
    for mask in ("low", "principal"):
        columns += [f"in {mask}", "rounding", "magnitude"] if mask in has else []
    rows = []
    for group in groups:
        value = "outside blocks" if group[by] is None else str(group[by])
        cells = [value, str(group["tensors"]), percent(group["sparsity_bf16"]), short(group["relative_delta_norm"])]
        for mask in ("low", "principal"):
            keys = (f"overlap_{mask}", f"overlap_{mask}_rounding", f"overlap_{mask}_matched")
            cells += [percent(group.get(key)) for key in keys] if mask in has else []
        rows.append(cells)
    return titled_table(f"{label}, by {by}", columns, rows)


def print_section(section: Mapping[str, Any], console: Console) -> None:
    """What the report shows of a probe or a forecast: its sentences, then its tables."""
    for words in section["sentences"]:
        console.print(words, style="dim")
    for found in section["tables"]:
        console.print(titled_table(found["title"], found["columns"], found["rows"], found.get("note") or None))


def print_description(description: Mapping[str, Any], console: Console, limit: int | None) -> None:
    """What ``inspect`` shows: totals, then the tensors."""
    model = description["model_type"] or "model type unknown"
    known = "" if description["family_known"] else " (no table for this family: tensors pair by name)"
    commit = f" at {description['commit']}" if description["commit"] else ""
    console.print(f"{description['ref']}{commit}: {description['kind']}, {model}{known}", style="bold")
    console.print(
        f"{description['parameters']:,} parameters, {description['nbytes']:,} bytes, "
        f"largest tensor {description['largest_nbytes']:,} bytes"
    )
    if description["tied"]:
        console.print(f"one weight, counted once: {', '.join(description['tied'])}")
    for title, key in (("by dtype", "by_dtype"), ("by kind", "by_kind")):
        rows = [
            [name, *(f"{total[part]:,}" for part in ("tensors", "parameters", "nbytes"))]
            for name, total in description[key].items()
        ]
        console.print(titled_table(title, (title.removeprefix("by "), "tensors", "parameters", "bytes"), rows))
    shown = description["rows"][:limit]
    rows = [
        [row["name"], "-" if row["layer"] is None else str(row["layer"]), row["kind"], row["dtype"],
         " x ".join(map(str, row["shape"])), f"{row['nbytes']:,}"]
        for row in shown
    ]  # fmt: skip
    console.print(titled_table("tensors", ("name", "layer", "kind", "dtype", "shape", "bytes"), rows))
    rest = len(description["rows"]) - len(shown)
    if rest:
        console.print(f"... and {rest} more; --all or --json shows them")


def print_cost(ref: str, lines: Sequence[tuple[str, str]], console: Console) -> None:
    """What ``inspect --plan`` shows: one line per number, estimates said to be estimates."""
    table = titled_table(
        f"comparing a tune with {ref}, estimated from headers", ("what", "how much"), [list(x) for x in lines]
    )
    table.columns[1].justify = "left"
    console.print(table)
