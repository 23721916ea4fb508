"""Sizes of the subspaces that are compared, known without any mathematics."""

GRID = (16, 64, 128, 512)
"""Sizes of the subspaces (*ours*: PNT states no k; arXiv 2606.07082 uses 512)."""


def grid(shape: tuple[int, int]) -> tuple[int, ...]:
    """The sizes of `GRID` that are at most half the short side.

    >>> grid((300, 1000))
    (16, 64, 128)
    """
    return tuple(k for k in GRID if 2 * k <= min(shape))
