"""Measured curvatures to words: sharper, flatter or cannot tell, with the ratio that could have been told."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from offprincipal.probes.directions import PARTS
from offprincipal.probes.intervals import contrast
from offprincipal.probes.results import ranged, section

FORMS = {"fisher": "Fisher (Gauss-Newton)", "hessian": "Hessian of the NLL"}

DEFINITIONS = {
    "fisher": "v' F v with |v| = 1, exact over the vocabulary, mean over scored tokens; equals the Gauss-Newton form",
    "hessian": "v' H v with |v| = 1 of the mean negative log-likelihood of the scored tokens",
    **{f"part {name}": words for name, words in PARTS.items()},
    "ratio": "quotient along a direction over the mean quotient along random (Gaussian) directions of equal norm",
    "interval": "95 %, bootstrap over batches and draws with Student's t; not corrected for the number of matrices",
    "detectable": "smallest ratio above 1 that this test would call sharper with power .8",
    "all matrices together": "one direction through every matrix, each with its share of the update's norm",
}

Row = Mapping[str, Any]


def judged(rows: Iterable[Row], label: str, together: str, seed: int) -> dict[str, Any]:
    """Every contrast of one run: through all matrices (``all``), per matrix (``matrices``), and how many say what.

    Also flat: ``fisher_update``, ``_low``, ``_high``, ``_detectable``, ``_verdict`` through all matrices, and the same
    for ``hessian`` and for ``random_on``, the premise that principal directions are sharp.
    """
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        if row["run"] in (label, ""):
            blocks.setdefault(row["block"], []).append(row)
    own = {name: found for name, found in blocks.items() if any(row["run"] == label for row in found)}
    per_block = [
        {
            "block": name,
            "layer": found[0]["layer"],
            "kind": found[0]["kind"],
            "contrasts": _contrasts(name, found, seed),
        }
        for name, found in own.items()
    ]
    whole = next(each for each in per_block if each["block"] == together)["contrasts"]
    matrices = [each for each in per_block if each["block"] != together]
    flat = {
        f"{form}_{name}{end}": found[key]
        for form, name, words in (
            (form, name, f"{form} {source} {part}")
            for form in FORMS
            for name, source, part in (("update", "update", "whole"), ("random_on", "random", "on"))
        )
        if (found := whole.get(words))
        for key, end in (
            ("ratio", ""),
            ("low", "_low"),
            ("high", "_high"),
            ("detectable", "_detectable"),
            ("verdict", "_verdict"),
        )
    }
    return {**flat, "all": whole, "matrices": matrices, "verdicts": _counts(matrices)}


def _contrasts(block: str, rows: Sequence[Row], seed: int) -> dict[str, dict[str, Any]]:
    """``"fisher update on"`` to its quotient and contrast with whole random directions."""
    batches = 1 + max(row["batch"] for row in rows)
    tokens = {row["batch"]: row["tokens"] for row in rows}
    scale = batches / sum(tokens.values())  # so that the mean over batches is the sum over tokens by their number
    found = {}
    for form in FORMS:
        table = {
            (source, part): _table(rows, source == "random", part, form, batches) * scale
            for source in ("update", "random")
            for part in PARTS
        }
        against = table["random", "whole"]
        found[f"{form} random whole"] = {"quotient": float(against.mean())}
        for (source, part), curved in table.items():
            if curved.size and (source, part) != ("random", "whole"):
                name = f"{block} {form} {source} {part}"
                made = asdict(contrast(curved, against, seed=seed, name=name))
                found[f"{form} {source} {part}"] = {"quotient": float(curved.mean()), **made}
    return found


def _table(rows: Sequence[Row], random: bool, part: str, form: str, batches: int) -> np.ndarray:
    """[batch, draw] of one direction; empty where no such direction was measured."""
    chosen = [row for row in rows if row["part"] == part and (row["draw"] >= 0) == random]
    draws = sorted({row["draw"] for row in chosen})
    table = np.zeros((batches, len(draws)))
    for row in chosen:
        table[row["batch"], draws.index(row["draw"])] = row[form]
    return table


def _counts(matrices: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Per direction: how many matrices are sharper, flatter, undecided, and the median ratio."""
    counts: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for matrix in matrices for name in matrix["contrasts"]):
        made = [each for m in matrices if (each := m["contrasts"].get(name)) and "verdict" in each]
        if made:
            words = [each["verdict"] for each in made]
            counts[name] = {word: words.count(word) for word in ("sharper", "flatter", "cannot tell")}
            counts[name] |= {"matrices": len(made), "median_ratio": float(np.median([each["ratio"] for each in made]))}
    return counts


def shown(runs: Sequence[Row], batches: int, draws: int) -> dict[str, Any]:
    """Words and tables for the terminal and the report."""
    tables = [_together(runs, form) for form in FORMS]
    if any(run["verdicts"] for run in runs):
        tables.append(_by_matrix(runs))
    sentence = (
        f"Curvature of the base's loss, over {batches} batches and {draws} random directions per matrix. A ratio of 1 "
        "is the curvature of a random direction of equal norm. Cannot tell means that this test could not: read the "
        "smallest detectable ratio before reading anything into it."
    )
    return section("Gate II: curvature along the update", [sentence], tables, charts=_charts(runs))


def _together(runs: Sequence[Row], form: str) -> dict[str, Any]:
    rows = []
    for run in runs:
        for name, found in run["all"].items():
            kind, source, part = name.split(" ")
            if kind == form:
                told = ranged(found["ratio"], found["low"], found["high"]) if "ratio" in found else "1 (reference)"
                reach = f"{found['detectable']:.3g}" if "detectable" in found else "–"
                rows.append([f"{run['label']}: {source} {part}", f"{found['quotient']:.3g}", told, reach,
                             found.get("verdict", "–")])  # fmt: skip
    columns = ["direction", "quotient", "ratio to random", "detectable at 80 %", "verdict"]
    note = "all matrices together; quotient in nats per token per squared unit of weight"
    return {"title": FORMS[form], "columns": columns, "rows": rows, "note": note}


def _by_matrix(runs: Sequence[Row]) -> dict[str, Any]:
    rows: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        for name, count in run["verdicts"].items():
            told = [str(count["matrices"]), f"{count['median_ratio']:.3g}"]
            told += [str(count[word]) for word in ("sharper", "flatter", "cannot tell")]
            shared = "random" in name  # one line where all runs share it
            first = name if shared else f"{run['label']}: {name}"
            rows.setdefault((first, *told), [first, *told])
    columns = ["direction", "matrices", "median ratio", "sharper", "flatter", "cannot tell"]
    note = "each matrix at 95 %: one in twenty verdicts of a flat truth is wrong by chance"
    return {"title": "Matrix by matrix", "columns": columns, "rows": list(rows.values()), "note": note}


def _charts(runs: Sequence[Row]) -> list[dict[str, Any]]:
    points = [
        {"direction": f"{run['label']}: {name.removeprefix('fisher ')}", "ratio": found["ratio"],
         "verdict": found["verdict"], "matrix": matrix["block"]}
        for run in runs
        for matrix in run["matrices"]
        for name, found in matrix["contrasts"].items()
        if name.startswith("fisher") and found.get("ratio", 0) > 0
    ]  # fmt: skip
    if not points:
        return []
    colours = {"sharper": "var(--warm)", "flatter": "var(--accent)", "cannot tell": "var(--faint)"}
    spec = {
        "data": {"values": points},
        "width": "container",
        "mark": {"type": "point", "filled": True},
        "encoding": {
            "y": {"field": "direction", "type": "nominal", "sort": None, "title": None},
            "x": {"field": "ratio", "type": "quantitative", "scale": {"type": "log"}, "title": "ratio to random"},
            "color": {"field": "verdict", "type": "nominal",
                      "scale": {"domain": list(colours), "range": list(colours.values())}},
            "tooltip": [{"field": name} for name in ("matrix", "ratio", "verdict")],
        },
    }  # fmt: skip
    return [{"title": "Fisher curvature, matrix by matrix", "words": "One point per matrix; 1 is a random direction.",
             "spec": spec}]  # fmt: skip
