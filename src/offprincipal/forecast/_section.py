"""A forecast in words and tables of strings: what the terminal and a report show of it."""

from collections.abc import Mapping
from typing import Any

from offprincipal.forecast._sizes import ENCODINGS


def section(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Title, sentences and tables, as ``offprincipal report`` shows any gate."""
    return {
        "title": "Gate III: what a number format leaves visible",
        "sentences": _sentences(summary),
        "tables": [_visible(summary), _sweep(summary), _bytes(summary)],
        "charts": [],
    }


def share(value: float | None) -> str:
    """A share in percent with three digits, however small.

    >>> share(0.00614), share(1.0), share(None)
    ('0.614 %', '100 %', '-')
    """
    return "-" if value is None else f"{100 * value:.3g} %"


def _sentences(summary: Mapping[str, Any]) -> list[str]:
    first = _rows(summary, summary["updates"][0]["name"])
    shown = {
        row["format"]: row["share_expected" if row["share_counted"] is None else "share_counted"] for row in first
    }
    how = "By closed form" if summary["kind"] == "learning rate" else "Counted"
    told = [
        f"{how}, of {first[0]['weights']:,} weights, {summary['updates'][0]['name']} changes "
        + ", ".join(f"{share(shown[name])} in {name}" for name in ("fp32", "fp16", "bf16", "fp8_e4m3_scaled"))
        + "."
    ]
    if summary["kind"] == "learning rate":
        told.append(
            f"Every coordinate is taken to step by the learning rate, {summary['lr']:g}; Adam's steps are mostly "
            "smaller. The sum of several lies between a random walk and a drift."
        )
    elif summary["mean_step"] is not None:
        told.append(f"The mean |step| is {summary['mean_step']:.3g}.")
    told.append(
        "What is invisible in a coarse format still accumulates in a float32 master, so this is no loss by itself."
    )
    return told


def _rows(summary: Mapping[str, Any], update: str, scope: str = "all") -> list[dict[str, Any]]:
    return [row for row in summary["rows"] if row["update"] == update and row["scope"] == scope]


def _visible(summary: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for update in summary["updates"]:
        linear = {row["format"]: row for row in _rows(summary, update["name"], "linear")}
        for row in _rows(summary, update["name"]):
            counted, expected = row["share_counted"], row["share_expected"]
            gap = "-" if counted is None else f"{100 * (counted - expected):+.3g}"
            inside = linear[row["format"]]
            only = inside["share_expected" if counted is None else "share_counted"] if inside["weights"] else None
            rows.append([f"{update['name']}: {row['format']}", share(counted), share(expected), gap, share(only)])
    columns = ["update: format", "visible, counted", "visible, closed form", "difference, points", "linear only"]
    note = "the closed form takes steps as independent of the weights; the difference is what is not"
    return {"title": "Visible share", "columns": columns, "rows": rows, "note": note}


def _sweep(summary: Mapping[str, Any]) -> dict[str, Any]:
    found = [row for row in summary["sweep"] if row["scope"] == "all"]
    formats = list(dict.fromkeys(row["format"] for row in found))
    by_factor: dict[float, list[str]] = {}
    for row in found:
        by_factor.setdefault(row["factor"], []).append(share(row["sparsity"]))
    rows = [[f"{factor:g}", *cells] for factor, cells in by_factor.items()]
    title = f"Unchanged share of {summary['updates'][0]['name']}, every step times a factor (as a learning rate would)"
    return {"title": title, "columns": ["factor", *formats], "rows": rows, "note": ""}


def _bytes(summary: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for update in summary["updates"]:
        for row in _rows(summary, update["name"]):
            if row["format"] in ("fp16", "bf16", "fp8_e4m3_scaled"):
                sizes = [f"{row['bytes'][encoding]:,.0f}" for encoding in ENCODINGS]
                rows.append([f"{update['name']}: {row['format']}", *sizes])
    even = {name: share(density) for name, density in summary["break_even"]["bf16"].items()}
    note = (
        f"values in bf16: an int32 index is below a bitmask up to {even['index_int32_below_bitmask']} changed, a u16 "
        f"distance up to {even['index_u16_below_bitmask']}; below dense up to {even['index_int32_below_dense']} and "
        f"{even['index_u16_below_dense']}, a bitmask up to {even['bitmask_below_dense']}"
    )
    columns = ["update: format", "dense", "int32 index + value", "u16 distance + value", "bitmask + values"]
    return {"title": "Bytes of one delta", "columns": columns, "rows": rows, "note": note}
