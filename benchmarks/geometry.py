"""Geometry of one Qwen2.5-1.5B block, stage by stage against its floor, beside a straightforward float32 script.

Run: python benchmarks/geometry.py [--repeats 3] [--skip-script]. Three parts, interleaved per repeat, medians printed:

* the script (`benchmarks/script.py`): two float32 ``torch.linalg.svd`` per matrix, all threads;
* ours: `geometry.measure` on every matrix, one process per core with one thread each as `compare` starts them, first
  with an empty cache of base factors, then another tuned side with a full one;
* stages of the two large shapes on one thread, with flops counted on paper, against the rate that a float64 (or
  float32) matrix product reaches on this machine. Eigenproblems have no such floor: half of a tridiagonal reduction
  is matrix times vector; they are shown against ``9 n^3`` (vectors) and ``4/3 n^3`` (values only) all the same.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from script import script

from offprincipal import geometry
from offprincipal.factors import FactorCache, fingerprint
from offprincipal.fanout import processes
from offprincipal.measures import angles, carried, levels, masks, spectrum

SHAPES = {
    "gate": (8960, 1536), "up": (8960, 1536), "down": (1536, 8960),
    "q": (1536, 1536), "o": (1536, 1536), "k": (256, 1536), "v": (256, 1536),
}  # fmt: skip


def weights(name: str, step: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bfloat16 matrix with a spectrum that falls like a trained one's, and the same after a small step."""
    out, into = SHAPES[name]
    generator = torch.Generator().manual_seed(list(SHAPES).index(name))
    low = torch.randn(out, 48, generator=generator) @ torch.randn(48, into, generator=generator) * 0.004
    base = (torch.randn(out, into, generator=generator) * 0.02 + low).bfloat16()
    noise = torch.randn(out, into, generator=torch.Generator().manual_seed(1000 + seed))
    return base, (base.float() + step * noise).bfloat16()


def one(job: tuple[str, int, str]) -> float:
    """Measure one matrix in a worker; returns its seconds, the making of the pair left out."""
    name, seed, folder = job
    base, tuned = weights(name, 3e-5, seed)
    geometry.measure(base[:200, :200], tuned[:200, :200], name=name)  # loads the compiled loops
    start = time.perf_counter()
    geometry.measure(base, tuned, name=name, factors=FactorCache(Path(folder)))
    return time.perf_counter() - start


def ours(seed: int, folder: str) -> float:
    """Seconds of work per core: the sum over matrices, spread over the processes."""
    cores = [0.0] * (os.cpu_count() or 1)
    spent = sorted(processes(one, [(name, seed, folder) for name in SHAPES], len(cores)), reverse=True)
    for seconds in spent:  # largest first to the freest core, as the survey hands them out
        cores[cores.index(min(cores))] += seconds
    return max(cores)


def best(work: Callable[[], object], repeats: int) -> float:
    """Median seconds."""
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def rates(repeats: int) -> dict[torch.dtype, float]:
    """Flops per second of a large square-ish matrix product on one thread."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        left = torch.randn(1536, 8960, dtype=dtype)
        found[dtype] = 2 * 1536 * 1536 * 8960 / best(lambda left=left: left @ left.T, repeats)
    return found


def stages(name: str, repeats: int) -> list[tuple[str, float, float, torch.dtype]]:
    """(stage, flops, seconds, dtype of the products) of one matrix on one thread."""
    base, tuned = weights(name, 3e-5, 0)
    m, n = max(base.shape), min(base.shape)
    k = masks.principal_rank((m, n), 512)
    first, second = spectrum.factorise(base, k, frame=True), spectrum.factorise(tuned, k)
    square = spectrum.gram(base)
    narrow = torch.float32 if m >= 2 * n else torch.float64
    found = levels.levels(base, first)
    sides = (("left", "right"), (first, second))
    work: list[tuple[str, float, torch.dtype, Callable[[], object]]] = [
        ("Gram matrix, half of m n^2 twice", m * n * n, torch.float64, lambda: spectrum.gram(base)),
        ("eigenvalues and vectors", 9 * n**3, torch.float64, lambda: spectrum.eigen(square)),
        ("eigenvalues alone (of D)", 4 / 3 * n**3, torch.float64, lambda: torch.linalg.eigvalsh(square)),
        ("Gram matrix of D", m * n * n, narrow, lambda: spectrum.gram(tuned, base, dtype=narrow)),
        ("factorise whole (one side)", m * n * n + 9 * n**3 + 2 * m * n * k, torch.float64,
         lambda: spectrum.factorise(tuned, k)),
        ("carried: values, angles, D^T D", 3 * m * n * n + 3 * n**3 + 16 * n * n * k, torch.float32,
         lambda: carried.carry(base, tuned, first, angles.grid((m, n)))),
        ("angles, both sides, the long way", 2 * (m + n) * k * k, torch.float64,
         lambda: [angles.nested_angles(*(getattr(f, s) for f in sides[1]), angles.grid((m, n))) for s in sides[0]]),
        ("masks of the base", 2 * m * n * k, torch.float64, lambda: levels.levels(base, first)),
        ("table of codes and masks", 0, torch.float64, lambda: levels.cross(base, tuned, found.level)),
        ("content hash", 0, torch.float64, lambda: fingerprint(base)),
    ]  # fmt: skip
    return [(stage, flops, best(run, repeats), dtype) for stage, flops, dtype, run in work]


def stage_table(name: str, repeats: int, rate: dict[torch.dtype, float]) -> Table:
    table = Table(
        "stage", "GFLOP", "floor s", "measured s", "of the floor", title=f"{name} {SHAPES[name]}, one thread"
    )
    for stage, flops, seconds, dtype in stages(name, repeats):
        floor = flops / rate[dtype]
        share = f"{floor / seconds:.0%}" if flops else ""
        table.add_row(stage, f"{flops / 1e9:.1f}", f"{floor:.3f}" if flops else "", f"{seconds:.3f}", share)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip-script", action="store_true")
    options = parser.parse_args()
    console, cores = Console(width=110), torch.get_num_threads()
    spent: dict[str, list[float]] = {"script": [], "first": [], "second": []}
    for repeat in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            spent["first"].append(ours(0, folder))
            spent["second"].append(ours(1, folder))
        for name in SHAPES if not options.skip_script else ():
            base, tuned = weights(name, 3e-5, 0)
            start = time.perf_counter()
            script(base, tuned)
            spent["script"].append(time.perf_counter() - start)
        last = sum(spent["script"][-len(SHAPES) :])
        console.print(f"{repeat}: first {spent['first'][-1]:.2f}, second {spent['second'][-1]:.2f}, script {last:.2f}")
    whole = sum(statistics.median(spent["script"][i :: len(SHAPES)]) for i in range(len(SHAPES)) if spent["script"])
    table = Table("one block", "seconds", "of the script", title=f"medians of {options.repeats}, {cores} cores")
    if whole:
        table.add_row("straightforward float32 script", f"{whole:.2f}", "1")
    for label, key in (("geometry, first run", "first"), ("geometry, second run, base cached", "second")):
        seconds = statistics.median(spent[key])
        table.add_row(label, f"{seconds:.2f}", f"{seconds / whole:.3f}" if whole else "")
    ratio = statistics.median(b / a for a, b in zip(spent["first"], spent["second"], strict=True))
    table.add_row("second over first", "", f"{ratio:.2f}")
    console.print(table)
    torch.set_num_threads(1)
    rate = rates(options.repeats)
    console.print(", ".join(f"{dtype}: {each / 1e9:.0f} GFLOP/s on one thread" for dtype, each in rate.items()))
    for name in ("gate", "q"):
        console.print(stage_table(name, options.repeats, rate))


if __name__ == "__main__":
    main()
