"""The colours, once: the page uses them as CSS variables, the figures for a paper as plain colours of the light set.

Every chart names a variable (``var(--ink)``), never a colour, so the browser recolours it when the theme changes and
when the page is printed. Categorical colours follow Okabe and Ito; the ramps vary in lightness as well as in hue.
"""

from __future__ import annotations

import json
import re
from typing import Any

SEQUENTIAL = [f"var(--seq-{i})" for i in range(10)]
DIVERGING = [f"var(--div-{i})" for i in range(9)]
RUNS = [f"var(--run-{i})" for i in range(8)]


def _ramp(name: str, colours: str) -> dict[str, str]:
    return {f"{name}-{i}": colour for i, colour in enumerate(colours.split())}


LIGHT = {
    "ink": "#16202a", "muted": "#55606b", "faint": "#88929c", "rule": "#dfe4e8", "paper": "#ffffff",
    "panel": "#f5f7f9", "accent": "#00639c", "warm": "#b84a00", "violet": "#7b3fa0",
    **_ramp("run", "#0072b2 #d55e00 #00855f #a6478a #8a6d00 #3a8fc4 #5b5b5b #7a3e00"),
    **_ramp("seq", "#e6eef5 #d0e1ee #b4d1e6 #91bddb #69a7ce #448fbf #2776ab #145d92 #0a4577 #062e58"),
    **_ramp("div", "#0b4f8a #3481bd #7fb3d8 #c5dcec #eceff1 #f7dcc3 #eba873 #cd6d26 #923d00"),
}  # fmt: skip
DARK = {
    "ink": "#e8edf1", "muted": "#a5b0ba", "faint": "#7d8893", "rule": "#2c353d", "paper": "#11161b",
    "panel": "#192027", "accent": "#62b8ee", "warm": "#f2935c", "violet": "#c79be6",
    **_ramp("run", "#5fb4ea #f28b4b #45c79d #dd94c6 #d9b84a #9ad0f0 #b4bcc3 #cf9a6b"),
    **_ramp("seq", "#1f2e3b #1f3c50 #204d6a #215f86 #2c75a4 #458cbc #67a5d1 #8dbfe2 #b7d9f0 #e2f2fc"),
    **_ramp("div", "#a9dcff #5aabe2 #2f77ab #264b66 #2a3239 #5b3a22 #a35c28 #e28a4a #ffcba3"),
}  # fmt: skip

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def config(font: str = FONT) -> dict[str, Any]:
    """The Vega-Lite config that all charts share: thin rules, no box, small type."""
    words = {"labelColor": "var(--muted)", "titleColor": "var(--muted)", "labelFont": font, "titleFont": font}
    small = {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"}
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {**words, **small, "gridColor": "var(--rule)", "domainColor": "var(--rule)",
                 "tickColor": "var(--rule)", "labelPadding": 4, "titlePadding": 8, "tickSize": 4},
        "legend": {**words, **small, "orient": "top", "title": None, "symbolSize": 90, "labelLimit": 260,
                   "offset": 6, "gradientStrokeColor": "var(--rule)"},
        "header": {"labelColor": "var(--ink)", "titleColor": "var(--ink)", "labelFont": font, "labelFontSize": 12,
                   "labelFontWeight": 600, "labelAnchor": "start", "title": None},
        "title": {"color": "var(--ink)", "font": font, "fontSize": 12, "fontWeight": 600, "anchor": "start"},
        "line": {"strokeWidth": 1.8}, "text": {"color": "var(--ink)", "font": font},
        "rule": {"color": "var(--faint)"}, "point": {"filled": True, "size": 55},
    }  # fmt: skip


def resolved(spec: dict[str, Any]) -> dict[str, Any]:
    """A specification with the variables replaced by the light colours, for SVG and PDF.

    >>> resolved({"mark": {"color": "var(--paper)"}})
    {'mark': {'color': '#ffffff'}}
    """
    return json.loads(re.sub(r"var\(--([a-z0-9-]+)\)", lambda found: LIGHT[found[1]], json.dumps(spec)))
