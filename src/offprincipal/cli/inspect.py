"""``offprincipal inspect``."""

import click

from offprincipal.cli.answers import as_json, terminal


@click.command(epilog="Example: offprincipal inspect Qwen/Qwen3-8B-Base --json")
@click.argument("ref")
@click.option("--json", "json_", is_flag=True, help="Print everything as JSON on stdout.")
@click.option("--all", "all_", is_flag=True, help="List every tensor, not only the first 40.")
@click.option("--plan", is_flag=True, help="Estimate what comparing it costs: bytes, flops, memory, hours.")
@click.option("--runs", default=1, show_default=True, help="With --plan: how many tuned checkpoints.")
@click.option("--offline", is_flag=True, help="Never ask the Hub; use what is in its cache.")
def inspect(ref: str, json_: bool, all_: bool, plan: bool, runs: int, offline: bool) -> None:
    """Show what a checkpoint holds, from its headers alone: no weight is read (on the Hub: range requests)."""
    from offprincipal.checkpoint import describe, open_checkpoint
    from offprincipal.terminal import print_cost, print_description

    checkpoint = open_checkpoint(ref, offline=offline)
    description = describe(checkpoint).to_dict()
    cost = None
    if plan:
        from offprincipal.cost import plan_cost

        cost = plan_cost(checkpoint, runs=runs)
    if json_:
        as_json(description | ({"plan": cost.to_dict()} if cost else {}))
    elif cost:
        print_cost(ref, cost.lines(), terminal())
    else:
        print_description(description, terminal(), None if all_ else 40)
