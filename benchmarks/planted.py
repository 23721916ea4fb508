"""How often the judge is right: planted worlds whose truth is known, and the rate of each verdict per claim.

False positives: *supported* where nothing of the kind was planted. Found: *supported* where it was. Missed: *not
supported* or *explained by the null* where it was. The rest is *cannot tell*. Four seeds per world, two matrices each.
"""

import argparse
import os
from collections import Counter
from functools import partial

from rich.console import Console
from rich.table import Table

from offprincipal import fanout
from offprincipal.lab.claims import locality, masks, spectra
from offprincipal.lab.claims.samples import REAL
from offprincipal.lab.claims.verdict import CANNOT_TELL, SUPPORTED, judge, together
from offprincipal.lab.claims.worlds import TRUTHS, planted_evidence
from offprincipal.rows import one_thread

CLAIMS = {claim.id: claim for claim in (*masks.CLAIMS, *spectra.CLAIMS, *locality.CLAIMS)}


def verdicts(item: tuple[str, int], seeds: int) -> tuple[str, dict[str, str]]:
    """The name of a world and the verdict on every claim that reads weights."""
    name, number = item
    with one_thread():
        evidence = planted_evidence(TRUTHS[name].world, number, seeds=seeds)
    found = {}
    for id_, claim in CLAIMS.items():
        found[id_] = together([judge(each).verdict for each in claim.measure(evidence, REAL)])
    return name, found


def rates(plants: int, seeds: int, engine: fanout.Engine) -> dict[str, Counter]:
    """Per claim: how often it was planted or not, and what was said."""
    items = [(name, 1000 * world + i) for i in range(plants) for world, name in enumerate(TRUTHS)]
    counted: dict[str, Counter] = {id_: Counter() for id_ in CLAIMS}
    for name, found in engine(partial(verdicts, seeds=seeds), items):
        truth = TRUTHS[name]
        for id_, verdict in found.items():
            if id_ in truth.planted:
                word = {SUPPORTED: "found", CANNOT_TELL: "undecided"}.get(verdict, "missed")
                counted[id_].update(["planted", word])
            elif id_ not in truth.touched:
                counted[id_].update(["empty", "false"] if verdict == SUPPORTED else ["empty"])
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plants", type=int, default=34, help="worlds of each kind")
    parser.add_argument("--seeds", type=int, default=4, help="seeds per world")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    counted = rates(chosen.plants, chosen.seeds, fanout.engine("processes", chosen.jobs))
    table = Table(title=f"{chosen.plants} worlds of {len(TRUTHS)} kinds, {chosen.seeds} seeds each")
    for column in ("claim", "not planted", "false positives", "planted", "found", "missed", "undecided"):
        table.add_column(column, justify="right")
    for id_, found in counted.items():
        false = f"{100 * found['false'] / found['empty']:.1f} %" if found["empty"] else "-"
        shares = [f"{100 * found[word] / found['planted']:.0f} %" if found["planted"] else "-"
                  for word in ("found", "missed", "undecided")]  # fmt: skip
        table.add_row(id_, str(found["empty"]), false, str(found["planted"]), *shares)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
