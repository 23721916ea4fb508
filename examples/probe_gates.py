"""Measure how far a tuned model moved on a prompt file, and how curved the loss is along its update.

    python examples/probe_gates.py BASE TUNED PROMPTS

BASE and TUNED are folders of whole models; PROMPTS is a .txt or .jsonl file.
"""

import sys
from tempfile import TemporaryDirectory

from offprincipal.probes import measure_curvature, measure_fisher, measure_kl


def main(base: str, tuned: str, prompts: str) -> None:
    with TemporaryDirectory() as out:
        kl = measure_kl(base, {"tuned": tuned}, out, prompts=prompts)["runs"][0]
        print(f"KL(tuned || base) {kl['kl_tuned_base']:.3g} nats per token,")
        print(f"95 % interval over prompts {kl['kl_tuned_base_low']:.3g} to {kl['kl_tuned_base_high']:.3g}")

        fisher = measure_fisher(base, {"tuned": tuned}, out, prompts=prompts)["runs"][0]
        print(
            f"it is {fisher['ratio']:.2f} of the quadratic form, and {fisher['ratio_smallest_t']:.3f} for a small step"
        )

        curved = measure_curvature(base, {"tuned": tuned}, out, prompts=prompts, batches=4, matrices=0)["runs"][0]
        for name, words in (("update", "the update"), ("random_on", "random, principal subspace")):
            print(f"{words}: {curved[f'fisher_{name}']:.3g} times as curved as a random direction,")
            print(
                f"  {curved[f'fisher_{name}_verdict']}; from {curved[f'fisher_{name}_detectable']:.3g} it could tell"
            )


if __name__ == "__main__":
    main(*sys.argv[1:4])
