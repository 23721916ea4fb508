"""``offprincipal mask``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from offprincipal.cli.answers import as_json, terminal
from offprincipal.errors import UsageError

LISTED = 40
"""Matrices that a table lists; ``--json`` gives all."""

out_option = click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the new mask set."
)
json_option = click.option("--json", "json_", is_flag=True, help="Print as JSON on stdout.")
offline_option = click.option("--offline", is_flag=True, help="Never ask the Hub; use what is in its cache.")


@click.group()
def mask() -> None:
    """Masks as files: which weights to train, or which a run has changed."""


@mask.command("build", epilog="Example: offprincipal mask build Qwen/Qwen3-8B-Base --kind safe -o masks/safe")
@click.argument("base")
@click.argument("tuned", required=False)
@click.option(
    "--kind",
    type=click.Choice(["safe", "principal", "nonprincipal", "low", "random", "update"]),
    help="Which weights; default: safe, or update when TUNED is given.",
)
@out_option
@click.option("--rank", type=int, help="Of the principal mask, 1 to 512; default 64, at most half the short side.")
@click.option("--alpha", type=float, help="Fraction of each matrix in M_princ and M_low; default 0.5.")
@click.option("--density", type=float, help="Instead of alpha: the density that the mask of each matrix has.")
@click.option("--seed", type=int, help="Of a random mask; default 0.")
@click.option("--like", type=click.Path(path_type=Path), help="Random: as many ones in each matrix as these masks.")
@click.option("--include-all", is_flag=True, help="Every 2-D weight, embeddings and heads too; else inside blocks.")
@click.option("-j", "--jobs", type=int, help="Worker processes; default: one per core if the work is worth it.")
@click.option(
    "--engine",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Where the work is done.",
)
@click.option("--device", default="cpu", show_default=True, help="Where matrices are factored: cpu or cuda.")
@click.option(
    "--no-cache",
    "cache",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Neither read nor keep the base's factors.",
)
@offline_option
@json_option
def build(
    base: str,
    tuned: str | None,
    kind: str | None,
    out: Path,
    jobs: int | None,
    engine: str,
    json_: bool,
    **options: Any,
) -> None:
    """Choose a mask for every matrix of BASE, or mark what TUNED changed. Safe to stop and run again."""
    from offprincipal import fanout, survey
    from offprincipal.masksets import build_masks
    from offprincipal.terminal import progress_bar

    if engine == "ray":
        where = fanout.engine("ray", gpus_per_task=1 if options["device"] == "cuda" else 0)
    else:
        where = survey.on_this_machine if jobs is None else fanout.engine("processes", jobs)
    kind = kind or ("update" if tuned else "safe")
    with progress_bar("weights") as progress:
        masks = build_masks(base, out, kind, tuned=tuned, engine=where, progress=progress, **options)
    _tell(masks, json_)


@mask.command("show", epilog="Example: offprincipal mask show masks/safe --json")
@click.argument("masks", type=click.Path(path_type=Path))
@json_option
def show(masks: Path, json_: bool) -> None:
    """Show rule, base and densities of a mask set, from its header."""
    from offprincipal.masksets import MaskSet

    _tell(MaskSet.open(masks), json_, tensors=True)


@mask.command("overlap", epilog="Example: offprincipal mask overlap masks/principal masks/rl --base runs/base")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--base", help="The checkpoint both were made for: adds the magnitude and rounding nulls.")
@click.option("--seed", default=0, show_default=True, help="Of the rounding null.")
@offline_option
@json_option
def overlap(a: Path, b: Path, base: str | None, seed: int, offline: bool, json_: bool) -> None:
    """Show which share of mask B lies in mask A, and their Jaccard, beside what chance and magnitude would give."""
    from offprincipal import masksets
    from offprincipal.terminal import progress_bar

    with progress_bar("weights") as progress:
        found = masksets.overlap(a, b, base=base, seed=seed, offline=offline, progress=progress)
    if json_:
        as_json({"a": str(a), "b": str(b), "base": base, "seed": seed, **found.summary, "rows": list(found.rows)})
        return
    _print_overlap(found.summary, found.rows, base is not None)


@mask.command(
    "consensus",
    epilog="Example: offprincipal mask consensus masks/rl-1 masks/rl-2 masks/rl-3 --min-agree 2 -o masks/rl",
)
@click.argument("masks", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--min-agree", required=True, type=int, help="How many of them have to hold a weight.")
@click.option("--base", help="The checkpoint all were made for: adds the magnitude null.")
@out_option
@offline_option
@json_option
def consensus(
    masks: tuple[Path, ...], min_agree: int, base: str | None, out: Path, offline: bool, json_: bool
) -> None:
    """Keep the weights that at least so many of several masks hold, and say how many chance would give."""
    from offprincipal import masksets
    from offprincipal.terminal import progress_bar, titled_table

    with progress_bar("weights") as progress:
        made, times = masksets.consensus(masks, min_agree, out, base=base, offline=offline, progress=progress)
    if not json_:
        names = {"times": "weights", "times_chance": "independent masks", "times_matched": "magnitude null"}
        columns = ("held by", *(names[key] for key in times))
        lines = zip(*times.values(), strict=True)
        rows = [[str(t), *(f"{count:,.0f}" for count in line)] for t, line in enumerate(lines)]
        terminal().print(titled_table("How many of the masks hold a weight", columns, rows))
    _tell(made, json_, **times)


@mask.command("combine", epilog="Example: offprincipal mask combine masks/safe minus masks/low -o masks/rest")
@click.argument("words", nargs=-1, required=True, metavar="A and|or|minus B  |  not A")
@out_option
@json_option
def combine(words: tuple[str, ...], out: Path, json_: bool) -> None:
    """Make a new mask set out of one or two: A and B, A or B, A minus B, not A."""
    from offprincipal import masksets
    from offprincipal.terminal import progress_bar

    if len(words) == 2 and words[0] == "not":
        left, operation, right = words[1], "not", None
    elif len(words) == 3:
        left, operation, right = words
    else:
        found = f"{' '.join(words)!r} is neither A and|or|minus B nor not A"
        raise UsageError("combine masks", found, "name two mask sets and what joins them, or not and one")
    with progress_bar("weights") as progress:
        made = masksets.combine(left, operation, right, out, progress=progress)
    _tell(made, json_)


@mask.command("map-back", epilog="Example: offprincipal mask map-back masks/rl runs/permuted -o masks/rl-back")
@click.argument("masks", type=click.Path(path_type=Path))
@click.argument("transformed", type=click.Path(path_type=Path))
@click.option("--base", help="The original base; default: the one that TRANSFORMED was made from.")
@out_option
@offline_option
@json_option
def map_back(masks: Path, transformed: Path, base: str | None, out: Path, offline: bool, json_: bool) -> None:
    """Carry masks of a permuted base (transform permute) back to the original one.

    Not through a rotation: carry the run back (transform map-back), then build the update mask of the result.
    """
    from offprincipal import masksets
    from offprincipal.rewrite import Transform, read_record
    from offprincipal.terminal import progress_bar

    transform = Transform.load(transformed)
    origin = base or read_record(transformed)["base"]["ref"]
    with progress_bar("weights") as progress:
        made = masksets.map_back(masks, transformed, origin, transform, out, offline=offline, progress=progress)
    _tell(made, json_)


def _tell(masks: Any, json_: bool, tensors: bool = False, **more: Any) -> None:
    """Rule, base and densities of a set on stdout, and where it lies on stderr."""
    from offprincipal.masksets import densities
    from offprincipal.terminal import notes

    header, groups = masks.header, densities(masks)
    if json_:
        left = {key: header[key] for key in ("schema_version", "rule", "ones", "entries", "density", "left_out")}
        base = {key: header["base"].get(key) for key in ("ref", "commit")}
        each = {name: {**record, "density": masks.density(name)} for name, record in header["tensors"].items()}
        as_json(
            {"path": str(masks.path), "base": base, **left, **groups, **more} | ({"tensors": each} if tensors else {})
        )
    else:
        _print_set(header, groups)
    notes.print(f"masks: {masks.path}")


def _print_set(header: Mapping[str, Any], groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    from offprincipal.terminal import percent, titled_table

    console, rule = terminal(), header["rule"]
    words = ", ".join(f"{key} {_word(value)}" for key, value in rule.items() if key != "kind" and value is not False)
    console.print(
        f"{rule['kind']} masks for {header['base'].get('ref')}{f' ({words})' if words else ''}", style="bold"
    )
    console.print(f"{header['ones']:,} of {header['entries']:,} weights, {percent(header['density'], 2)}")
    for key, found in groups.items():
        title = key.removeprefix("by_")
        rows = [
            ["outside blocks" if group[title] is None else str(group[title]), f"{group['matrices']:,}",
             f"{group['weights']:,}", f"{group['ones']:,}", percent(group["density"], 2)]
            for group in found
        ]  # fmt: skip
        console.print(titled_table(f"by {title}", (title, "matrices", "weights", "ones", "density"), rows))
    for kind, left in header["left_out"].items():
        console.print(f"no mask: {left['tensors']:,} {kind}, {left['weights']:,} weights")


def _word(value: Any) -> str:
    """A constant as it is, another set or checkpoint by its path."""
    if isinstance(value, list):
        return " ".join(_word(each) for each in value)
    return str(value["ref"]) if isinstance(value, dict) else str(value)


def _print_overlap(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], matched: bool) -> None:
    from offprincipal.terminal import excess_interval, percent, short, titled_table

    console = terminal()
    keys = ["overlap", "overlap_chance", *(["overlap_rounding", "overlap_matched"] if matched else [])]
    names = ["B in A", "chance", *(["rounding null", "magnitude null", "excess, points", "z"] if matched else [])]
    cells = [percent(summary[key]) for key in keys]
    cells += [excess_interval(summary, "overlap"), short(summary["overlap_excess_z"])] if matched else []
    title = f"Share of B that lies in A, mean over {summary['matrices']} matrices"
    console.print(titled_table(title, (*names, "lift"), [[*cells, short(summary["lift"])]]))
    keys = ["jaccard", "jaccard_bernoulli", *(["jaccard_matched"] if matched else [])]
    names = ["Jaccard", "independent masks", *(["magnitude null"] if matched else [])]
    console.print(
        titled_table("Weights in both over weights in either", names, [[short(summary[key]) for key in keys]])
    )
    columns = ["matrix", "A", "B", "B in A", "chance", *(["magnitude null", "z"] if matched else []), "Jaccard"]
    console.print(titled_table("by matrix", columns, [_overlap_line(each, matched) for each in rows[:LISTED]]))
    if len(rows) > LISTED:
        console.print(f"... and {len(rows) - LISTED} more; --json shows them")


def _overlap_line(row: Mapping[str, Any], matched: bool) -> list[str]:
    from offprincipal.terminal import percent, short

    densities = [row[mask] / row["counted"] if row["counted"] else None for mask in ("a", "b")]
    line = [row["tensor"], *map(percent, (*densities, row["overlap"], row["overlap_chance"]))]
    if matched:
        expected = row["matched"] / row["b"] if row["b"] else None
        line += [percent(expected), short(row["excess_z"])]
    return [*line, short(row["jaccard"])]
