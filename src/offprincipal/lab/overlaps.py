"""A run from a changed base beside the untouched run: update masks and updates, as they are and mapped back.

What it is: what two runs share in each matrix, beside what independent masks and magnitude alone would give, and what
a second untouched run shares. What it is not: the changes (``rewrite``), the training (``intervene``) or a verdict
(``claims``).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from offprincipal.checkpoint import open_checkpoint
from offprincipal.measures import bits, nulls
from offprincipal.measures.consensus import RunPair
from offprincipal.pairs import Pair, pair
from offprincipal.rewrite import Transform

RUN, OTHER_SEED, OTHER_PROBLEMS = "rlvr-1", "other-seed", "rlvr-2"
"""The untouched run; one on its problems with another seed; one on other problems with another seed."""

INTERVENTIONS = "interventions"
"""The folder of a laboratory that holds changed bases and the runs from them."""

COMPARED = {
    "as_is": "index by index",
    "mapped_back": "mapped back",
    "other_seed": "another seed",
    "other_problems": "other problems",
}
"""What is held against the untouched run: the run from the changed base, twice, and two untouched runs."""

MEANS = ("jaccard", "jaccard_bernoulli", "jaccard_matched", "cosine")

_Pairs = Mapping[str, Pair]


def agreements(lab: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """One linear matrix at a time: its spectrum before and after the change, and what the runs share.

    Args:
        lab: a laboratory with ``base`` and ``rlvr-1``; ``rlvr-2`` and ``interventions/other-seed`` where they are.
        folder: an intervention of it: ``base``, ``rlvr-1``, ``mapped/rlvr-1``.

    Yields:
        ``tensor``, ``layer``, ``kind``; ``touched`` by the change; ``nss_stored`` and ``nss_exact``: relative shift of
        the singular values, in float64, as the changed base is stored and before it was rounded; ``compared``: for
        each key of `COMPARED` the counts of `RunPair`, and ``cosine`` of the two updates (None where one is zero).
        A run's updates are taken from its float32 master where there is one, against its own base as stored.

    Raises:
        InputError: a checkpoint cannot be read, or the two bases do not belong together.
    """
    base, changed = open_checkpoint(lab / "base"), open_checkpoint(folder / "base")
    transform = Transform.load(folder / "base")
    own = _by_name(base, lab / RUN)
    others = {
        "as_is": _by_name(changed, folder / RUN),
        "mapped_back": _by_name(base, folder / "mapped" / RUN),
        "other_seed": _by_name(base, lab / INTERVENTIONS / OTHER_SEED),
        "other_problems": _by_name(base, lab / OTHER_PROBLEMS),
    }
    for each in pair(base, changed).pairs:
        if each.place.linear:
            before, after = each.load()
            exact = transform.apply(each.name, before, torch.float64)
            yield {
                "tensor": each.name,
                "layer": each.place.layer,
                "kind": each.place.kind,
                "touched": each.name in transform.actions,
                "nss_stored": nss(before, after),
                "nss_exact": nss(before, exact),
                "compared": _compared(before, own.get(each.name), {k: v.get(each.name) for k, v in others.items()}),
            }


def finest(folder: Path) -> Path:
    """The float32 master of a run, or the run where there is none."""
    return folder / "master" if (folder / "master").is_dir() else folder


def _by_name(base: Any, run: Path) -> _Pairs:
    """Canonical name to pair; empty where the run is not there."""
    return {each.name: each for each in pair(base, open_checkpoint(finest(run))).pairs} if run.is_dir() else {}


def nss(before: Tensor, after: Tensor) -> float:
    """Relative shift of the singular values ``||s(W) - s(W0)|| / ||s(W0)||``, in float64; matrices ``[out, in]``.

    >>> nss(torch.diag(torch.tensor([3.0, 4.0])), torch.diag(torch.tensor([-4.0, 3.0])))
    0.0
    """
    if torch.equal(before, after):
        return 0.0
    old, new = (torch.linalg.svdvals(side.to(torch.float64)) for side in (before, after))
    return float((new - old).norm() / old.norm())


def _compared(before: Tensor, own: Pair | None, others: Mapping[str, Pair | None]) -> dict[str, dict[str, Any]]:
    """The untouched run with each of the others that is there."""
    if own is None:
        return {}
    codes, first, found = bits.magnitude_code(before), own.load(), {}
    for name, other in others.items():
        if other is not None:
            second = other.load()
            shared = jaccard(codes, bits.changed(*first), bits.changed(*second)).row()
            found[name] = shared | {"cosine": cosine(_update(first), _update(second))}
    return found


def _update(sides: tuple[Tensor, Tensor]) -> Tensor:
    return sides[1].to(torch.float64) - sides[0].to(torch.float64)


def cosine(first: Tensor, second: Tensor) -> float | None:
    """Cosine of two updates as long vectors; None where one of them is zero.

    >>> cosine(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])), cosine(torch.zeros(2), torch.ones(2))
    (0.0, None)
    """
    size = float(first.norm() * second.norm())
    return float((first * second).sum()) / size if size else None


def jaccard(codes: Tensor, first: Tensor, second: Tensor) -> RunPair:
    """Two masks compared, without the rest of a `Consensus`.

    Args:
        codes: magnitude codes of the base, in the shape of the masks.
        first: bool.
        second: bool.

    >>> mask = torch.tensor([True, True, False, False])
    >>> found = jaccard(torch.zeros(4, dtype=torch.int32), mask, mask.roll(1))
    >>> found.both, found.jaccard == 1 / 3, found.jaccard_bernoulli == 1 / 3
    (1, True, True)
    """
    flat = codes.flatten().to(torch.int64)
    total, a, b = (
        torch.bincount(flat[mask.flatten()], minlength=bits.MAGNITUDE_CODES)
        for mask in (torch.ones_like(first), first, second)
    )
    sizes = int(a.sum()), int(b.sum())
    chance = sizes[0] * sizes[1] / max(first.numel(), 1)
    both = int((first & second).sum())
    return RunPair(0, 1, first.numel(), *sizes, both, chance, *nulls.magnitude(total, a).overlap(b))


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over matrices, unweighted: each touched kind, the rest of the block, the other blocks.

    Args:
        rows: what `agreements` yields, with ``intervention`` and ``block``.

    Returns:
        One record per intervention and place: ``intervention``, ``where``, ``touched``, ``matrices``, ``changed``
        (share, of the untouched run), and for each comparison the means of `MEANS` (None where nothing changed).
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (not row["touched"], row["layer"] != row["block"])):
        groups.setdefault((row["intervention"], _where(row)), []).append(row)
    order = list(dict.fromkeys(row["intervention"] for row in rows))
    records = [_mean_record(name, where, group) for (name, where), group in groups.items()]
    return sorted(records, key=lambda record: order.index(record["intervention"]))


def _where(row: Mapping[str, Any]) -> str:
    if row["touched"]:
        return f"block {row['layer']}, {row['kind']}"
    return f"block {row['layer']}, rest" if row["layer"] == row["block"] else "other blocks"


def _mean_record(name: str, where: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shares = [row["compared"]["as_is"]["changed_left"] / row["compared"]["as_is"]["counted"] for row in rows]
    compared = {
        key: {word: _mean([row["compared"][key] for row in rows if key in row["compared"]], word) for word in MEANS}
        for key in COMPARED
    }
    return {
        "intervention": name,
        "where": where,
        "touched": rows[0]["touched"],
        "matrices": len(rows),
        "changed": sum(shares) / len(shares),
        "compared": compared,
    }


def _mean(found: Sequence[Mapping[str, Any]], word: str) -> float | None:
    """Over the matrices that one of the two runs changed."""
    values = [each[word] for each in found if each["either"] and each[word] is not None]
    return sum(values) / len(values) if values else None


def print_interventions(answer: Mapping[str, Any], console: Console) -> None:
    """What ``interventions.json`` holds as a person reads it: one table, and what was preserved below it."""
    table = Table(title=f"Update masks shared with {RUN}, the untouched run", title_justify="left", title_style="bold")
    table.add_column("base", no_wrap=True)
    table.add_column("where", no_wrap=True)
    table.add_column("changed", justify="right")
    for words in COMPARED.values():
        table.add_column(words, justify="right")
    name = None
    for row in answer["summary"]:
        if row["intervention"] != name and name is not None:
            table.add_section()
        first, name = row["intervention"] != name, row["intervention"]
        cells = [_cell(row["compared"][key]) for key in COMPARED]
        table.add_row(name if first else "", row["where"], f"{100 * row['changed']:.1f} %", *cells)
    table.caption = (
        "Jaccard (independent masks, magnitude null) and cosine of the updates; means over matrices, unweighted"
    )
    table.caption_justify = "left"
    console.print(table)
    for name, kept in answer["preserved"].items():
        console.print(f"{name}: {_kept(kept)}", soft_wrap=True, highlight=False)


def _cell(found: Mapping[str, float | None]) -> str:
    """A comparison in two lines.

    >>> print(_cell({"jaccard": 0.5, "jaccard_bernoulli": 0.25, "jaccard_matched": 0.375, "cosine": -0.1}))
    .500 (.250, .375)
    cos -.100
    """
    shares = [_three(found[word]) for word in MEANS]
    return f"{shares[0]} ({shares[1]}, {shares[2]})\ncos {shares[3]}"


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def _kept(kept: Mapping[str, Any]) -> str:
    logits = kept["verify"]
    told = ", ".join(f"{logits[key]['max_relative']:.1e} {words}" for key, words in _ARITHMETIC.items())
    return (
        f"logits differ by {told}; singular values of the touched matrices by {kept['nss_exact']:.1e} before rounding "
        f"and {kept['nss_stored']:.1e} as stored"
    )


_ARITHMETIC = {
    "float64": "(float64)",
    "float32": "(float32)",
    "rounding": "(as stored, float64)",
    "bfloat16": "(as stored, bfloat16)",
    "bfloat16_arithmetic": "(bfloat16 by itself)",
}
