"""Compare the estimate of `inspect --plan` with a comparison that is really run.

Run: python benchmarks/rates.py [--blocks 2] [--no-geometry]. A random bfloat16 pair with the block shapes of
Qwen2.5-1.5B (1536 x 8960 and smaller) is written to a temporary folder, estimated and compared. One process; the
cache of factors is off. Storage is the page cache, so reading is timed on its own and put into the estimate.
"""

import argparse
import resource
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from offprincipal import survey
from offprincipal.cost import measure_rates, plan_cost
from offprincipal.fanout import here
from offprincipal.pairs import pair

SHAPES = {
    "self_attn.q_proj": (1536, 1536),
    "self_attn.k_proj": (256, 1536),
    "self_attn.v_proj": (256, 1536),
    "self_attn.o_proj": (1536, 1536),
    "mlp.gate_proj": (8960, 1536),
    "mlp.up_proj": (8960, 1536),
    "mlp.down_proj": (1536, 8960),
}


def write(folder: Path, blocks: int) -> tuple[Path, Path]:
    """A base, and a tuned side whose float32 masters moved by 1e-4."""
    generator = torch.Generator().manual_seed(0)
    base, tuned = {}, {}
    for block in range(blocks):
        for name, shape in SHAPES.items():
            master = 0.02 * torch.randn(shape, generator=generator)
            base[f"model.layers.{block}.{name}.weight"] = master.bfloat16()
            master += 1e-4 * torch.randn(shape, generator=generator)
            tuned[f"model.layers.{block}.{name}.weight"] = master.bfloat16()
    for side, weights in (("base", base), ("tuned", tuned)):
        save_file(weights, folder / f"{side}.safetensors")
    return folder / "base.safetensors", folder / "tuned.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--no-geometry", dest="geometry", action="store_false")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        base, tuned = write(Path(name), options.blocks)
        start = time.perf_counter()
        load_file(base)
        reading = base.stat().st_size / (time.perf_counter() - start)
        speed = replace(measure_rates(), read=reading)
        plan = survey.plan(base, [tuned])
        estimate = plan_cost(next(iter(plan.plans.values())), geometry=options.geometry, here=speed)
        small = plan_cost(pair(plan.base, plan.base), geometry=options.geometry, here=speed)
        assert small.flops == estimate.flops  # a checkpoint alone gives the same plan
        start = time.perf_counter()
        survey.compare(base, [tuned], Path(name) / "out", geometry=options.geometry, cache=False, engine=here)
        spent = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"rates: {speed}")
    expected = 3600 * estimate.hours_here
    print(f"estimated {expected:.1f} s, measured {spent:.1f} s: {spent / expected:.2f} times")
    print(
        f"memory at most {estimate.peak_nbytes / 2**30:.2f} GiB, measured {peak / 2**30:.2f} GiB with writing the pair"
    )


if __name__ == "__main__":
    main()
