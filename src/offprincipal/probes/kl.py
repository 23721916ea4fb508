"""Gate I: how far a tuned policy has moved from its base, as token KL on given text. Read `measure_kl` first.

What it is: KL in both directions and total variation at every scored token, exact over the vocabulary. For two
consecutive checkpoints it is the step KL. What it is not: a KL over whole answers, unless the text is sampled from the
first of the two (then the mean token KL times the mean length is one), or a proof that anything held the policy back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from offprincipal.checkpoint import Checkpoint
from offprincipal.errors import UsageError
from offprincipal.probes.divergence import NAMES, divergences, pieces
from offprincipal.probes.intervals import ratio_of_sums
from offprincipal.probes.models import Model, check_device, load_model, open_all
from offprincipal.probes.results import described, prepare, ranged, section, write
from offprincipal.probes.texts import Text, batches, check_ids, prompts_of, read_texts, sample
from offprincipal.probes.tokens import beginning, ends_of, one_tokenizer

DEFINITIONS = {
    "kl_tuned_base": "sum_v p_tuned(v) log(p_tuned(v) / p_base(v)) per scored token, nats, mean over tokens",
    "kl_base_tuned": "the same with base and tuned exchanged",
    "tv": "sum_v |p_tuned(v) - p_base(v)| / 2 per scored token, mean over tokens",
    "interval": "95 %, percentile bootstrap over prompts of sum over tokens / number of tokens",
    "scored": "tokens of the completion; of a prompt without one, all but its first; of a sample, what was sampled",
}

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """How the text is chosen and taken.

    Attributes:
        prompts: the prompt file, or None.
        sample: continuations per prompt, or 0 to score the file as it is.
        sampled_by: whose continuations: "tuned" (each run its own) or "base".
        max_new_tokens: of a continuation.
        seed: of samples and bootstrap.
        device: where models compute.
        batch: texts at a time.
    """

    prompts: str | None = None
    sample: int = 0
    sampled_by: str = "tuned"
    max_new_tokens: int = 128
    seed: int = 0
    device: str = "cpu"
    batch: int = 8

    def __post_init__(self) -> None:
        if self.prompts is None and not self.sample:
            raise UsageError("probe the KL", "neither prompts nor a number of samples was given", "give one or both")
        if self.sampled_by not in ("tuned", "base"):
            raise UsageError("sample", f"{self.sampled_by!r} is neither tuned nor base", "choose one of the two")
        if self.sample < 0 or min(self.batch, self.max_new_tokens) < 1:
            raise UsageError("probe the KL", "a size is below 1", "give positive numbers")
        check_device(self.device)


def measure_kl(
    base: str | Path,
    tuned: Sequence[str | Path] | Mapping[str, str | Path],
    out: str | Path,
    *,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Token KL of each tuned checkpoint to the base and back, and total variation.

    Args:
        base: a checkpoint ref with config.json and tokenizer, on this disk or in the Hub's cache.
        tuned: refs, or labels with refs; two consecutive checkpoints of a run give its step KL.
        out: folder for ``probe-kl.json``, ``probe-kl.parquet`` (one row per run and scored token) and
            ``probe-kl-prompts.parquet`` (one row per run and prompt, sums). In the folder of a comparison its report
            and summary show the result.
        progress: called as ``progress(done, total, what)`` after each batch.
        command: the command line to be recorded.
        **options: fields of `Settings`.

    Returns:
        The content of ``probe-kl.json``.

    Raises:
        InputError: a checkpoint, its tokenizer or the prompts cannot be used, or the tokenizers differ.
        UsageError: the extra ``hf`` is missing, or the options make no sense.

    Arithmetic: weights and logits in float32, softmax and sums in float64. Memory: two models, and a few positions of
    logits at a time. Vocabularies padded to different lengths are compared on their common tokens, renormalised.
    """
    settings = Settings(**options)
    before, runs = open_all(base, tuned)
    tokenizer = one_tokenizer(before, list(runs.values()))
    given = None if settings.prompts is None else read_texts(settings.prompts, tokenizer)
    folder = prepare(out)
    old = load_model(before, device=settings.device)
    found = []
    for label, checkpoint in runs.items():
        new = load_model(checkpoint, device=settings.device)
        texts = _texts(old, new, given, tokenizer, settings, progress)
        check_ids(texts, _common(old, new), _longest(old, new), f"probe {checkpoint.ref!r} against {before.ref!r}")
        found.append(_run(label, checkpoint, (new, old), texts, settings, progress))
        del new
    answer = {
        "base": described(before),
        "runs": [run for run, _, _ in found],
        "settings": asdict(settings),
        "definitions": DEFINITIONS,
        "command": command,
        "section": _section([run for run, _, _ in found], [rows for _, rows, _ in found], settings),
    }
    tables = {f"probe-kl{name}": pa.concat_tables([f[i] for f in found]) for i, name in ((1, ""), (2, "-prompts"))}
    return write(folder, "kl", answer, tables)


def _common(old: Model, new: Model) -> int:
    return min(old.vocabulary, new.vocabulary)


def _longest(old: Model, new: Model) -> int | None:
    return min((model.longest for model in (old, new) if model.longest), default=None)


def _texts(
    old: Model, new: Model, given: list[Text] | None, tokenizer: Any, settings: Settings, progress: Progress | None
) -> list[Text]:
    """The prompt file as it is, or continuations of its prompts (of nothing, where there is no file)."""
    if not settings.sample:
        return given or []
    model = old if settings.sampled_by == "base" else new
    prompts = [beginning(tokenizer)] * settings.sample if given is None else prompts_of(given)
    each = 1 if given is None else settings.sample
    longest = settings.max_new_tokens
    if model.longest:  # whatever room the longest prompt leaves
        longest = max(1, min(longest, model.longest - max(map(len, prompts))))
    return sample(
        model, prompts, each, ends=ends_of(model, tokenizer), longest=longest, seed=settings.seed,
        size=4 * settings.batch, progress=progress,
    )  # fmt: skip


@torch.no_grad()
def score(first: Model, second: Model, texts: Sequence[Text], size: int, device: str) -> Iterator[tuple[Text, Any]]:
    """Each text with its `divergences` of first and second, float64 numpy [scored tokens, 3]."""
    common = _common(first, second)
    for batch in batches(texts, size, device):
        left, right = (m.hidden(batch.ids, batch.seen)[:, :-1][batch.scored] for m in (first, second))
        rows = torch.cat(
            [
                divergences(first.logits(left[piece])[:, :common], second.logits(right[piece])[:, :common])
                for piece in pieces(len(left), common)
            ]
        )
        yield from zip(batch.texts, rows.cpu().split(batch.scored.sum(1).tolist()), strict=True)


def _run(
    label: str,
    checkpoint: Checkpoint,
    models: tuple[Model, Model],
    texts: Sequence[Text],
    settings: Settings,
    progress: Progress | None,
) -> tuple[dict[str, Any], pa.Table, pa.Table]:
    """Numbers of one run, its tokens and its prompts."""
    number = {id(text): i for i, text in enumerate(texts)}
    rows: list[np.ndarray] = [np.empty((0, 3))] * len(texts)
    for done, (text, found) in enumerate(score(*models, texts, settings.batch, settings.device), 1):
        rows[number[id(text)]] = found.numpy()
        if progress:
            progress(done, len(texts), label)
    lengths = [len(part) for part in rows]
    numbers, owner = np.concatenate(rows), np.repeat([text.prompt for text in texts], lengths)
    tokens = pa.table(
        {
            "run": pa.repeat(label, len(owner)),
            "prompt": owner,
            "text": np.repeat(np.arange(len(texts)), lengths),
            "position": np.concatenate([np.arange(text.first, len(text.ids)) for text in texts]),
            "token": np.concatenate([np.asarray(text.ids[text.first :]) for text in texts]),
            **{name: numbers[:, i] for i, name in enumerate(NAMES)},
        }
    )
    each = np.unique(owner)
    counts = np.bincount(owner)[each]
    sums = {name: np.bincount(owner, numbers[:, i])[each] for i, name in enumerate(NAMES)}
    prompts = pa.table({"run": pa.repeat(label, len(each)), "prompt": each, "tokens": counts, **sums})
    run: dict[str, Any] = {"label": label, **described(checkpoint), "prompts": len(each), "tokens": len(owner)}
    run |= {"texts": len(texts), "vocabulary": [model.vocabulary for model in models]}
    for i, name in enumerate(NAMES):
        held = ratio_of_sums(list(sums[name]), list(counts), seed=settings.seed, name=f"{label} {name}")
        run |= {name: held.value, f"{name}_low": held.low, f"{name}_high": held.high}
        run |= {f"{name}_max": float(numbers[:, i].max()), f"{name}_sum": float(numbers[:, i].sum())}
    return run, tokens, prompts


def _section(runs: Sequence[Mapping[str, Any]], tables: Sequence[pa.Table], settings: Settings) -> dict[str, Any]:
    rows = [
        [run["label"], *(ranged(run[name], run[f"{name}_low"], run[f"{name}_high"]) for name in NAMES),
         f"{run['kl_tuned_base_max']:.3g}", f"{run['prompts']:,}", f"{run['tokens']:,}"]
        for run in runs
    ]  # fmt: skip
    whose = "each tuned model" if settings.sampled_by == "tuned" else "the base"
    where = (
        f"continuations sampled from {whose}" if settings.sample else f"the text of {Path(str(settings.prompts)).name}"
    )
    columns = [
        "run",
        "KL(tuned || base)",
        "KL(base || tuned)",
        "total variation",
        "largest token KL",
        "prompts",
        "tokens",
    ]
    note = "nats per token, exact over the vocabulary; 95 % bootstrap interval over prompts"
    sentence = (
        f"Measured on {where}. A small KL is what Gate I says of RLVR; it is also what any small update has, so "
        "compare runs at one norm of the update."
    )
    table = {"title": "Token KL between tuned and base", "columns": columns, "rows": rows, "note": note}
    chart = {
        "title": "Token KL along the text",
        "words": "Mean KL(tuned || base) by token number.",
        "spec": _chart(tables),
    }
    return section("Gate I: how far the policy moved", [sentence], [table], charts=[chart])


def _chart(tables: Sequence[pa.Table]) -> dict[str, Any]:
    points = []
    for table in tables:
        at, values = table["position"].to_numpy(), table["kl_tuned_base"].to_numpy()
        width = max(1, -(-int(at.max()) // 64))  # at most 64 points per run
        counts, sums = np.bincount(at // width), np.bincount(at // width, values)
        points += [
            {"run": table["run"][0].as_py(), "position": int(i * width), "kl": float(sums[i] / counts[i])}
            for i in np.flatnonzero(counts)
        ]
    return {
        "data": {"values": points},
        "width": "container",
        "height": 190,
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "position", "type": "quantitative", "title": "token"},
            "y": {"field": "kl", "type": "quantitative", "title": "nats"},
            "color": {
                "field": "run",
                "type": "nominal",
                "sort": None,
                "scale": {"range": [f"var(--run-{i})" for i in range(8)]},
            },
        },
    }
