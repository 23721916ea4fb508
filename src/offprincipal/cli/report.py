"""``offprincipal report``."""

from pathlib import Path

import click

from offprincipal.cli.uncollected import uncollected


@click.command(epilog="Example: offprincipal report out/compare --figures paper/figures")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--figures", type=click.Path(path_type=Path), help="Also write every chart here as SVG and PDF.")
def report(directory: Path, figures: Path | None) -> None:
    """Draw DIRECTORY/report.html again from the tables of a comparison (extra: offprincipal[report])."""
    with uncollected():
        from offprincipal.report import draw
        from offprincipal.terminal import notes

        notes.print(f"report: {draw(directory, figures=figures)}")
