"""``offprincipal forecast``."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offprincipal.cli.answers import as_json, terminal

if TYPE_CHECKING:
    from offprincipal.forecast import Forecast


@click.command(epilog="Example: offprincipal forecast lab/base lab/rlvr-1/master --steps 60 -o out/forecast")
@click.argument("base")
@click.argument("tuned", required=False)
@click.option("--lr", type=float, help="Learning rate, taken as the size of every coordinate's step.")
@click.option("--steps", default=1, show_default=True, help="Steps of the update, or how many to foresee.")
@click.option("--optimizer", type=click.Path(), help="A state of Adam saved beside BASE: its last step is the update.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder for tables and charts; may be a comparison's."
)
@click.option("--offline", is_flag=True, help="Never ask the Hub; use what is in its cache.")
@click.option("--json", "json_", is_flag=True, help="Print forecast.json on stdout.")
def forecast(base: str, tuned: str | None, out: Path | None, json_: bool, **options: Any) -> None:
    """Say what fp32, fp16, bf16 and fp8 leave visible of an update (Gate III).

    The update is TUNED - BASE (TUNED: float32 master weights), the last step of --optimizer, or --lr with --steps.
    """
    from offprincipal import forecast as forecasts
    from offprincipal.terminal import notes, progress_bar

    command = shlex.join(["offprincipal", *sys.argv[1:]])
    with progress_bar("tensors") as progress:
        found = forecasts.forecast(base, tuned, progress=progress, command=command, **options)
    if out is not None:
        _save(found, out)
        notes.print(f"results: {out}")
    if json_:
        as_json(found.summary)
    else:
        _print(found)


def _save(found: "Forecast", out: Path) -> None:
    """Tables always; charts where the extra is installed."""
    from offprincipal.terminal import notes

    try:
        from offprincipal.report.ladder import forecast_charts
        from offprincipal.report.page import write_figures
    except ImportError as missing:
        notes.print(f"no charts: the package {missing.name!r} is not installed; pip install offprincipal[report]")
        found.save(out)
        return
    charts = forecast_charts(found.summary, found.curve)
    found.summary["section"]["charts"] = charts
    found.save(out)
    names = ("forecast-magnitude", "forecast-factor")
    write_figures({name: chart["spec"] for name, chart in zip(names, charts, strict=True)}, out)


def _print(found: "Forecast") -> None:
    from offprincipal.terminal import print_section

    section, console = found.summary["section"], terminal()
    console.print(section["title"], style="bold")
    print_section(section, console)
    left = found.summary["left_out"]
    missed = [item for item in left if not item.get("harmless")]
    if missed:
        first = missed[0]
        console.print(f"{len(missed)} tensors or parts left out, first {first['tensor']}: {first['reason']}")
