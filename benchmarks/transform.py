"""A transform beside a plain copy of the same checkpoint: safetensors load_file and save_file, shard by shard.

    python benchmarks/transform.py [FOLDER] [BLOCKS]

Every way runs in turn, three rounds, the files warm in the page cache; printed are the medians and their ratio.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from pairs import make
from safetensors.torch import load_file, save_file

from offprincipal import rewrite

ROUNDS = 3


def copy(base: Path, out: Path) -> None:
    """What anybody would write: each shard read and saved."""
    out.mkdir()
    for file in sorted(base.glob("*.safetensors")):
        save_file(load_file(file), out / file.name, metadata={"format": "pt"})


WAYS: dict[str, Callable[[Path, Path], object]] = {
    "copy": copy,
    "round to its own type": lambda base, out: rewrite.round_weights(base, out, torch.bfloat16),
    "rotate": lambda base, out: rewrite.rotate(base, out),
    "permute": lambda base, out: rewrite.permute(base, out),
}


def main(folder: str | None = None, blocks: str = "10") -> None:
    place = Path(folder or tempfile.mkdtemp(prefix="transform-"))
    base = make(place / "base", int(blocks))
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, run in WAYS.items():
            start = time.perf_counter()
            run(base, place / "out")
            taken[way].append(time.perf_counter() - start)
            shutil.rmtree(place / "out")
    plain = median(taken["copy"])
    print(f"{size / 1e9:.2f} GB, {ROUNDS} rounds, median seconds")
    for way, seconds in taken.items():
        print(f"{way:22} {median(seconds):7.2f}   {median(seconds) / plain:5.2f} x copy   ({min(seconds):.2f} best)")


if __name__ == "__main__":
    main(*sys.argv[1:])
