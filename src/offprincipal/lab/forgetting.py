"""What an arm forgot of the text that its base was pretrained on: loss per token after minus before.

What it is: cross entropy of stored folders on one fixed set of texts that nothing was trained on, kept so that it may
be stopped and go on. What it is not: accuracy (``judge``). A rise on wrong answers is what the rewards ask for; what
no reward asks for is a rise on the problems themselves, which no arm is trained to write.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offprincipal.checkpoint import open_checkpoint
from offprincipal.fanout import Engine, here
from offprincipal.lab.claims.verdict import estimate
from offprincipal.lab.judge import part_of
from offprincipal.lab.quiet import quiet
from offprincipal.lab.run import need_extra
from offprincipal.lab.tasks import FAMILIES, Item, make_item
from offprincipal.lab.world import END, PAD, load_arm
from offprincipal.rows import one_thread
from offprincipal.store import Store

TEXTS = 512
"""Texts per family (*ours*)."""

KINDS = ("problems", "right answers", "wrong answers")
"""Parts of the texts: the problems, and the answers without and with a wrong step; all are what the base read."""

ALL = "all"

VERSION = 1
"""Of what is kept; it grows when texts are chosen or measured otherwise."""

NEEDED = ("transformers", "datasets")

AT_ONCE = 128  # texts

Counts = dict[str, dict[str, dict[str, float]]]
"""Family to kind of text to ``nats`` and ``tokens``."""


@dataclass(frozen=True)
class Reading:
    """One folder to be read the texts of its laboratory, wherever the engine puts it. Small and picklable."""

    identity: str
    folder: Path
    corruption: float
    data_seed: int

    def measured(self) -> tuple[str, Counts]:
        """The identity of the folder, and its loss."""
        with one_thread(), quiet(0):  # nothing is drawn
            return self.identity, losses(self.folder, corruption=self.corruption, data_seed=self.data_seed)


@cache
def texts(corruption: float, data_seed: int) -> tuple[Item, ...]:
    """The texts: as in pretraining, of held-out problems, the families one after the other.

    The first `TEXTS` problems per family of the test half of the split ``heldout``, which trains nothing and chooses
    no learning rate; `corruption` of the answers have a wrong step, as in pretraining.

    >>> found = texts(0.4, 0)
    >>> len(found), found[0].prompt, round(sum(item.corrupted for item in found) / len(found), 1)
    (1024, 'math 0 -9 -5 -1 -3 +2 =', 0.4)
    """
    found: list[Item] = []
    for family in FAMILIES:
        drawn = (
            make_item(family, seed=data_seed, split="heldout", index=index, corruption=corruption)
            for index in itertools.count()
        )
        found += itertools.islice((item for item in drawn if part_of(item.prompt) == "test"), TEXTS)
    return tuple(found)


@torch.no_grad()
def losses(folder: Path, *, corruption: float, data_seed: int) -> Counts:
    """Next-token cross entropy of a folder on `texts`, in nats summed over tokens, with the number of tokens.

    Every token but the first word of a text is scored, the end token included, as in pretraining. Weights as stored
    in bfloat16, float32 arithmetic, softmax and sums in float64.

    Raises:
        InputError: the folder cannot be read.
    """
    model, tokenizer = load_arm(folder)
    model.eval()
    pad, items = tokenizer.get_vocab()[PAD], texts(corruption, data_seed)
    found = {family: {kind: {"nats": 0.0, "tokens": 0} for kind in KINDS} for family in FAMILIES}
    for at in range(0, len(items), AT_ONCE):
        part = items[at : at + AT_ONCE]
        rows = tokenizer([f"{item.prompt} {item.completion} {END}" for item in part]).input_ids
        longest = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        log_p = model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)  # causal: padding behind is unseen
        nats = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
        for item, row, scored in zip(part, rows, nats, strict=True):
            end, own = len(item.prompt.split()) - 1, found[item.family]
            for kind, span in (("problems", scored[:end]), (_answer(item), scored[end : len(row) - 1])):
                own[kind]["nats"] += float(span.sum())
                own[kind]["tokens"] += len(span)
    return found


def _answer(item: Item) -> str:
    return "wrong answers" if item.corrupted else "right answers"


def read(
    lab: Path, folders: Sequence[Path], out: Path, mark: Mapping[str, Any], engine: Engine = here
) -> list[Counts]:
    """`losses` of the base and of these folders of a laboratory, in this order, from `out` where they are there.

    Args:
        lab: the laboratory.
        folders: of arms and stages.
        out: where finished ones are kept.
        mark: ``lab.json``.
        engine: where folders are read.

    Raises:
        InputError: a folder cannot be read, or `out` holds something else or cannot be written.
        UsageError: the extra ``lab`` is not installed.
    """
    need_extra(NEEDED)
    settings = {"corruption": mark["preset"]["corruption"], "data_seed": mark["seed"]}
    store = Store(out, {**settings, "texts": TEXTS, "part": "test", "version": VERSION})
    readings = [Reading(open_checkpoint(each).identity(), each, **settings) for each in (lab / "base", *folders)]
    with store.locked():
        found = {each.identity: store.get(each.identity) for each in readings}
        todo = [each for each in dict.fromkeys(readings) if found[each.identity] is None]
        for identity, counts in engine(Reading.measured, todo):
            store.add(identity, counts)
            found[identity] = counts
    return [found[each.identity] or {} for each in readings]


def rise(after: Counts, before: Counts) -> dict[str, float]:
    """Nats per token that were lost, both families together: all text, then each of `KINDS`. Positive: forgot.

    >>> one = {"math": {kind: {"nats": 2.0, "tokens": 4} for kind in KINDS}}
    >>> two = {"math": {kind: {"nats": 1.0, "tokens": 4} for kind in KINDS}}
    >>> rise(one, two)
    {'all': 0.25, 'problems': 0.25, 'right answers': 0.25, 'wrong answers': 0.25}
    """
    groups = {ALL: KINDS, **{kind: (kind,) for kind in KINDS}}
    return {name: _per_token(after, kinds) - _per_token(before, kinds) for name, kinds in groups.items()}


def _per_token(counts: Counts, kinds: Sequence[str]) -> float:
    parts = [family[kind] for family in counts.values() for kind in kinds]
    return sum(part["nats"] for part in parts) / max(sum(part["tokens"] for part in parts), 1)


def over_seeds(rises: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Per kind of text ``mean``, ``low``, ``high`` (95 % over run seeds, None where there is one) and ``seeds``.

    >>> over_seeds([{"all": 0.1}])
    {'all': {'mean': 0.1, 'low': None, 'high': None, 'seeds': 1}}
    """
    return {name: estimate([np.array([each[name]]) for each in rises]).row() for name in rises[0]}
