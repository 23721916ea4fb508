"""``offprincipal probe``."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from offprincipal.cli.answers import as_json, terminal
from offprincipal.cli.compare import run_labels


@click.group()
def probe() -> None:
    """The gates measured on a model and prompts (extra: offprincipal[hf])."""


def common(prompts_required: bool) -> Callable[[Any], Any]:
    """The arguments and options that every probe has."""
    parts = [
        click.argument("base"),
        click.argument("tuned", nargs=-1, required=True, metavar="[LABEL=]TUNED..."),
        click.option(
            "--prompts",
            required=prompts_required,
            type=click.Path(),
            help="A .txt file of prompts, or a .jsonl file of prompt and completion.",
        ),
        click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the results."),
        click.option("--device", default="cpu", show_default=True, help="Where the models compute: cpu or cuda."),
        click.option("--seed", default=0, show_default=True, help="Seed of everything random."),
        click.option("--json", "json_", is_flag=True, help="Print the result as JSON on stdout."),
    ]

    def decorate(command: Any) -> Any:
        for part in reversed(parts):
            command = part(command)
        return command

    return decorate


@probe.command(
    "kl", epilog="Example: offprincipal probe kl runs/base rl=runs/rl --prompts held-out.jsonl -o out/compare"
)
@common(prompts_required=False)
@click.option("--sample", default=0, help="Score this many continuations of each prompt (without --prompts: so many).")
@click.option(
    "--sampled-by", type=click.Choice(["tuned", "base"]), default="tuned", show_default=True, help="Who writes them."
)
@click.option("--max-new-tokens", default=128, show_default=True, help="Length of a continuation at most.")
@click.option("--batch", default=8, show_default=True, help="Texts at a time.")
def probe_kl(**options: Any) -> None:
    """Gate I: exact token KL and total variation between BASE and each TUNED. Steps of one run give its step KL."""
    from offprincipal.probes.kl import measure_kl

    _run(measure_kl, options)


@probe.command(
    "curvature",
    epilog="Example: offprincipal probe curvature runs/base rl=runs/rl --prompts held-out.jsonl -o out/compare",
)
@common(prompts_required=True)
@click.option("--batches", default=16, show_default=True, help="Into how many the texts are dealt, for the interval.")
@click.option("--draws", default=5, show_default=True, help="Random directions per matrix.")
@click.option("--rank", default=64, show_default=True, help="Of the principal subspace; at most half the short side.")
@click.option("--matrices", type=int, help="Only so many matrices, spread over the model; default: all.")
def probe_curvature(**options: Any) -> None:
    """Gate II: curvature of the base's loss along the update, on and off what is principal, and at random."""
    from offprincipal.probes.curvature import measure_curvature

    _run(measure_curvature, options)


@probe.command(
    "fisher", epilog="Example: offprincipal probe fisher runs/base rl=runs/rl --prompts held-out.jsonl -o out/compare"
)
@common(prompts_required=True)
@click.option("--halvings", default=8, show_default=True, help="How often the step is halved from t = 1.")
@click.option("--batch", default=8, show_default=True, help="Texts at a time.")
def probe_fisher(**options: Any) -> None:
    """Gate I in the small: the quadratic form D'FD/2 of the update D against the KL of the step t D."""
    from offprincipal.probes.fisher import measure_fisher

    _run(measure_fisher, options)


def _run(measure: Callable[..., dict[str, Any]], options: dict[str, Any]) -> None:
    from offprincipal.probes.models import need_extra
    from offprincipal.terminal import notes, print_section, progress_bar

    need_extra()
    base, out, json_ = (options.pop(name) for name in ("base", "out", "json_"))
    tuned = run_labels(options.pop("tuned"))
    with progress_bar("probe") as progress:
        command = shlex.join(["offprincipal", *sys.argv[1:]])
        found = measure(base, tuned, out, progress=progress, command=command, **options)
    if json_:
        as_json(found)
    else:
        print_section(found["section"], terminal())
    notes.print(f"results: {out / ('probe-' + found['probe'] + '.json')}")
    if (out / "summary.json").is_file():
        notes.print(f"the report of this comparison can show it: offprincipal report {out}")
