"""How many bytes a sparse delta takes, and at which density one encoding gives way to another."""

from offprincipal.measures.ladder import FORMATS

ENCODINGS = ("dense", "index_int32", "index_u16", "bitmask")
"""Every value; per change a 4-byte flat index; per change a 2-byte distance to the one before; a bit per weight."""

ESCAPE = 65_535
"""Distances from here on do not fit 16 bits: the entry is an escape, followed by the index in 4 bytes."""


def sizes(weights: int, visible: float, value_bytes: int) -> dict[str, float]:
    """Bytes of one delta in each encoding, before any compression.

    Args:
        weights: how many there are.
        visible: how many of them changed (an expectation may be a fraction).
        value_bytes: of one stored value; the new value is sent, so that applying it is exact.

    Returns:
        Encoding to bytes. Headers and names are left out. The number of escapes of ``index_u16`` is its expectation
        for changes at independent places, ``visible (1 - visible / weights)^65534``; wherever they lie, one per 65,535
        weights is the most. Source: ours, after arXiv 2605.07330 (int32) and arXiv 2602.03839 (u16, bitmask).

    >>> sizes(1_000_000, 10_000, 2)
    {'dense': 2000000, 'index_int32': 60000, 'index_u16': 40000.0, 'bitmask': 145000.0}
    """
    density = min(visible / weights, 1.0) if weights else 0.0
    escapes = visible * (1.0 - density) ** (ESCAPE - 1)
    return {
        "dense": weights * value_bytes,
        "index_int32": visible * (4 + value_bytes),
        "index_u16": visible * (2 + value_bytes) + 4 * escapes,
        "bitmask": weights / 8 + visible * value_bytes,
    }


def break_even(value_bytes: int) -> dict[str, float]:
    """Densities (changed / weights) below which the first encoding is the smaller of two.

    >>> break_even(2)["index_int32_below_bitmask"], break_even(2)["index_u16_below_bitmask"]
    (0.03125, 0.0625)
    """
    return {
        "index_int32_below_bitmask": 1 / (8 * 4),
        "index_u16_below_bitmask": 1 / (8 * 2),
        "index_int32_below_dense": value_bytes / (4 + value_bytes),
        "index_u16_below_dense": value_bytes / (2 + value_bytes),
        "bitmask_below_dense": 1 - 1 / (8 * value_bytes),
    }


VALUE_BYTES = {form.name: form.dtype.itemsize for form in FORMATS}
