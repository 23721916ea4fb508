"""``offprincipal adapter``."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from offprincipal.cli.answers import as_json, terminal


@click.group()
def adapter() -> None:
    """Adapters that begin by geometry and are plain LoRA everywhere (extra: offprincipal[train] for verify)."""


@adapter.command("init", epilog="Example: offprincipal adapter init Qwen/Qwen3-8B-Base --method off-principal -o init")
@click.argument("base")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--method", required=True, help="off-principal, geora, rlpo, rlmo, milora, pissa or lora; see docs/adapters.md."
)
@click.option("-r", "--rank", default=16, show_default=True, help="Rank of the method.")
@click.option("--alpha", type=float, help="B A is multiplied by alpha / rank; default: twice the rank.")
@click.option(
    "--target", default="all-linear", show_default=True, help="all-linear, or kinds and modules: q,v,up_proj."
)
@click.option(
    "-k", "--directions", default=64, show_default=True, help="off-principal: leading directions kept out of."
)
@click.option("--rho", default=0.2, show_default=True, help="geora: its quantile.")
@click.option("--seed", default=0, show_default=True, help="Of what is random.")
@click.option("-j", "--jobs", type=int, help="Worker processes; default: one per core if the work is worth it.")
@click.option(
    "--no-cache", "cache", is_flag=True, flag_value=False, default=True, help="Neither read nor keep factors."
)
@click.option("--offline", is_flag=True, help="Never ask the Hub; use what is in its cache.")
@click.option("--json", "json_", is_flag=True, help="Print offprincipal.json on stdout.")
def adapter_init(base: str, out: Path, directions: int, jobs: int | None, json_: bool, **options: Any) -> None:
    """Write a PEFT adapter for BASE that adds exactly zero at the start and leaves BASE as it is."""
    from offprincipal import fanout
    from offprincipal.terminal import notes, progress_bar
    from offprincipal.train.adapters import init_adapter, on_this_machine

    where = on_this_machine if jobs is None else fanout.engine("processes", jobs)
    with progress_bar("modules") as progress:
        made = init_adapter(base, out, k=directions, engine=where, progress=progress, command=_command(), **options)
    if json_:
        as_json(made.note)
    _say_left_out(made.note["left_out"])
    notes.print(f"{len(made.note['modules'])} modules; adapter: {made.folder}")


def _say_left_out(left_out: list[dict[str, str]]) -> None:
    """How many matrices are not adapted, one line per reason."""
    from offprincipal.terminal import notes

    for reason in sorted({each["reason"] for each in left_out}):
        names = [each["tensor"] for each in left_out if each["reason"] == reason]
        notes.print(f"left out: {len(names)} matrices such as {names[0]}: {reason}")


@adapter.command("export", epilog="Example: offprincipal adapter export runs/grpo/checkpoint-500 -o lora")
@click.argument("trained", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    help="The adapter as it began, where PEFT changed its base (pissa, ...).",
)
@click.option("--base", help="The original base, if TRAINED names another.")
@click.option("-r", "--rank", type=int, help="Shorten each module to this rank; exact without.")
@click.option("--json", "json_", is_flag=True, help="Print ranks and errors on stdout.")
def adapter_export(trained: Path, out: Path, json_: bool, **options: Any) -> None:
    """Write the TRAINED adapter as plain LoRA on the original base, and say how exact that is."""
    from offprincipal.terminal import notes, progress_bar, short
    from offprincipal.train.adapters import export_adapter

    with progress_bar("modules") as progress:
        made = export_adapter(trained, out, progress=progress, command=_command(), **options)
    summary = made.summary
    if json_:
        as_json({**summary, "relative_errors": dict(made.errors), "ranks": dict(made.ranks)})
    else:
        click.echo(f"{summary['modules']} modules, rank at most {summary['rank_max']}")
        click.echo(f"largest relative error of D: {short(summary['relative_error_max'])} in {summary['worst_module']}")
    notes.print(f"adapter: {made.folder}")


@adapter.command(
    "verify", epilog="Example: offprincipal adapter verify lora --base Qwen/Qwen3-8B-Base --merge-drift 1"
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--base", help="Its base; default: the one that it names.")
@click.option("--init", type=click.Path(path_type=Path), help="Where it began: its method's promise is checked.")
@click.option("--no-logits", "logits", is_flag=True, flag_value=False, default=True, help="Do not load the base.")
@click.option("--merge-drift", default=0, help="Merge and unmerge so many times; count the base weights that moved.")
@click.option("-j", "--jobs", type=int, help="Worker processes; default: one per core if the work is worth it.")
@click.option(
    "--no-cache", "cache", is_flag=True, flag_value=False, default=True, help="Neither read nor keep factors."
)
@click.option("--offline", is_flag=True, help="Never ask the Hub; use what is in its cache.")
@click.option("--json", "json_", is_flag=True, help="Print the numbers as JSON on stdout.")
def adapter_verify(folder: Path, jobs: int | None, json_: bool, **options: Any) -> None:
    """Check an adapter: read back through PEFT, a no-op at its start, off the subspaces it promised. Exit 1 if not."""
    from offprincipal import fanout
    from offprincipal.terminal import progress_bar
    from offprincipal.train.adapters import on_this_machine, verify_adapter

    where = on_this_machine if jobs is None else fanout.engine("processes", jobs)
    with progress_bar("modules") as progress:
        found = verify_adapter(folder, engine=where, progress=progress, **options)
    if json_:
        as_json(found.summary)
    else:
        _print_verified(found.summary)
    found.raise_if_failed()


def _print_verified(summary: Any) -> None:
    from rich.table import Table

    from offprincipal.terminal import percent, short

    table = Table(
        "check", "found", title=f"{summary['modules']} modules, rank {summary['rank']}", title_justify="left"
    )
    reload, energy = summary["reload"], summary["energy"]
    table.add_row("method", str(summary["method"] or "not recorded"))
    table.add_row("D is exactly zero", "yes: at its start" if summary["at_start"] else "no: trained")
    table.add_row(
        "D read back by PEFT", f"differs by {short(reload['difference_max'])} of {short(reload['delta_max'])}"
    )
    if "no_op" in summary:
        same = "identical, bit for bit" if summary["no_op"]["identical"] else short(summary["no_op"]["difference_max"])
        table.add_row("logits in float32", same)
    for side in ("left", "right"):
        if energy["modules_moved"]:
            share, chance = (percent(energy[f"{side}_{key}"]) for key in ("mean_unweighted", "chance"))
            table.add_row(
                f"energy of D in the {side} {energy['k_max']}", f"{share}, chance {chance} (mean of modules)"
            )
    if energy["modules_moved"] and summary["method"] == "off-principal":
        table.add_row("largest part of |D| in either", f"{short(energy['worst_root'])} in {energy['worst_module']}")
    if "merge_drift" in summary:
        drift = summary["merge_drift"]
        counted = f"{drift['moved']:,} of {drift['weights']:,} ({percent(drift['share'])})"
        what = f"{drift['cycles']} x merge and unmerge, {'/'.join(drift['dtypes'])}"
        table.add_row(what, f"{counted} moved, by at most {short(drift['largest'])}")
    terminal().print(table)


def _command() -> str:
    return shlex.join(["offprincipal", *sys.argv[1:]])
