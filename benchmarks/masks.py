"""Mask sets of a 218 M pair (benchmarks/pairs.py): seconds to build and to read, bytes beside the bfloat16 weights.

    python benchmarks/masks.py [FOLDER] [BLOCKS]

Each rule in turn: `safe` from nothing (factors computed and kept), then with the base's factors cached, as after a
comparison. One process and as many threads as torch takes; the files are warm in the page cache.
"""

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

WORK = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="masks-"))
BLOCKS = int(sys.argv[2]) if len(sys.argv) > 2 else 4
os.environ["HF_HOME"] = str(WORK / "hf")  # a cache of its own, empty at the start; read when huggingface_hub loads

from pairs import make  # noqa: E402

from offprincipal.masksets import MaskSet, build_masks, overlap  # noqa: E402


def timed(what: str, function, *arguments, **options):
    start = time.perf_counter()
    result = function(*arguments, **options)
    print(f"{what:34} {time.perf_counter() - start:7.2f} s", end="")
    return result


def built(what: str, base: Path, kind: str, weights: int, **options) -> MaskSet:
    out = WORK / "masks" / what.replace(" ", "-").replace(",", "")
    masks = timed(f"build {what}", build_masks, base, out, kind, **options)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"   {size / 1e6:7.2f} MB, {size / weights:6.2%} of the weights, density {masks.density():.4f}")
    return masks


def main() -> None:
    shutil.rmtree(WORK / "masks", ignore_errors=True)
    shutil.rmtree(WORK / "hf", ignore_errors=True)
    base, tuned = make(WORK / f"base{BLOCKS}", BLOCKS), make(WORK / f"run{BLOCKS}", BLOCKS, step=3e-5)
    for folder in (base, tuned):  # warm
        for file in folder.glob("*.safetensors"):
            file.read_bytes()
    low = build_masks(base, WORK / "masks" / "first", "low")  # compiles, or loads what was compiled
    entries = low.header["entries"]
    print(
        f"{entries:,} weights in {len(low)} matrices, {2 * entries / 1e6:.1f} MB in bfloat16; {os.cpu_count()} cores"
    )
    safe = built("safe, factors not cached", base, "safe", 2 * entries)
    built("safe, factors cached", base, "safe", 2 * entries)
    built("low", base, "low", 2 * entries)
    built("random like safe", base, "random", 2 * entries, like=safe)
    update = built("update", base, "update", 2 * entries, tuned=tuned)
    built("safe, density 0.8", base, "safe", 2 * entries, density=0.8)
    timed("open", MaskSet.open, safe.path)
    print()
    timed("read every mask", lambda: [int(safe[name].sum()) for name in safe])
    print()
    found = timed("overlap with the base's nulls", overlap, safe, update, base=base).summary
    print(f"   {json.dumps({k: round(found[k], 5) for k in ('overlap', 'overlap_chance', 'overlap_matched')})}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
