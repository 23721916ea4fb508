"""``offprincipal transform``."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from offprincipal.cli.answers import as_json
from offprincipal.errors import UsageError

DTYPES = ("bf16", "fp16", "fp32", "fp64", "fp8-e4m3", "fp8-e5m2")


def layer_numbers(text: str | None) -> list[int] | None:
    """``20,25-27`` as numbers.

    Raises:
        UsageError: it is no such list.

    >>> layer_numbers("20,25-27")
    [20, 25, 26, 27]
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 10_000):
            raise UsageError(f"choose layers {text!r}", f"{part!r} is no layer and no range", "write --layers 0,5-7")
        found += range(int(first), int(last) + 1)
    return found


def torch_dtype(name: str | None) -> Any:
    """The type of this short name."""
    import torch

    names = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
    by_name: dict[str, torch.dtype] = dict(zip(DTYPES, names, strict=True))
    return by_name[name] if name else None


OUT = click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of the new checkpoint.")
LAYERS = click.option("--layers", metavar="LIST", help="Which layers, from 0, as in 20,25-27; default: all.")
SEED = click.option("--seed", default=0, show_default=True, help="Seed of what is drawn.")
BASIS = click.option(
    "--basis", default="haar", show_default=True, type=click.Choice(["haar", "hadamard"]), help="Rotations."
)
DTYPE = click.option("--dtype", type=click.Choice(DTYPES), help="Store every weight in this type; default: as it was.")
VERIFY = click.option("--verify", is_flag=True, help="Prove that the function is preserved (extra: offprincipal[hf]).")
OFFLINE = click.option("--offline", is_flag=True, help="Never ask the Hub; use what is in its cache.")
JSON = click.option("--json", "json_", is_flag=True, help="Print the record of transform.json on stdout.")


@click.group()
def transform() -> None:
    """Write a checkpoint in other coordinates, or with its update edited. May be stopped and run again."""


@transform.command(epilog="Example: offprincipal transform rotate Qwen/Qwen3-4B-Base --layers 20,25 -o runs/rotated")
@click.argument("base")
@OUT
@LAYERS
@SEED
@BASIS
@click.option("--per-group", is_flag=True, help="One rotation for each key/value head, not one for the layer.")
@click.option("--residual", is_flag=True, help="Rotate the residual stream of the whole model instead of the values.")
@DTYPE
@VERIFY
@OFFLINE
@JSON
def rotate(base: str, layers: str | None, per_group: bool, residual: bool, **options: Any) -> None:
    """Rotate the values of each attention head (V and O), which keeps the function and every singular value."""
    from offprincipal import rewrite

    if residual and (layers or per_group):
        raise UsageError("rotate the residual stream", "it runs through all layers", "leave out --layers, --per-group")
    if residual:
        _written(rewrite.rotate_residual, (base,), options)
    else:
        _written(rewrite.rotate, (base,), options, layers=layer_numbers(layers), per_group=per_group)


@transform.command(epilog="Example: offprincipal transform permute runs/base --layers 20 --only heads -o permuted")
@click.argument("base")
@OUT
@LAYERS
@SEED
@click.option("--only", type=click.Choice(["heads", "neurons"]), help="Attention heads or MLP neurons; default: both.")
@DTYPE
@VERIFY
@OFFLINE
@JSON
def permute(base: str, layers: str | None, only: str | None, **options: Any) -> None:
    """Reorder key/value heads with their query heads, and MLP neurons: every number is kept, bit for bit."""
    from offprincipal import rewrite

    wanted = {"heads": only != "neurons", "neurons": only != "heads"}
    _written(rewrite.permute, (base,), options, layers=layer_numbers(layers), **wanted)


@transform.command("restore-spectrum", epilog="Example: offprincipal transform restore-spectrum base rl -o restored")
@click.argument("base")
@click.argument("tuned")
@OUT
@click.option("--strength", default=1.0, show_default=True, help="1 restores, 0 leaves; between them: interpolated.")
@LAYERS
@DTYPE
@OFFLINE
@JSON
def restore_spectrum(base: str, tuned: str, layers: str | None, strength: float, **options: Any) -> None:
    """TUNED with BASE's singular values in every linear weight: the frames stay, the spectrum goes back."""
    from offprincipal import rewrite

    _written(rewrite.restore_spectrum, (base, tuned), options, layers=layer_numbers(layers), strength=strength)


@transform.command("swap-spectrum", epilog="Example: offprincipal transform swap-spectrum base rl -o swapped")
@click.argument("base")
@click.argument("tuned")
@OUT
@LAYERS
@DTYPE
@OFFLINE
@JSON
def swap_spectrum(base: str, tuned: str, layers: str | None, **options: Any) -> None:
    """BASE's singular vectors with TUNED's singular values in every linear weight of TUNED."""
    from offprincipal import rewrite

    _written(rewrite.swap_spectrum, (base, tuned), options, layers=layer_numbers(layers))


@transform.command("keep-rank", epilog="Example: offprincipal transform keep-rank runs/base runs/rl --rank 8 -o rank8")
@click.argument("base")
@click.argument("tuned")
@OUT
@click.option("--rank", required=True, type=click.IntRange(min=0), help="How many singular directions of D are kept.")
@LAYERS
@DTYPE
@OFFLINE
@JSON
def keep_rank(base: str, tuned: str, layers: str | None, rank: int, **options: Any) -> None:
    """BASE plus the largest singular directions of D = TUNED - BASE, in every linear weight."""
    from offprincipal import rewrite

    _written(rewrite.keep_rank, (base, tuned), options, rank=rank, layers=layer_numbers(layers))


@transform.command(epilog="Example: offprincipal transform scale runs/base runs/rl --factor 3 -o runs/threefold")
@click.argument("base")
@click.argument("tuned")
@OUT
@click.option("--factor", required=True, type=float, help="c in W0 + c D.")
@LAYERS
@DTYPE
@OFFLINE
@JSON
def scale(base: str, tuned: str, layers: str | None, factor: float, **options: Any) -> None:
    """BASE plus a multiple of D = TUNED - BASE, rounded again; with --layers only in those blocks."""
    from offprincipal import rewrite

    _written(rewrite.scale, (base, tuned), options, factor=factor, layers=layer_numbers(layers))


@transform.command("round", epilog="Example: offprincipal transform round runs/rl/master --dtype bf16 -o runs/rl-bf16")
@click.argument("ref")
@OUT
@click.option("--dtype", required=True, type=click.Choice(DTYPES), help="The new type of every weight.")
@OFFLINE
@JSON
def round_(ref: str, **options: Any) -> None:
    """Every weight rounded to the nearest value of another type, ties to even."""
    from offprincipal import rewrite

    _written(rewrite.round_weights, (ref,), options)


@transform.command("map-back", epilog="Example: offprincipal transform map-back rotated rotated-rl -o mapped")
@click.argument("transformed")
@click.argument("tuned")
@OUT
@click.option("--base", metavar="REF", help="The original base; default: the one that was recorded.")
@DTYPE
@OFFLINE
@JSON
def map_back(transformed: str, tuned: str, base: str | None, **options: Any) -> None:
    """TUNED, trained from TRANSFORMED, in the original coordinates: base + undo(D). Compare that with the base."""
    from offprincipal import rewrite

    _written(rewrite.map_back, (transformed, tuned), options, base=base)


def _written(
    function: Callable[..., dict[str, Any]], refs: tuple[str, ...], options: dict[str, Any], **own: Any
) -> None:
    """Call, with a bar; print what was written and, where it was asked for, the proof."""
    from offprincipal.terminal import notes, progress_bar

    out, json_ = options.pop("out"), options.pop("json_")
    options["dtype"] = torch_dtype(options.pop("dtype", None))
    command = shlex.join(["offprincipal", *sys.argv[1:]])
    with progress_bar("tensors") as progress:
        record = function(*refs, out, progress=progress, command=command, **own, **options)
    if json_:
        as_json({key: value for key, value in record.items() if key != "actions"})
    elif "verify" in record:
        _print_proof(record["verify"])
    notes.print(f"checkpoint: {out}")


def _print_proof(found: dict[str, Any]) -> None:
    """One line for each comparison of logits."""
    from offprincipal.cli.answers import terminal
    from offprincipal.terminal import titled_table

    rows = []
    for key, words in (
        ("float64", "base, transform before rounding: float64"),
        ("float32", "base, transform before rounding: float32"),
        ("rounding", "base, stored transform: float64"),
        ("bfloat16", "base, stored transform: bfloat16"),
        ("bfloat16_arithmetic", "base in float64, base in bfloat16"),
    ):
        each = found[key]
        same = f"{100 * each['argmax_agreement']:.1f} %"
        rows.append([words, f"{each['max_abs']:.3g}", f"{each['max_relative']:.3g}", same])
    columns = ("compared", "largest difference", "relative", "same argmax")
    terminal().print(titled_table(f"Logits on {found['tokens']} random tokens", columns, rows))
