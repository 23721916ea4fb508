"""Where answers go: JSON or tables on stdout, everything else on stderr (``terminal.notes``)."""

import json
import sys
from typing import Any

import click


def as_json(answer: Any) -> None:
    """The machine's answer."""
    click.echo(json.dumps(answer, indent=1))


def terminal() -> Any:
    """The console of stdout; a file or a pipe has no width of its own and gets 140 columns."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)
