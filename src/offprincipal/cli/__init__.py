"""The command line: parse, call one public function, print where the result lies. One file per verb."""

import gc
import sys

import click

from offprincipal import __version__
from offprincipal.cli.adapter import adapter
from offprincipal.cli.cache import cache
from offprincipal.cli.compare import compare
from offprincipal.cli.forecast import forecast
from offprincipal.cli.inspect import inspect
from offprincipal.cli.lab import lab
from offprincipal.cli.mask import mask
from offprincipal.cli.probe import probe
from offprincipal.cli.report import report
from offprincipal.cli.reproduce import reproduce
from offprincipal.cli.transform import transform
from offprincipal.errors import OffprincipalError


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
    finally:
        gc.freeze()  # the process ends: to look for cycles among all that was imported would take half a second more


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """What reinforcement learning does to the weights of a language model, measured.

    A checkpoint REF is a folder, a .safetensors file, a folder with an adapter, org/name, or org/name@revision.
    """


for verb in (
    inspect,
    compare,
    report,
    mask,
    transform,
    adapter,
    probe,
    forecast,
    reproduce,
    lab,
    cache,
):
    cli.add_command(verb)
