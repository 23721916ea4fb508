"""The matched runs as a section of a published study: a table of ends, a table of what remains where both are equal.

What it is: text and one figure from what `offprincipal.lab.claims.matching.study` gives. What it is not: a measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offprincipal.report.charts import Spec

ENDS = (
    ("accuracy", "test, %"), ("kl", "KL"), ("norm", "norm"), ("changed", "changed, %"), ("nss", "NSS"),
    ("angle", "angle, degrees"), ("energy", "energy"), ("overlap", "overlap, points"),
)  # fmt: skip
"""Measures and their columns."""

DRAWN = {"changed": "changed weights, points", "nss": "NSS", "angle": "largest angle", "energy": "energy"}
"""What the figure shows beside RLVR; all but the first as quotients."""

SHARES = ("accuracy", "changed", "overlap")


def section(found: Mapping[str, Any]) -> list[str]:
    """The lines of the section."""
    labs, points = len(found["labs"]), found["points"]
    whose = f"{labs} {'laboratory' if labs == 1 else 'laboratories'}"
    lines = [
        "", "## Other algorithms, equally far", "",
        f"{whose}, one run of each course in each: {len(found['ends'])} courses, {len(points)} kept",
        "points. What the algorithms are and what equal means: [lab.md](../lab.md). KL(arm, base) in nats per token,",
        "norm of D over that of W0, changed 2-D weights inside the blocks, NSS, largest principal angle (geometric",
        "mean over k), energy of D in both principal subspaces over that of Gaussian steps, overlap with the",
        "principal mask beyond the magnitude null. Ends of the courses, mean [95 % over laboratories]:", "",
        f"| algorithm | rate | {' | '.join(name for _, name in ENDS)} |", "|---" * (len(ENDS) + 2) + "|",
    ]  # fmt: skip
    for row in found["ends"]:
        cells = (said(row[key]) for key, _ in ENDS)
        lines.append(f"| {row['algorithm']} | {row['learning_rate']:g} | {' | '.join(cells)} |")
    lines += [
        "", "<details><summary>Beside RLVR where both are equal: every algorithm, rate and match</summary>", "",
        "Accuracy, changed and overlap: points more than RLVR; the rest: quotients; labs: in how many laboratories",
        "both get there.", "",
        f"| algorithm | rate | equal | labs | {' | '.join(key for key, _ in ENDS)} |", "|---" * (len(ENDS) + 4) + "|",
    ]  # fmt: skip
    for row in filter(lambda row: row["labs"], found["pairs"]):
        cells = (said(row["effects"][key]) for key, _ in ENDS)
        names = (row["algorithm"], f"{row['learning_rate']:g}", row["match"], str(row["labs"]))
        lines.append(f"| {' | '.join((*names, *cells))} |")
    nowhere = [f"{row['algorithm']} at {row['learning_rate']:g} in {row['match']}"
               for row in found["pairs"] if not row["labs"]]  # fmt: skip
    told = "The picture: each algorithm at the middle of its rates beside RLVR, dashed where both would be the same."
    return [*lines, *(["", f"Nowhere equal: {'; '.join(nowhere)}."] if nowhere else []), "", "</details>", "", told]


def said(found: Mapping[str, Any] | None) -> str:
    """A number in words; a dash where no laboratory has it."""
    return found["shown"] if found else "-"


def chart(found: Mapping[str, Any]) -> Spec:
    """Each algorithm beside RLVR at the middle of its rates, per measure and match: mean and interval."""
    import altair as alt

    from offprincipal.report.charts import finished, named, run_scale

    matches = list(dict.fromkeys(row["match"] for row in found["pairs"]))
    base = alt.Chart().encode(alt.Y("algorithm:N", title=None, sort=None), alt.YOffset("equal:N", sort=None))
    color = alt.Color("equal:N", title="equal in", sort=None).scale(run_scale(matches))
    point = base.mark_point(filled=True, size=40).encode(
        alt.X("mean:Q", title=None).scale(zero=False, padding=8), color
    )
    span = base.mark_rule().encode(alt.X("low:Q"), alt.X2("high:Q"), color)
    line = alt.Chart().mark_rule(strokeDash=[3, 3], opacity=0.6).encode(alt.X("none:Q"))
    algorithms = {row["algorithm"] for row in found["pairs"]}
    panels = alt.layer(line, span, point, data=named()).properties(width=190, height=36 * len(algorithms))
    panels = panels.facet(alt.Facet("measure:N", title=None, sort=None), columns=2).resolve_scale(x="independent")
    return finished(panels, _drawn(found["pairs"]))


def _drawn(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The middle rate of each algorithm, or its only one."""
    rows = []
    for algorithm in dict.fromkeys(row["algorithm"] for row in pairs):
        rates = sorted({row["learning_rate"] for row in pairs if row["algorithm"] == algorithm})
        for row in pairs:
            if (row["algorithm"], row["learning_rate"]) == (algorithm, rates[len(rates) // 2]):
                for key, words in DRAWN.items():
                    effect = row["effects"][key]
                    if effect is not None:
                        rows.append(_bar(row, words, effect, key))
    return rows


def _bar(row: Mapping[str, Any], words: str, effect: Mapping[str, Any], key: str) -> dict[str, Any]:
    plain = (lambda x: 100 * x) if key in SHARES else math.exp
    ends = {end: effect["mean"] if effect[end] is None else effect[end] for end in ("low", "high")}
    return {
        "algorithm": row["algorithm"],
        "equal": row["match"],
        "measure": words + ("" if key in SHARES else ", over RLVR's"),
        "mean": plain(effect["mean"]),
        "none": plain(0.0),
        **{end: plain(value) for end, value in ends.items()},
    }
