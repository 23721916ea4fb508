"""``offprincipal cache``."""

import click

from offprincipal.cli.answers import as_json


@click.command(epilog="Example: offprincipal cache --clear")
@click.option("--clear", is_flag=True, help="Delete every cached factor.")
@click.option("--json", "json_", is_flag=True, help="Print as JSON on stdout.")
def cache(clear: bool, json_: bool) -> None:
    """Show, or clear, the cached factors of base matrices."""
    from offprincipal.factors import FactorCache

    store = FactorCache()
    files, size = store.size()
    freed = store.clear() if clear else 0
    if json_:
        as_json({"folder": str(store.folder), "matrices": files, "bytes": size, "freed": freed})
    elif clear:
        click.echo(f"cleared {files} matrices, {freed:,} bytes, in {store.folder}")
    else:
        click.echo(f"{files} matrices, {size:,} bytes, in {store.folder}")
