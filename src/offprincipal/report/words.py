"""Numbers as people read them: sensible digits, a true minus sign, no exponent of computers. NaN is a dash."""

from __future__ import annotations

import math

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NONE = "–"
NARROW = "\N{NO-BREAK SPACE}"  # a number and its unit stay on one line


def percent(value: float, digits: int = 1) -> str:
    r"""A fraction in percent. Never rounded to a false 0 or 100.

    >>> percent(0.3521), percent(0.99999), percent(float("nan"))
    ('35.2\xa0%', '> 99.9\xa0%', '–')
    """
    if math.isnan(value):
        return NONE
    shown = f"{100 * value:.{digits}f}"
    if shown == f"{100:.{digits}f}" and value < 1:
        return f"> {100 - 10**-digits:.{digits}f}{NARROW}%"
    if float(shown) == 0 and value > 0:
        return f"< {10**-digits:.{digits}f}{NARROW}%"
    return shown.replace("-", "−") + f"{NARROW}%"


def points(value: float, digits: int = 2) -> str:
    """A difference of two fractions, in percentage points with its sign.

    >>> points(-0.0034), points(0.12), points(0.0000001)
    ('−0.34', '+12.00', '+0.00')
    """
    return NONE if math.isnan(value) else f"{100 * value:+.{digits}f}".replace("-", "−")


def scientific(value: float, digits: int = 1) -> str:
    r"""Small numbers as a power of ten, others as they are.

    >>> scientific(4.13e-5), scientific(0.25), scientific(0), scientific(1e12)
    ('4.1\xa0×\xa010⁻⁵', '0.25', '0', '1.0\xa0×\xa010¹²')
    """
    if math.isnan(value):
        return NONE
    if value == 0 or 0.01 <= abs(value) < 10000:
        return f"{value:.{digits + 1}g}".replace("-", "−") if abs(value) < 1000 else f"{value:.0f}".replace("-", "−")
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa.replace('-', '−')}{NARROW}×{NARROW}10{str(int(exponent)).translate(SUPERSCRIPT)}"


def plain(value: float) -> str:
    """Three significant digits without an exponent, as for z, angles and kappa.

    >>> plain(-41.27), plain(0.0312), plain(12345.6)
    ('−41.3', '0.0312', '12,346')
    >>> plain(0.26), plain(2.0)
    ('0.260', '2.00')
    """
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    shown = f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:#.3g}".rstrip(".")
    return shown.replace("-", "−")


def count(value: float) -> str:
    """A count in words of thousands.

    >>> count(7_615_616_512), count(1_310_000), count(812)
    ('7.62 billion', '1.31 million', '812')
    """
    if math.isnan(value):
        return NONE
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"
