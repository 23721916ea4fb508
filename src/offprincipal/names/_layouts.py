"""How one stored tensor holds several canonical ones: as rows of it, or of its transpose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offprincipal.errors import InputError


@dataclass(frozen=True)
class Cut:
    """Rows of a stored tensor seen as ``[rows, columns]``: ``count`` runs of ``length`` rows, ``stride`` apart.

    With ``transposed`` the stored tensor is ``[in, out]`` and the rows are those of its transpose.

    >>> Cut(start=2, length=1, stride=4, count=2).runs()
    [(2, 3), (6, 7)]
    """

    start: int
    length: int
    stride: int = 0
    count: int = 1
    transposed: bool = False

    def runs(self) -> list[tuple[int, int]]:
        """The half-open runs of rows."""
        firsts = (self.start + index * self.stride for index in range(self.count))
        return [(first, first + self.length) for first in firsts]

    @property
    def rows(self) -> int:
        """All rows of all runs."""
        return self.length * self.count


@dataclass(frozen=True)
class Heads:
    """The attention heads that config.json declares; None where it does not."""

    query: int | None
    key_value: int | None
    size: int | None


def heads_of(config: Mapping[str, Any]) -> Heads:
    """Attention heads from config.json, with the defaults that transformers applies.

    >>> heads_of({"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64})
    Heads(query=8, key_value=2, size=8)
    """

    def whole(*keys: str) -> int | None:
        values = (config.get(key) for key in keys)
        return next((value for value in values if type(value) is int and value > 0), None)

    query = whole("num_attention_heads", "n_head")
    hidden = whole("hidden_size", "n_embd")
    size = whole("head_dim")
    if size is None and query and hidden:
        size = hidden // query
    return Heads(query, whole("num_key_value_heads") or query, size)


def cuts(layout: str, parts: int, shape: Sequence[int], heads: Heads, name: str) -> list[tuple[int | None, Cut]]:
    """The expert (None outside experts) and the cut of every piece, pieces of one expert in stored order.

    Raises:
        InputError: the declared layout does not fit the shape.
    """
    rows = 1
    for size in shape[:-1] if len(shape) > 1 else shape:
        rows *= size
    if layout == "plain":
        return [(None, Cut(0, rows))]
    if 0 in shape:
        raise _misfit(name, "it is empty")  # any number of heads or experts would fit
    if layout in ("conv", "conv_thirds"):
        if len(shape) not in (1, 2):
            raise _misfit(name, f"it has {len(shape)} axes")
        out, transposed = shape[-1], len(shape) == 2  # a bias has no input side
        length = _share(out, parts or 1, name, layout)
        return [(None, Cut(index * length, length, transposed=transposed)) for index in range(parts or 1)]
    if layout == "halves":
        length = _share(rows, parts, name, layout)
        return [(None, Cut(index * length, length)) for index in range(parts)]
    if layout == "qkv_rows":
        return _qkv_rows(rows, heads, name)
    if layout == "qkv_by_head":
        return _qkv_by_head(rows, parts, heads, name)
    return _experts(shape, parts, name)


def _qkv_rows(rows: int, heads: Heads, name: str) -> list[tuple[int | None, Cut]]:
    """Phi-3: the rows of all query heads, then of all key heads, then of all value heads."""
    if heads.query is None or heads.key_value is None or heads.size is None:
        raise _misfit(name, "config.json does not give its attention heads")
    query, other = heads.query * heads.size, heads.key_value * heads.size
    if query + 2 * other != rows:
        raise _misfit(name, f"it has {rows} rows and the heads of config.json make {query + 2 * other}")
    return [(None, Cut(0, query)), (None, Cut(query, other)), (None, Cut(query + other, other))]


def _qkv_by_head(rows: int, parts: int, heads: Heads, name: str) -> list[tuple[int | None, Cut]]:
    """GPT-NeoX: head after head, and of each head its query, key and value rows."""
    if heads.query is None:
        raise _misfit(name, "config.json does not give its attention heads")
    length = _share(rows, heads.query * parts, name, "qkv_by_head")
    return [(None, Cut(index * length, length, parts * length, heads.query)) for index in range(parts)]


def _experts(shape: Sequence[int], parts: int, name: str) -> list[tuple[int | None, Cut]]:
    """Transformers 5: ``[expert, out, in]``, with gate rows before up rows where both are in one tensor."""
    if len(shape) != 3:
        raise _misfit(name, f"fused experts have three axes and it has {len(shape)}")
    length = _share(shape[1], parts, name, "experts")
    return [
        (expert, Cut(expert * shape[1] + index * length, length))
        for expert in range(shape[0])
        for index in range(parts)
    ]


def _share(rows: int, parts: int, name: str, layout: str) -> int:
    if rows % parts:
        raise _misfit(name, f"{rows} rows do not divide into {parts} parts ({layout})")
    return rows // parts


def _misfit(name: str, found: str) -> InputError:
    return InputError(f"split the fused tensor {name!r}", found, "check that config.json belongs to these weights")
