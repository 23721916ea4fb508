"""Thresholds and classes of colour: few, round, and equal steps in the legend whatever the numbers are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import altair as alt

from offprincipal.report.words import NARROW, scientific


def breaks(values: Sequence[float], metric: str) -> list[float]:
    """Thresholds that people can read: symmetric around zero for z, even steps, or 1-2-5 where values span decades.

    >>> breaks([0.30, 0.72], "sparsity"), breaks([1e-5, 1e-3], "nss")
    ([0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7], [1e-05, 2e-05, 5e-05, 0.0001, 0.0002, 0.0005, 0.001])
    >>> breaks([-5000.0, 20.0], "z")
    [-1000.0, -100.0, -10.0, -3.0, 3.0, 10.0, 100.0, 1000.0]
    """
    if metric == "z":
        high = max(abs(v) for v in values)
        sizes = [3.0, 10.0, 30.0, 100.0] if high <= 300 else [3.0, 10.0, 100.0, 1000.0]
        return [-size for size in reversed(sizes)] + sizes
    low, high = min(values), max(values)
    positive = [v for v in values if v > 0]
    if metric != "sparsity" and positive and high / min(positive) > 10:
        return decades(min(positive), high)
    return even(low, high)


def decades(low: float, high: float) -> list[float]:
    """At most nine thresholds inside low..high: 1-2-5 in each decade, else 1-3, else every few decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 2, 5), (1, 3), (1,)):
        series = [float(f"{m}e{e}") for e in range(first, last + 1) for m in steps]
        series = [s for s in series if low <= s <= high]
        if len(series) <= 9:
            return series or [float(f"{high:.1g}")]
    return series[:: math.ceil(len(series) / 9)]


def even(low: float, high: float) -> list[float]:
    """At most nine round, evenly spaced thresholds inside low..high."""
    unit = 10.0 ** math.floor(math.log10(max(high - low, abs(high) * 1e-6, 1e-12) / 10))
    step = next(s for m in (1, 2, 5, 10, 20, 50, 100) if _inside(low, high, s := unit * m)[1] <= 9)
    first, number = _inside(low, high, step)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, first + number)] or [round(high, 12)]


def _inside(low: float, high: float, step: float) -> tuple[int, int]:
    """The first multiple of a step inside low..high, in steps, and how many there are."""
    first = math.ceil(low / step - 1e-9)
    return first, max(0, math.floor(high / step + 1e-9) - first + 1)


def classes(field: str, thresholds: Sequence[float]) -> str:
    """The expression that numbers the class of a value: how many thresholds it reaches.

    >>> classes("z", [-3, 3])
    '(datum.z >= -3 ? 1 : 0) + (datum.z >= 3 ? 1 : 0)'
    """
    return " + ".join(f"(datum.{field} >= {t!r} ? 1 : 0)" for t in thresholds)


def stepped(colours: Sequence[str], labels: Sequence[str], length: int = 290) -> alt.Color:
    """Colour by class number, so that the legend has equal steps whatever the thresholds are; ``labels`` name them.

    Where the labels would touch, every second one is left blank; ``length`` is the legend's, in pixels.
    """
    shown = list(labels)
    if 7 * max(len(label) for label in shown) + 5 > length / len(colours):
        last = len(shown) - 1 if shown[0].startswith("−") else 10**6  # a ramp around zero is thinned from both ends
        shown = [label if min(i, last - i) % 2 == 0 else "" for i, label in enumerate(shown)]
    edges = [i + 0.5 for i in range(len(shown))]
    told = f"{json.dumps(shown, ensure_ascii=False)}[round(datum.value - 0.5)]"
    legend = alt.Legend(type="gradient", labelExpr=told,
                        gradientLength=length, gradientThickness=9, labelOverlap=False)  # fmt: skip
    return alt.Color("class:Q", scale=alt.Scale(type="threshold", domain=edges, range=list(colours)), legend=legend)


def power(value: float) -> str:
    """A threshold in few characters: 5·10⁻⁵.

    >>> power(1e-4), power(5e-5), power(0.02)
    ('10⁻⁴', '5·10⁻⁵', '0.02')
    """
    return scientific(value, 0).replace(f"{NARROW}×{NARROW}", "·").removeprefix("1·")


def spread(colours: Sequence[str], wanted: int) -> list[str]:
    """``wanted`` colours from a ramp, its ends included."""
    last = len(colours) - 1
    return [colours[round(i * last / max(wanted - 1, 1))] for i in range(wanted)]
