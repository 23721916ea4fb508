"""The fused pass against one copy of one side: a warm pair of 4096 x 16384 bfloat16, medians, one run.

The floor is 1x: both sides have to be read once, and a copy reads one side and writes as much.
"""

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from offprincipal.measures.seeds import torch_generator
from offprincipal.measures.sweep import sweep

SHAPE, REPEATS = (4096, 16384), 15


def seconds(function: Callable[[], object]) -> list[float]:
    function()  # compiles, and warms the caches
    spent = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        spent.append(time.perf_counter() - start)
    return spent


def literal(before: torch.Tensor, after: torch.Tensor) -> tuple:
    """What a straightforward script counts with torch: two counts, a norm, two profiles; no histogram, no null."""
    mask = before != after
    delta = after.double() - before.double()
    return mask.sum(), (delta.abs() <= 1e-5).sum(), delta.norm(), mask.sum(dim=0), mask.sum(dim=1)


def main() -> None:
    torch.set_num_threads(torch.get_num_threads())
    generator = torch_generator(0, "benchmark")
    before = (torch.randn(SHAPE, generator=generator) * 0.02).bfloat16()
    target = torch.empty_like(before)
    table = Table(
        title=f"sweep of {SHAPE[0]} x {SHAPE[1]} bfloat16, {torch.get_num_threads()} threads, {REPEATS} runs"
    )
    for column in ("what", "changed", "median ms", "fastest ms", "x copy (medians)"):
        table.add_column(column, justify="right" if column != "what" else "left")
    for scale in (3e-6, 3e-5, 1e-3):
        after = (before.float() + torch.randn(SHAPE, generator=generator) * scale).bfloat16()
        copy = seconds(lambda: target.copy_(before))
        share = f"{sweep(before, after).changed / before.numel():.1%}"
        rows = [("Tensor.copy_ of one side", copy), ("sweep", seconds(lambda after=after: sweep(before, after)))]
        if scale == 3e-5:
            rows.append(("torch, counts and profiles only", seconds(lambda after=after: literal(before, after))))
        for name, spent in rows:
            median = statistics.median(spent)
            ratio = median / statistics.median(copy)
            table.add_row(name, share, f"{median * 1e3:.1f}", f"{min(spent) * 1e3:.1f}", f"{ratio:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
