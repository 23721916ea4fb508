"""Token KL against two bare forward passes on the same text, side by side; and what a direction's curvature costs.

The models are Qwen3 of random weights with a vocabulary of 51,200: large enough that the softmax over it is a real
part of the work. A bare pass computes every logit of the text and drops it. Rounds are interleaved; medians.
"""

import argparse
import os
import resource
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from offprincipal.probes import forms
from offprincipal.probes.kl import score
from offprincipal.probes.models import Model
from offprincipal.probes.texts import Text, padded


def made(seed: int, vocabulary: int, width: int, layers: int, attention: str) -> Model:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, head_dim=width // 8, tie_word_embeddings=False,
        attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(seed)
    return Model(Qwen3ForCausalLM(config).requires_grad_(False).eval())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=51_200)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    choice = parser.parse_args()
    shape = (choice.vocabulary, choice.width, choice.layers)
    first, second = made(0, *shape, "sdpa"), made(1, *shape, "sdpa")
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(choice.vocabulary, (choice.texts, choice.tokens), generator=draw)
    texts = [Text(tuple(row), 1, i) for i, row in enumerate(ids.tolist())]

    @torch.no_grad()
    def bare() -> None:
        for model in (first, second):
            model.module(input_ids=ids, use_cache=False)

    def exact() -> None:
        for _ in score(first, second, texts, choice.texts, "cpu"):
            pass

    eager, batch = made(0, *shape, "eager"), padded(texts[:2])
    name = "model.layers.4.mlp.down_proj.weight"
    directions = {name: torch.randn(2, *eager.weights()[name].shape, generator=draw)}

    @torch.no_grad()
    def forward() -> None:
        eager.module(input_ids=batch.ids, use_cache=False)

    def curvature() -> None:
        forms.curvature(eager, batch, directions)

    work = {"two bare forward passes": bare, "KL both ways and TV": exact,
            "one pass, eager, 2 texts": forward, "Fisher and Hessian, 2 directions": curvature}  # fmt: skip
    times: dict[str, list[float]] = {label: [] for label in work}
    for i in range(choice.repeats + 1):  # the first round warms up
        for label, function in work.items():
            start = time.perf_counter()
            function()
            if i:
                times[label].append(time.perf_counter() - start)
    report(times, sum(weight.numel() for weight in first.parameters()), choice)


def report(times: dict[str, list[float]], parameters: int, choice: argparse.Namespace) -> None:
    middle = {label: statistics.median(each) for label, each in times.items()}
    reference = dict(zip(times, ["two bare forward passes"] * 2 + ["one pass, eager, 2 texts"] * 2, strict=True))
    title = f"{parameters / 1e6:.0f} M parameters, vocabulary {choice.vocabulary:,}, {choice.texts} x {choice.tokens} "
    title += f"tokens, medians of {choice.repeats}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    table = Table(title=title)
    for column in ("what", "seconds", "min - max", "ratio"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for label, each in times.items():
        ratio = f"{middle[label] / middle[reference[label]]:.2f}x"
        table.add_row(label, f"{middle[label]:.3f}", f"{min(each):.3f} - {max(each):.3f}", ratio)
    Console(width=120).print(table)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
