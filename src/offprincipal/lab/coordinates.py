"""The runs from changed bases over all laboratories: what update masks share, index by index and mapped back.

What it is: means and intervals of what every ``interventions.json`` holds, per kind of intervention, beside both
nulls. What it is not: the masks (``overlaps``), or a verdict (claims I2 and I3).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offprincipal.lab.claims.evidence import find, read_json
from offprincipal.lab.claims.verdict import estimate
from offprincipal.lab.overlaps import COMPARED, INTERVENTIONS

SERIES = {"observed": "jaccard", "independent masks": "jaccard_bernoulli", "magnitude null": "jaccard_matched"}
"""What is told of a comparison, and its column."""

Row = Mapping[str, Any]


def study(folders: Sequence[Path]) -> dict[str, Any] | None:
    """The interventions of these laboratories; None where there is none.

    Args:
        folders: laboratories, or folders of several.

    Returns:
        ``laboratories`` (how many have some) and ``rows``: per kind of intervention, place (``touched`` by the change
        or not) and comparison of `COMPARED`: ``block`` and ``kinds`` of the touched matrices, ``laboratories``,
        ``matrices`` of each, and for each of `SERIES` the Jaccard index, mean over matrices: ``mean``, ``low`` and
        ``high`` (95 % over laboratories, the matrices being the same in each; None where there is one laboratory).

    Raises:
        InputError: a record is torn.
    """
    files = [lab / INTERVENTIONS / "interventions.json" for lab in find(folders)]
    answers = [read_json(file)["rows"] for file in files if file.is_file()]
    if not answers:
        return None
    names = dict.fromkeys(row["intervention"] for rows in answers for row in rows)
    found = [
        _row(name, touched, compared, answers) for name in names for touched in (True, False) for compared in COMPARED
    ]
    return {"laboratories": len(answers), "rows": [row for row in found if row is not None]}


def _row(name: str, touched: bool, compared: str, answers: Sequence[Sequence[Row]]) -> dict[str, Any] | None:
    """One comparison in one place, over the laboratories that have it."""
    places = [[row for row in rows if row["intervention"] == name and row["touched"] is touched] for rows in answers]
    kept = [[row for row in rows if row["compared"].get(compared, {}).get("either")] for rows in places]
    kept = [rows for rows in kept if rows]
    if not kept:
        return None
    changed = [row for rows in answers for row in rows if row["intervention"] == name and row["touched"]]
    return {
        "intervention": name,
        "block": kept[0][0]["block"],
        "kinds": list(dict.fromkeys(row["kind"] for row in changed)),
        "touched": touched,
        "compared": compared,
        "laboratories": len(kept),
        "matrices": len(kept[0]),
        **{series: _over([[row["compared"][compared][column] for row in rows] for rows in kept])
           for series, column in SERIES.items()},
    }  # fmt: skip


def _over(values: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Mean and interval over laboratories."""
    found = estimate([np.array([np.mean(each)]) for each in values])
    return {"mean": found.mean, "low": found.low, "high": found.high}
