"""Rows to verdicts and tables, on planted curvatures."""

import itertools

import numpy as np

from offprincipal.probes.directions import PARTS
from offprincipal.probes.verdicts import judged, shown

ALL = "all"


def planted(ratios, block=ALL, run="rl", batches=8, draws=6):
    """Rows in which a direction's curvature is this multiple of a random one's, with noise of 5 %."""
    source = np.random.default_rng(0)
    for part, draw, batch in itertools.product(PARTS, range(-1, draws), range(batches)):
        ratio = ratios.get(("random " if draw >= 0 else "update ") + part, 1.0)
        value = ratio * (10 + batch) * source.normal(1, 0.05)
        yield {"block": block, "layer": None, "kind": None, "run": run if draw < 0 or block == ALL else "",
               "part": part, "draw": draw, "batch": batch, "tokens": 10 + batch, "fisher": value,
               "hessian": -value if ratio == 9 else value}  # fmt: skip


def test_what_was_planted_is_found_and_nothing_else():
    truth = {"update whole": 4.0, "update on": 0.25, "random off": 2.0}
    rows = [*planted(truth), *planted({"update whole": 0.5}, "m0"), *planted({}, "m1")]
    run = judged(rows, "rl", ALL, 0)
    verdicts = {name: found.get("verdict") for name, found in run["all"].items() if name.startswith("fisher")}
    assert verdicts.pop("fisher random whole") is None
    assert verdicts == {
        f"fisher {source} {part}": {"update whole": "sharper", "update on": "flatter", "random off": "sharper"}.get(
            f"{source} {part}", "cannot tell"
        )
        for source in ("update", "random")
        for part in PARTS
        if (source, part) != ("random", "whole")
    }
    assert run["fisher_update_verdict"] == "sharper"
    assert 3.5 < run["fisher_update"] < 4.5
    assert run["fisher_update_low"] < run["fisher_update"] < run["fisher_update_high"]
    counts = run["verdicts"]["fisher update whole"]
    assert (counts["flatter"], counts["cannot tell"], counts["sharper"], counts["matrices"]) == (1, 1, 0, 2)


def test_tables_show_interval_and_power_beside_every_ratio():
    runs = [{"label": "rl", **judged([*planted({}), *planted({}, "m0")], "rl", ALL, 0)}]
    told = shown(runs, 8, 6)
    fisher, hessian, matrices = told["tables"]
    assert fisher["columns"] == ["direction", "quotient", "ratio to random", "detectable at 80 %", "verdict"]
    assert len(fisher["rows"]) == len(hessian["rows"]) == 2 * len(PARTS)
    assert all(len(row) == len(table["columns"]) for table in told["tables"] for row in table["rows"])
    assert "[" in fisher["rows"][1][2]
    assert len(matrices["rows"]) == 2 * (2 * len(PARTS) - 1)
    assert len(told["charts"][0]["spec"]["data"]["values"]) == 2 * len(PARTS) - 1


def test_a_direction_that_all_runs_share_is_shown_once():
    rows = [*planted({}), *planted({}, run="b"), *planted({}, "m0"), *[r for r in planted({}, "m0", "b") if r["run"]]]
    runs = [{"label": label, **judged(rows, label, ALL, 0)} for label in ("rl", "b")]
    heads = [row[0] for row in shown(runs, 8, 6)["tables"][2]["rows"]]
    assert heads.count("fisher random on") == 1
    assert {"rl: fisher update on", "b: fisher update on"} <= set(heads)


def test_without_matrices_there_is_no_table_of_them():
    runs = [{"label": "rl", **judged(planted({}), "rl", ALL, 0)}]
    told = shown(runs, 8, 6)
    assert len(told["tables"]) == 2
    assert told["charts"] == []
