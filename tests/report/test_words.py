import pytest

from offprincipal.report import words


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (words.percent(1e-6), "< 0.1\xa0%"),
        (words.percent(1.0), "100.0\xa0%"),
        (words.percent(0.0), "0.0\xa0%"),
        (words.points(float("nan")), "–"),
        (words.plain(float("-inf")), "−∞"),
        (words.plain(0.0), "0"),
        (words.scientific(1234.5), "1234"),
        (words.scientific(-3e-7), "−3.0\xa0×\xa010⁻⁷"),
        (words.count(2.5e12), "2.5 trillion"),
        (words.count(float("nan")), "–"),
    ],
)
def test_edges(shown, wanted):
    assert shown == wanted
