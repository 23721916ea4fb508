"""Compare a tuned checkpoint with its base and print what the size of the weights does not explain.

    python examples/compare_two_checkpoints.py BASE TUNED

BASE and TUNED are folders, .safetensors files, adapter folders or Hub names.
"""

import sys

import offprincipal


def main(base: str, tuned: str) -> None:
    result = offprincipal.compare(base, {"tuned": tuned})
    run = result.summary["runs"][0]
    print(f"{run['changed']:,} of {run['counted']:,} weights changed in bfloat16")
    print(f"principal overlap {run['overlap_principal']:.3f}, chance {run['overlap_principal_chance']:.3f},")
    print(f"magnitude alone {run['overlap_principal_matched']:.3f}: excess {run['overlap_principal_excess']:+.4f}")
    print(f"95 % interval over matrices {run['overlap_principal_excess_low']:+.4f}"
          f" to {run['overlap_principal_excess_high']:+.4f}")  # fmt: skip

    rows = [row for row in result.table().to_pylist() if row["linear"] and row["changed"]]
    widest = max(rows, key=lambda row: row["delta_sq"] / row["base_sq"])
    print(f"changed most: {widest['tensor']}, |D|/|W0| = {(widest['delta_sq'] / widest['base_sq']) ** 0.5:.3g}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
