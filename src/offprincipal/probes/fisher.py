"""Gate I in the small: is the KL of a step the quadratic form ``D' F D / 2``? Read `measure_fisher` first.

What it is: the form along the whole update D, exact over the vocabulary and with the text's own tokens (empirical),
against the KL measured at ``base + t D`` as t goes to 0 (PNT F.5 and Proposition 3.2). What it is not: a bound on the
size of D, which would need the smallest eigenvalue of F; the form along one direction says nothing about others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from offprincipal.errors import InputError, UsageError
from offprincipal.probes.divergence import divergences, pieces
from offprincipal.probes.forms import fisher_terms
from offprincipal.probes.intervals import ratio_of_sums
from offprincipal.probes.models import Model, Parameters, check_device, load_model, open_all
from offprincipal.probes.results import described, prepare, ranged, section, write
from offprincipal.probes.texts import Batch, batches, check_ids, read_texts
from offprincipal.probes.tokens import one_tokenizer
from offprincipal.probes.wide import Wide

FLOOR = 1e-12
"""Residuals below this are rounding and take no part in a slope, nats per token (*ours*)."""

DEFINITIONS = {
    "form": "D' F D / 2 per scored token, nats; F exact over the vocabulary at the base, D the whole update",
    "empirical": "the same with the empirical Fisher: (grad log p(y) . D)^2 / 2 with y the text's next token",
    "kl": "KL(base + t D || base) per scored token, exact over the vocabulary",
    "ratio": "kl / (t^2 form); tends to 1 (PNT F.5, claim G1)",
    "leash": "sqrt(t^2 D' F D) / sqrt(2 kl); at most 1 + o(1), tends to 1 (PNT Prop. 3.2, claim G3)",
    "slope": "of log |kl - t^2 form| over log t, over the four smallest steps above rounding: 3 by PNT F.5",
    "slope_even": "the same of the mean over t and -t, whose cubic term cancels: 4",
    "interval": "95 %, percentile bootstrap over prompts",
}

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        prompts: the prompt file.
        halvings: steps t = 1, 1/2, 1/4 and so on: how often it is halved.
        seed: of the bootstrap.
        device: where the models compute.
        batch: texts at a time.
    """

    prompts: str
    halvings: int = 8
    seed: int = 0
    device: str = "cpu"
    batch: int = 8

    def __post_init__(self) -> None:
        if self.halvings < 1 or self.batch < 1:
            raise UsageError("probe the Fisher form", "a size is below 1", "give positive numbers")
        check_device(self.device)


def measure_fisher(
    base: str | Path,
    tuned: Sequence[str | Path] | Mapping[str, str | Path],
    out: str | Path,
    *,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The Fisher form of each tuned checkpoint's update, and the KL that it should predict.

    Args:
        base: a checkpoint ref with config.json and tokenizer, on this disk or in the Hub's cache.
        tuned: refs, or labels with refs.
        out: folder for ``probe-fisher.json`` and ``probe-fisher.parquet`` (one row per run, prompt and t: sums).
        progress: called as ``progress(done, total, what)`` after each batch.
        command: the command line to be recorded.
        **options: fields of `Settings`; ``prompts`` is needed.

    Returns:
        The content of ``probe-fisher.json``.

    Raises:
        InputError: a checkpoint or the prompts cannot be used, or nothing changed.
        UsageError: the extra ``hf`` is missing, or the options make no sense.

    Arithmetic: float64 throughout, in the models too (`wide.Wide`); stored weights are widened without change. Memory:
    the base and two updates in float64. Cost: two forward passes for the form, one per t and sign.
    """
    settings = Settings(**options)
    before, runs = open_all(base, tuned)
    tokenizer = one_tokenizer(before, list(runs.values()))
    texts = read_texts(settings.prompts, tokenizer)
    folder = prepare(out)
    model = load_model(before, dtype=torch.float64, device=settings.device, derivatives=True)
    check_ids(texts, model.vocabulary, model.longest, f"probe {before.ref!r}")
    dealt, found, rows = list(batches(texts, settings.batch, settings.device)), [], []
    for label, checkpoint in runs.items():
        delta = update(model, load_model(checkpoint, dtype=torch.float64, device=settings.device), label)
        with Wide():
            own = _rows(model, delta, dealt, settings, label, progress)
        size = sum(float(each.square().sum()) for each in delta.values()) ** 0.5
        found.append({"label": label, **described(checkpoint), "delta_norm": size, **_reduced(own, settings, label)})
        rows += own
    answer = {
        "base": described(before),
        "runs": found,
        "prompts": len(texts),
        "tokens": sum(int(batch.scored.sum()) for batch in dealt),
        "settings": asdict(settings),
        "definitions": DEFINITIONS,
        "command": command,
        "section": _section(found),
    }
    return write(folder, "fisher", answer, {"probe-fisher": pa.Table.from_pylist(rows)})


def update(model: Model, tuned: Model, label: str) -> dict[str, Tensor]:
    """D: every parameter's difference, float64, on the model's device.

    Raises:
        InputError: the models have different parameters, or D = 0.
    """
    old, new = model.weights(), tuned.weights()
    strange = sorted(
        name
        for name in old.keys() | new.keys()
        if getattr(old.get(name), "shape", 0) != getattr(new.get(name), "shape", 1)
    )
    asked = f"probe the Fisher form along {label!r}"
    if strange:
        found = f"{len(strange)} parameters differ in name or shape, {strange[0]} first"
        raise InputError(asked, found, "give a tune of this base")
    delta = {name: new[name] - old[name] for name in old}
    if not any(bool(each.any()) for each in delta.values()):
        raise InputError(asked, "no parameter differs from the base's: D = 0", "give a checkpoint that was trained")
    return delta


@torch.no_grad()
def _rows(
    model: Model,
    delta: Mapping[str, Tensor],
    dealt: Sequence[Batch],
    settings: Settings,
    label: str,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Sums per prompt: the forms (as t = 0) and the KL at each t, positive and negative."""
    steps = [2.0**-i for i in range(settings.halvings + 1)]
    weights, rows = model.weights(), []
    for number, batch in enumerate(dealt, 1):
        lengths = batch.scored.sum(1).tolist()
        about = [
            {"run": label, "prompt": text.prompt, "tokens": n} for text, n in zip(batch.texts, lengths, strict=True)
        ]
        exact, empirical = (each.split(lengths) for each in fisher_terms(model, batch, delta))
        rows += [{**row, "t": 0.0, "form": float(exact[i].sum()) / 2, "empirical": float(empirical[i].sum()) / 2}
                 for i, row in enumerate(about)]  # fmt: skip
        still = model.hidden(batch.ids, batch.seen)[:, :-1][batch.scored]
        for t in (sign * step for step in steps for sign in (1, -1)):
            moved = {name: weights[name] + t * each for name, each in delta.items()}
            kl = _kl(model, moved, still, batch).split(lengths)
            rows += [{**row, "t": t, "kl": float(kl[i].sum())} for i, row in enumerate(about)]
        if progress:
            progress(number, len(dealt), label)
    return rows


def _kl(model: Model, moved: Parameters, still: Tensor, batch: Batch) -> Tensor:
    """KL(moved || base) at every scored token."""
    hidden = model.hidden(batch.ids, batch.seen, moved)[:, :-1][batch.scored]
    return torch.cat(
        [
            divergences(model.logits(hidden[piece], moved), model.logits(still[piece]))[:, 0]
            for piece in pieces(len(still), model.vocabulary)
        ]
    )


def _reduced(rows: Sequence[Mapping[str, Any]], settings: Settings, label: str) -> dict[str, Any]:
    """Per t the ratio with its interval; the slopes of the residual."""
    at: dict[float, list[Mapping[str, Any]]] = {}
    for row in rows:
        at.setdefault(row["t"], []).append(row)
    form = [row["form"] for row in at[0.0]]
    tokens = sum(row["tokens"] for row in at[0.0])
    half = sum(form) / tokens
    share = ratio_of_sums([row["empirical"] for row in at[0.0]], form, seed=settings.seed, name=f"{label} empirical")
    steps, residuals = [], []
    for t in sorted((t for t in at if t > 0), reverse=True):
        sums = [row["kl"] for row in at[t]]
        kl, back = sum(sums) / tokens, sum(row["kl"] for row in at[-t]) / tokens
        held = ratio_of_sums(sums, [t * t * each for each in form], seed=settings.seed, name=f"{label} {t}")
        residuals.append((t, kl - t * t * half, (kl + back) / 2 - t * t * half))
        steps.append({"t": t, "kl": kl, "kl_backward_step": back, "ratio": held.value, "ratio_low": held.low,
                      "ratio_high": held.high, "leash": t * (half / kl) ** 0.5 if kl > 0 else None,
                      "residual": residuals[-1][1], "residual_even": residuals[-1][2]})  # fmt: skip
    return {
        "form": half, "empirical": share.value * half, "empirical_ratio": share.value,
        "empirical_ratio_low": share.low, "empirical_ratio_high": share.high, "kl": steps[0]["kl"],
        "ratio": steps[0]["ratio"], "ratio_smallest_t": steps[-1]["ratio"],
        "slope": slope([(t, odd) for t, odd, _ in residuals]),
        "slope_even": slope([(t, even) for t, _, even in residuals]), "steps": steps,
    }  # fmt: skip


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Least-squares slope of log |residual| over log t at the four smallest t above `FLOOR`; None below three.

    >>> round(slope([(t, -0.1 * t**3) for t in (1.0, 0.5, 0.25, 0.125)]), 9)
    3.0
    """
    kept = sorted((t, abs(y)) for t, y in points if abs(y) > FLOOR)[:4]
    if len(kept) < 3:
        return None
    t, y = np.log(np.array(kept)).T
    return float(np.polyfit(t, y, 1)[0])


def _section(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    summary = [
        [run["label"], f"{run['delta_norm']:.3g}", f"{run['form']:.3g}", f"{run['kl']:.3g}",
         ranged(run["empirical_ratio"], run["empirical_ratio_low"], run["empirical_ratio_high"]),
         *("–" if run[name] is None else f"{run[name]:.2f}" for name in ("slope", "slope_even"))]
        for run in runs
    ]  # fmt: skip
    steps = [
        [f"{run['label']}: t = {step['t']:g}", f"{step['kl']:.3g}",
         ranged(step["ratio"], step["ratio_low"], step["ratio_high"]),
         "–" if step["leash"] is None else f"{step['leash']:.4f}", f"{step['residual']:.2g}"]
        for run in runs
        for step in run["steps"]
    ]  # fmt: skip
    sentence = (
        "The whole update D against the Fisher form at the base. The ratio at t = 1 says whether this update is small "
        "in the sense of the theory; its limit at t = 0 is 1 for any update: a check of the arithmetic, not a finding."
    )
    return section(
        "Gate I: the KL as a quadratic form",
        [sentence],
        [
            {"title": "Form and KL", "columns": ["run", "|D|", "D'FD / 2", "KL at t = 1", "empirical / exact",
             "slope (3)", "even part (4)"], "rows": summary, "note": "nats per token"},
            {"title": "As the step shrinks", "columns": ["run", "KL", "KL / (t² D'FD / 2)", "leash", "residual"],
             "rows": steps, "note": "95 % bootstrap interval over prompts"},
        ],
    )  # fmt: skip
