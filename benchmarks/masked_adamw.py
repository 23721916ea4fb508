"""One step of MaskedAdamW beside torch's AdamW on two blocks of Qwen2.5-1.5B shapes (94 M parameters), and its memory.

All optimizers step the same weights in turn, so that a busy machine hurts each of them; medians of wall time and their
ratios to torch's fused step. Masks are random, the worst case: no run of allowed entries to profit from. Memory is
read, not computed: bytes of every tensor kept, and growth of the resident set of a fresh process over two steps.
"""

import argparse
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from offprincipal.measures.seeds import torch_generator
from offprincipal.train import MaskedAdamW, masks_for

BLOCK = [(1536, 1536), (256, 1536), (256, 1536), (1536, 1536), (8960, 1536), (8960, 1536), (1536, 8960)]
DENSITIES = (0.05, 0.25, 0.5, 0.74, 1.0)
WARM = 2


class Random:
    """Masks made when they are asked for, as a mask set loads them."""

    def __init__(self, model: nn.ParameterList, density: float):
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self.names, self.density = list(self.shapes), density

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.rand(self.shapes[name], generator=torch_generator(0, name)) < self.density


def build(dtype: torch.dtype, blocks: int) -> nn.ParameterList:
    model = nn.ParameterList()
    for i, shape in enumerate(BLOCK * blocks):
        generator = torch_generator(0, "weight", str(i))
        model.append(nn.Parameter((torch.randn(shape, generator=generator) * 0.02).to(dtype)))
        model[-1].grad = (torch.randn(shape, generator=generator) * 1e-3).to(dtype)
    return model


def masked(model: nn.ParameterList, density: float, **options: bool) -> MaskedAdamW:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # bfloat16 without masters is meant here
        return MaskedAdamW(model.parameters(), masks_for(model, Random(model, density)), lr=1e-6, **options)


def kept(optimizer: torch.optim.Optimizer) -> int:
    if isinstance(optimizer, MaskedAdamW):
        return optimizer.state_bytes()
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values())


def timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def times(dtype: torch.dtype, blocks: int, rounds: int, slow: bool) -> Iterator[tuple[str, list[float], int]]:
    """Name, seconds of each step, and bytes kept, of every optimizer."""
    model = build(dtype, blocks)
    chosen: dict[str, torch.optim.Optimizer] = {"torch fused": torch.optim.AdamW(model.parameters(), 1e-6, fused=True)}
    if slow:
        chosen["torch foreach"] = torch.optim.AdamW(model.parameters(), 1e-6, foreach=True)
    chosen |= {f"masked {density:g}": masked(model, density) for density in DENSITIES}
    spent: dict[str, list[float]] = {name: [] for name in chosen}
    for turn in range(WARM + rounds):
        for name, optimizer in chosen.items():
            if name != "torch foreach" or turn < WARM + 3:  # fifteen times slower: three are enough
                spent[name].append(timed(optimizer.step))
    for name, optimizer in chosen.items():
        yield name, spent[name][WARM:], kept(optimizer)


def resident() -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def grown(what: str, dtype: torch.dtype, blocks: int) -> tuple[int, int]:
    """Growth of this process, and bytes of tensors kept, over building an optimizer and two steps."""
    masked(small := build(dtype, 0).append(nn.Parameter(torch.zeros(8, 512, dtype=dtype))), 0.5)  # imports
    small[0].grad = torch.zeros_like(small[0])
    (first := masked(small, 0.5)).step()  # compiles
    del first, small
    model = build(dtype, blocks)
    before = resident()
    dense = what == "torch"
    optimizer = torch.optim.AdamW(model.parameters(), fused=True) if dense else masked(model, float(what))
    optimizer.step()
    optimizer.step()
    return resident() - before, kept(optimizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-foreach", action="store_true", help="leave torch's foreach loop out")
    parser.add_argument("--memory", action="store_true", help="memory instead of time")
    parser.add_argument("--grown", help=argparse.SUPPRESS)
    choice = parser.parse_args()
    dtype, console = getattr(torch, choice.dtype), Console(width=110)
    if choice.grown:
        print(*grown(choice.grown, dtype, choice.blocks))
        return
    entries = choice.blocks * sum(rows * columns for rows, columns in BLOCK)
    title = f"{entries / 1e6:.0f} M {choice.dtype} parameters, {torch.get_num_threads()} threads"
    if choice.memory:
        table = Table("state of", "tensors MB", "bytes/parameter", "resident MB", title=title)
        for what in ["torch", *map(str, DENSITIES)]:
            command = [
                sys.executable,
                __file__,
                "--grown",
                what,
                "--dtype",
                choice.dtype,
                "--blocks",
                str(choice.blocks),
            ]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rss, tensors = (int(word) for word in said.split())
            table.add_row(what, f"{tensors / 1e6:.1f}", f"{tensors / entries:.3f}", f"{rss / 1e6:.1f}")
        console.print(table)
        return
    table = Table(
        "step", "median ms", "fastest ms", "x fused (medians)", "state MB", title=f"{title}, {choice.rounds} steps"
    )
    fused = 0.0
    for name, spent, held in times(dtype, choice.blocks, choice.rounds, not choice.no_foreach):
        median = statistics.median(spent)
        fused = fused or median
        table.add_row(
            name, f"{median * 1e3:.1f}", f"{min(spent) * 1e3:.1f}", f"{median / fused:.2f}", f"{held / 1e6:.1f}"
        )
    console.print(table)


if __name__ == "__main__":
    main()
