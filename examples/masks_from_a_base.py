"""Build a safe mask and a random one of equal density, and ask which of them an RL run would have stayed in.

    python examples/masks_from_a_base.py BASE TUNED OUT

BASE and TUNED are folders, .safetensors files, adapter folders or Hub names; OUT is a folder for the masks.
"""

import sys

from offprincipal.masksets import build_masks, overlap


def main(base: str, tuned: str, out: str) -> None:
    safe = build_masks(base, f"{out}/safe", "safe")
    random = build_masks(base, f"{out}/random", "random", like=safe)
    update = build_masks(base, f"{out}/update", "update", tuned=tuned)
    print(f"safe: {safe.density():.1%} of {safe.header['entries']:,} weights inside blocks")
    print(f"the run changed {update.density():.1%}")
    for name, mask in (("safe", safe), ("random", random)):
        found = overlap(mask, update, base=base).summary
        print(f"{name:6} holds {found['overlap']:.1%} of the changes; chance {found['overlap_chance']:.1%}, "
              f"magnitude alone {found['overlap_matched']:.1%}, z {found['overlap_excess_z']:.1f}")  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:4])
