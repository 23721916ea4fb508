"""Rotate a base and its tune alike, map the rotated tune back, and see what of the change is left.

    python examples/rotate_and_map_back.py BASE TUNED FOLDER

Three checkpoints are written into FOLDER. In earnest the rotated tune is trained from the rotated base.
"""

import sys
from pathlib import Path

import offprincipal
from offprincipal import rewrite


def main(base: str, tuned: str, folder: Path) -> None:
    record = rewrite.rotate(base, folder / "base", seed=0)
    rewrite.rotate(tuned, folder / "tuned", seed=0)
    rewrite.map_back(folder / "base", folder / "tuned", folder / "mapped")
    print(f"rotated {len(record['actions'])} tensors")

    inside = offprincipal.compare(folder / "base", {"rotated": folder / "tuned"}, geometry=False)
    outside = offprincipal.compare(base, {"tuned": tuned, "mapped": folder / "mapped"}, geometry=False)
    for run in [*outside.summary["runs"], *inside.summary["runs"]]:
        print(f"{run['label']}: |D| = {run['delta_norm']:.4g}, unchanged in bfloat16 {run['sparsity_bf16']:.2%}")


if __name__ == "__main__":
    main(*sys.argv[1:3], Path(sys.argv[3]))
