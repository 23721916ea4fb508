import json

import pytest

from offprincipal.report import palette


def luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK])
def test_words_and_lines_stand_out(colours):
    for name in ("ink", "muted", "accent", "warm", "violet"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
        assert contrast(colours[name], colours["panel"]) >= 4.5, name
    for i in range(8):
        assert contrast(colours[f"run-{i}"], colours["paper"]) >= 3, i
    assert contrast(colours["faint"], colours["paper"]) >= 3


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK])
def test_the_ramp_is_steady_in_lightness(colours):
    steps = [luminance(colours[f"seq-{i}"]) for i in range(10)]
    assert steps == sorted(steps, reverse=colours is palette.LIGHT)


def test_both_themes_name_the_same_colours():
    assert palette.LIGHT.keys() == palette.DARK.keys()


def test_a_resolved_config_has_no_variable_left():
    assert "var(" not in json.dumps(palette.resolved(palette.config()))
