"""Writing an adapter for Qwen2.5-1.5B blocks, method by method, beside PEFT's own PiSSA.

Run: python benchmarks/adapters.py [--blocks 4] [--repeats 3]. Every side reads the weights from disk and writes an
adapter folder. PEFT's side loads the model, runs ``get_peft_model`` with ``init_lora_weights="pissa"`` (a float32 SVD
of every target) and saves; its base is changed in memory and would have to be saved too, which is not counted. Ours
runs twice per method, with an empty cache of base factors and with a full one. Medians; the sides alternate within a
repeat. The cache of factors is one of its own.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path

from pairs import make
from rich.console import Console
from rich.table import Table

RANK = 16


def theirs(base: Path, out: Path) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        config = peft.LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights="pissa"
        )
        peft.get_peft_model(model, config).save_pretrained(out)


def cleared(out: Path) -> Path:
    """The folder, gone."""
    shutil.rmtree(out, ignore_errors=True)
    return out


def timed(work, out: Path) -> float:
    cleared(out)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "offprincipal-bench")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", default="lora,rlpo,rlmo,pissa,milora,geora,off-principal")
    options = parser.parse_args()
    os.environ["HF_ASSETS_CACHE"] = str(options.folder / "assets")  # read when the library is imported
    from offprincipal.factors import FactorCache
    from offprincipal.train.adapters import init_adapter, on_this_machine

    base = make(options.folder / f"base-{options.blocks}", options.blocks)
    out, spent = options.folder / "adapter", {}
    init_adapter(base, cleared(out), method="lora", rank=RANK)  # page cache
    import peft  # noqa: F401  # before the clock starts
    import transformers  # noqa: F401

    for _ in range(options.repeats):
        spent.setdefault("PEFT pissa", []).append(timed(lambda: theirs(base, out), out))
        for method in options.methods.split(","):
            for kept in ("empty", "full"):
                if kept == "empty":
                    FactorCache().clear()
                elif method in ("lora", "rlmo", "milora"):
                    continue  # they read no cached factors
                key = f"{method}, cache {kept}"
                run = lambda method=method: init_adapter(base, out, method=method, rank=RANK, engine=on_this_machine)  # noqa: E731
                spent.setdefault(key, []).append(timed(run, out))
    table = Table(
        "side", "median s", "of PEFT's", title=f"{options.blocks} blocks, rank {RANK}, {os.cpu_count()} cores"
    )
    whole = statistics.median(spent["PEFT pissa"])
    for key, seconds in spent.items():
        table.add_row(key, f"{statistics.median(seconds):.2f}", f"{statistics.median(seconds) / whole:.3f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
