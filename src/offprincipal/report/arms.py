"""The arms of a study in words and tables: what each gained, how far it went, what it forgot, what it cost.

What it is: Markdown from ``arms.json``; nothing is computed but counts of runs. What it is not: figures
(``arm_charts``) or the folder (``study``).
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

GAINS = ("arm", "rate", "seeds", "test, %", "minus dense, points", "minus LoRA, points", "collapsed")
WAYS = (
    "arm", "KL", "KL path beside dense's", "norm", "NSS", "energy", "forgot", "problems", "right answers",
    "wrong answers", "trained", "state, bytes", "s",
)  # fmt: skip

EDGES = {"largest": " ↑", "smallest": " ↓", "only": " (only)"}
"""Marks of a best rate at the edge of its arm's own grid."""

Row = Mapping[str, Any]


def section(arms: Mapping[str, Any]) -> list[str]:
    """Each arm at its best rate on validation, as lines; the grid is in the figures and in ``arms.json``."""
    chosen = [row for row in arms["arms"] if row["chosen"]]
    lines = ["", "## Which weights may move", "", *wrapped(_introduction(arms, chosen)), "", *_head(GAINS)]
    for row in chosen:
        lines.append(_line(_gains(row, [each for each in arms["arms"] if each["arm"] == row["arm"]])))
    lines += ["", "### How they went, and what they forgot", "", *wrapped(_explained(arms)), "", *_head(WAYS)]
    lines += [_line(_ways(row)) for row in chosen]
    drawn = wrapped(_draws(arms["draws"], chosen))
    return [*lines, *(["", *drawn] if drawn else [])]


def wrapped(text: str) -> list[str]:
    """A paragraph as lines."""
    return textwrap.wrap(text, 116, break_long_words=False, break_on_hyphens=False)


def _introduction(arms: Mapping[str, Any], chosen: Sequence[Row]) -> str:
    settings = arms["settings"]
    at_edge = [f"{row['arm']} ({row['edge']}, {row['learning_rate']:g})" for row in chosen if row["edge"]]
    draws = {row["arm"] for row in arms["arms"] if row["draw"]}
    told = (
        f"RLVR from the base of laboratory {arms['seed']}, preset {settings['preset']}, adapters of rank "
        f"{settings['rank']}: {coverage(arms['points'], draws)}. Each arm at its best learning rate on the validation "
        "half; accuracy on the test half, which chose nothing: mean [least, largest] over run seeds, then minus dense "
        "training and minus LoRA, seed by seed, with 95 % intervals (*no difference*: it covers zero, which does not "
        "show that they are equal). Collapsed: of all runs there are, those whose mean reward of five steps ends "
        "below half of the base's accuracy. ↑ ↓: the best rate is the largest, the smallest that this arm was given. "
    )
    if not at_edge:
        return f"{told}No arm is best at an edge of its own grid."
    return f"{told}At an edge of its own grid, so that a better rate may lie beyond: {', '.join(at_edge)}."


def _explained(arms: Mapping[str, Any]) -> str:
    """What the columns of the second table mean, with the null of the path and the scale of forgetting."""
    null, forgot = arms["kl_path_null"], arms["forgetting"]
    beside = "no two dense runs"
    if null:
        spread = f"{null['mean']:.2f} [{null['least']:.2f}, {null['largest']:.2f}] over {null['pairs']} pairs"
        beside = f"dense runs of different seeds, {spread}"
    stages = ", ".join(f"{stage} {each['all']:+.3g}" for stage, each in forgot["stages"].items())
    scale = f" For scale, all text: {stages}." if stages else ""
    return (
        "KL(arm, base) in nats per token. KL path: mean over looks on the way of |ln(KL / KL of dense)|, KL(base, "
        "arm) at the same step and run seed, with its interval over seeds, then the mean with signs; its null: "
        f"{beside}. Norm of D over that of W0; NSS; energy of D in both principal subspaces over that of Gaussian "
        f"steps. Forgot: loss after minus before, nats per token of {forgot['texts']} held-out pretraining texts per "
        f"family, in which {100 * forgot['corruption']:g} % of the answers have a wrong step as in pretraining; then "
        "on parts of them: the problems, which no arm is trained to write, and the answers without and with a wrong "
        f"step, which rewards make likelier and less likely.{scale}"
    )


def _head(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def coverage(points: Sequence[Row], draws: Collection[str] = ()) -> str:
    """How much of the grid is there, by seed where something is missing, and what lies beside it.

    The grid is every arm, but for other draws of random, at every rate that at least half of those arms have.

    >>> runs = [("a", 1, 0), ("a", 2, 0), ("b", 1, 0), ("b", 2, 0), ("c", 1, 0), ("a", 1, 1), ("a", 3, 0)]
    >>> coverage([dict(zip(("arm", "learning_rate", "run_seed"), run)) for run in runs])
    '6 of the 12 runs of the grid (3 arms, 2 rates; seed 0: 5, seed 1: 1); beside it a at 3 (1)'
    """
    own = [point for point in points if point["arm"] not in draws]
    rates = Counter(rate for _, rate in {(point["arm"], point["learning_rate"]) for point in own})
    arms, seeds = ({point[key] for point in own} for key in ("arm", "run_seed"))
    if len(rates) > 1 and rates.total() == len(arms):
        return f"{len(points)} runs, each arm at one rate"
    grid = {rate for rate, count in rates.items() if 2 * count >= len(arms)}
    inside = [point for point in own if point["learning_rate"] in grid]
    whole, shape = len(arms) * len(grid) * len(seeds), f"{_count(arms, 'arm')}, {_count(grid, 'rate')}"
    if len(inside) == whole:
        told = f"all {whole} runs of the grid ({shape}, {_count(seeds, 'run seed')})"
    else:
        each = ", ".join(f"seed {s}: {sum(point['run_seed'] == s for point in inside)}" for s in sorted(seeds))
        told = f"{len(inside)} of the {whole} runs of the grid ({shape}; {each})"
    cells = Counter((point["arm"], point["learning_rate"]) for point in points)
    others = [(arm, rate) for arm, rate in sorted(cells) if arm in draws or rate not in grid]
    beside = ", ".join(f"{arm} at {rate:g} ({cells[arm, rate]})" for arm, rate in others)
    return told + (f"; beside it {beside}" if beside else "")


def _count(found: Collection[Any], word: str) -> str:
    return f"{len(found)} {word}{'' if len(found) == 1 else 's'}"


def _gains(row: Row, grid: Sequence[Row]) -> list[str]:
    low, high = row["test_range"]
    fallen, runs = sum(each["collapsed"] for each in grid), sum(len(each["seeds"]) for each in grid)
    where = sorted(each["learning_rate"] for each in grid if each["collapsed"])
    return [
        row["arm"], f"{row['learning_rate']:g}{EDGES.get(row['edge'], '')}", str(len(row["seeds"])),
        f"{100 * row['test']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        *(row["against"].get(other, {}).get("shown", "-") for other in ("dense", "lora")),
        f"{fallen} of {runs}" + (f", from {where[0]:g}" if where else ""),
    ]  # fmt: skip


def _ways(row: Row) -> list[str]:
    travel, path, forgot = row["travel"], row["kl_path"], row["forgotten"]
    weights = ("relative_delta_norm", "nss_mean", "energy_principal_lift")
    return [
        row["arm"], f"{row['kl_arm_to_base']:.3g}",
        f"{_interval(path, '.2f')}, {path['ahead']:+.2f}" if path else "-",
        *(f"{travel[key]:.3g}" if key in travel else "-" for key in weights),
        _interval(forgot["all"], "+.3g"),
        *(f"{forgot[kind]['mean']:+.3g}" for kind in ("problems", "right answers", "wrong answers")),
        f"{row['parameters_trained']:,}", f"{row['optimizer_bytes']:,}", f"{row['seconds_training']:.0f}",
    ]  # fmt: skip


def _interval(found: Mapping[str, Any], form: str) -> str:
    """Mean and interval, or the mean where there is no interval.

    >>> _interval({"mean": 0.5, "low": 0.25, "high": 0.75}, "+.2f"), _interval({"mean": 0.5, "low": None}, ".1f")
    ('+0.50 [+0.25, +0.75]', '0.5')
    """
    ends = "" if found["low"] is None else f" [{found['low']:{form}}, {found['high']:{form}}]"
    return f"{found['mean']:{form}}{ends}"


def _draws(found: Sequence[Row], chosen: Sequence[Row]) -> str:
    """How much the draw of the random mask decides, at random's best rate or where most draws are; or nothing."""
    best = {row["learning_rate"] for row in chosen if row["arm"] == "random"}
    order = sorted(found, key=lambda each: (each["learning_rate"] in best, len(each["draws"])), reverse=True)
    if not order or not order[0]["over_draws"]:
        return ""
    at = order[0]
    seeds = at["over_seeds"]
    over = f"{100 * seeds['range']:.1f} points (sd {100 * seeds['sd']:.2f})" if seeds else "nothing that can be told"
    return (
        f"Draws of the random mask: {len(at['draws'])} at rate {at['learning_rate']:g}, run seeds "
        f"{', '.join(map(str, at['seeds']))}. At an equal run seed their test accuracies range over "
        f"{100 * at['over_draws']['range']:.1f} points (sd {100 * at['over_draws']['sd']:.2f}); run seeds of one draw "
        f"over {over}. Sampling the answers alone gives an sd of at most {100 * at['sampling']:.2f}."
    )
