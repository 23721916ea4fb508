"""What a person would write first: float32, two ``torch.linalg.svd`` per matrix and a few elementwise numbers.

The yardstick of `benchmarks/geometry.py` (one block) and `benchmarks/compare.py` (whole commands). No angles, no
nulls, no bounds, one principal mask, and singular values good to seven digits of the largest.

Run: python benchmarks/script.py BASE TUNED [--blocks-only]. It loads both checkpoints and goes through every matrix,
the embedding too; with ``--blocks-only`` through those alone that offprincipal factorises.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file


def script(base: torch.Tensor, tuned: torch.Tensor) -> tuple[float, float, float]:
    """NSS, overlap with the principal half at rank 64, and the norm of the difference."""
    before, after = base.float(), tuned.float()
    u0, s0, v0 = torch.linalg.svd(before, full_matrices=False)
    _, s1, _ = torch.linalg.svd(after, full_matrices=False)
    shift = float((s1 - s0).norm() / s0.norm())
    changed = base != tuned
    principal = ((u0[:, :64] * s0[:64]) @ v0[:64]).abs().flatten()
    order = principal.kthvalue(principal.numel() // 2).values
    overlap = float((changed.flatten() & (principal > order)).sum() / changed.sum())
    return shift, overlap, float((after - before).norm())


def tensors(folder: str) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, in memory."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        found |= load_file(file)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("tuned")
    parser.add_argument("--blocks-only", action="store_true")
    choice = parser.parse_args()
    base, tuned = tensors(choice.base), tensors(choice.tuned)
    for name, weight in base.items():
        if weight.ndim == 2 and (".layers." in name or not choice.blocks_only):
            print(name, *script(weight, tuned[name]))


if __name__ == "__main__":
    main()
