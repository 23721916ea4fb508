"""Whole commands side by side on one pair of 218 M parameters: ours without and with geometry, modeldelta, a script.

Each command runs as a fresh process, interleaved, so that a busy machine hurts all of them; medians of wall time and
peak memory (of the largest process; workers add up to more). modeldelta is not a dependency: install it
beside the project (`pip install modeldelta==0.4.4`) or its row is left out. The script (`benchmarks/script.py`) runs
twice: over every matrix, as a person would write it, and over those alone that ours factorises. A round that is not
counted comes first: it pays what a machine pays once, compiling the loops and bundling the report's chart code (2 s).
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pairs import make
from rich.console import Console
from rich.table import Table

OURS = [sys.executable, "-m", "offprincipal", "compare"]


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of wall time of one command, and megabytes of peak resident memory of the largest of its processes."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    peak, running = 0, True
    while running:  # looking seldom costs little: the kernel keeps each process's highest mark
        with suppress(subprocess.TimeoutExpired):
            running = child.wait(0.5) is None
        peak = max(peak, *(_peak(process) for process in _descendants(child.pid)), 0)
    if child.returncode:
        raise SystemExit(f"failed with status {child.returncode}: {' '.join(command)}")
    return time.perf_counter() - start, peak / 1024


def _descendants(process: int) -> list[int]:
    """This process and all that it started, and those started (Linux)."""
    found = [process]
    for each in found:
        with suppress(OSError):
            found += [int(pid) for pid in Path(f"/proc/{each}/task/{each}/children").read_text().split()]
    return found


def _peak(process: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1])
    return 0


def commands(work: Path, out: Path) -> dict[str, list[str]]:
    base4, run4 = str(make(work / "base4", 4)), str(make(work / "run4", 4, step=3e-5))
    second = str(make(work / "second4", 4, step=1e-5, seed=1))
    base16, run16 = str(make(work / "base16", 16)), str(make(work / "run16", 16, step=3e-5))
    chosen = {
        "counts only, 4 blocks": [*OURS, base4, run4, "--no-geometry", "--no-report", "-o"],
        "counts only, 16 blocks": [*OURS, base16, run16, "--no-geometry", "--no-report", "-o"],
        "all geometry, 4 blocks, no cache": [*OURS, base4, run4, "--no-cache", "-o"],
        "all geometry, 4 blocks, first, base kept": [*OURS, base4, run4, "-o"],
        "all geometry, 4 blocks, second, base found": [*OURS, base4, second, "-o"],
        "all geometry, 16 blocks, no cache": [*OURS, base16, run16, "--no-cache", "-o"],
    }
    script = [sys.executable, str(Path(__file__).with_name("script.py")), base4, run4]
    chosen["float32 script, 4 blocks, every matrix"] = script
    chosen["float32 script, 4 blocks, no embedding"] = [*script, "--blocks-only"]
    tool = shutil.which("modeldelta", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if tool:
        chosen["modeldelta 0.4.4, 4 blocks"] = [tool, base4, run4, "-q", "-o", str(out / "modeldelta.json")]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "offprincipal-benchmark")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="only commands whose name contains one of these, divided by |")
    choice = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        named = {
            name: command
            for name, command in commands(choice.work, Path(scratch)).items()
            if any(part in name for part in choice.only.split("|"))
        }
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in named}
        environment = {**os.environ, "HF_HOME": f"{scratch}/hf", "HF_HUB_OFFLINE": "1"}
        for i in range(choice.repeats + 1):  # the first warms the file cache and pays what is paid once: see above
            subprocess.run([*OURS[:-1], "cache", "--clear"], env=environment, check=True, stdout=subprocess.DEVNULL)
            for number, (name, command) in enumerate(named.items()):
                out = [f"{scratch}/{i}-{number}"] if command[-1] == "-o" else []
                spent = measured([*command, *out], environment)
                if i:
                    results[name].append(spent)
    report(results, choice.repeats)


def report(results: dict[str, list[tuple[float, float]]], repeats: int) -> None:
    table = Table(title=f"whole commands, medians of {repeats} interleaved runs, {os.cpu_count()} cores")
    for column in ("command", "seconds", "min - max", "peak MB", "modeldelta / this"):
        table.add_column(column, justify="left" if column == "command" else "right")
    reference = next((statistics.median(s for s, _ in runs) for n, runs in results.items() if "modeldelta" in n), None)
    for name, runs in results.items():
        times, peaks = zip(*runs, strict=True)
        median = statistics.median(times)
        ratio = f"{reference / median:.1f}x" if reference else "-"
        span = f"{min(times):.2f} - {max(times):.2f}"
        table.add_row(name, f"{median:.2f}", span, f"{statistics.median(peaks):.0f}", ratio)
    console = Console(width=120)
    console.print(table)
    for ours, other in (
        ("second, base found", "first, base kept"),
        ("4 blocks, no cache", "modeldelta"),
        ("4 blocks, no cache", "every matrix"),
        ("4 blocks, no cache", "no embedding"),
    ):
        pair = [runs for word in (ours, other) for name, runs in results.items() if word in name]
        if len(pair) == 2:
            ratios = sorted(a[0] / b[0] for a, b in zip(*pair, strict=True))
            span = f"({ratios[0]:.2f} - {ratios[-1]:.2f})"
            console.print(f"{ours} / {other}: {statistics.median(ratios):.3f} {span}, round by round")


if __name__ == "__main__":
    main()
