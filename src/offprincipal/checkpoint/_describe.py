"""What ``offprincipal inspect`` shows of a checkpoint: all of it from headers."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from offprincipal.checkpoint._checkpoint import Checkpoint
from offprincipal.names import canonical, family_of, flat, is_buffer, is_tied, locate


@dataclass(frozen=True)
class Row:
    """One stored tensor. ``kind`` joins with ``+`` what a fused tensor holds; ``experts`` counts the experts in it."""

    name: str
    layer: int | None
    kind: str
    expert: int | None
    experts: int
    linear: bool
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    nbytes: int
    file: str


@dataclass(frozen=True)
class Total:
    """How much of a checkpoint is of one dtype or kind."""

    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Description:
    """A checkpoint by its headers.

    Attributes:
        ref: as given.
        kind: folder, file, adapter or hub.
        commit: on the Hub, if known.
        base_ref: of an adapter, its base.
        model_type: what config.json declares, and whether a table for it exists (``family_known``).
        rows: the stored tensors, in the order of their names.
        by_dtype: totals by safetensors dtype, everything stored.
        by_kind: totals by kind of canonical tensor, a fused one under each kind it holds.
        parameters: floating point weights, a tied head once, buffers left out.
        nbytes: bytes stored.
        largest_nbytes: bytes of the largest tensor.
        tied: the names that are one weight, stored twice or once.
    """

    ref: str
    kind: str
    commit: str | None
    base_ref: str | None
    model_type: str | None
    family_known: bool
    rows: tuple[Row, ...]
    by_dtype: dict[str, Total]
    by_kind: dict[str, Total]
    parameters: int
    nbytes: int
    largest_nbytes: int
    tied: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Only what JSON knows; shapes as lists."""
        return {**asdict(self), "tied": list(self.tied), "rows": [_row_dict(row) for row in self.rows]}


def describe(checkpoint: Checkpoint) -> Description:
    """Places, dtypes, shapes and sizes of all tensors. Headers only, no weight is read.

    Raises:
        InputError: a fused tensor does not fit config.json.
    """
    rows, kinds = [], []
    for source in checkpoint.sources.values():
        info = source.info
        size = info.itemsize
        pieces = locate(info.name, info.shape, checkpoint.config)
        constant = is_buffer(canonical(info.name, family_of(checkpoint.config))) or not info.is_float
        names = ["buffer"] if constant else list(dict.fromkeys(piece.place.kind for piece in pieces))
        for kind in names:
            count = info.count if constant else sum(_count(piece) for piece in pieces if piece.place.kind == kind)
            kinds.append((kind, count, count * size))
        experts = {piece.place.expert for piece in pieces} - {None}
        place = pieces[0].place
        expert = place.expert if len(experts) == 1 else None
        linear = place.linear and not constant
        file = PurePosixPath(info.file).name
        rows.append(
            Row(
                info.name, place.layer, "+".join(names), expert, len(experts), linear,
                info.dtype, info.shape, info.count, info.nbytes, file,
            )
        )  # fmt: skip
    tied = _tied(checkpoint)
    twice = sum(row.parameters for row in rows if row.name in tied and row.kind == "head")
    model_type = flat(checkpoint.config).get("model_type")
    return Description(
        ref=checkpoint.ref,
        kind=checkpoint.kind,
        commit=checkpoint.commit,
        base_ref=checkpoint.base_ref,
        model_type=model_type if isinstance(model_type, str) else None,
        family_known=family_of(checkpoint.config).known,
        rows=tuple(rows),
        by_dtype=_totals((row.dtype, row.parameters, row.nbytes) for row in rows),
        by_kind=_totals(kinds),
        parameters=sum(row.parameters for row in rows if row.kind != "buffer") - twice,
        nbytes=sum(row.nbytes for row in rows),
        largest_nbytes=max(row.nbytes for row in rows),
        tied=tied,
    )


def _tied(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Embedding and head, if they are one weight: as stored, the head under its usual name where it is not stored."""
    family = family_of(checkpoint.config)
    stored = {canonical(name, family): name for name in checkpoint.sources}
    embedding, head = f"{family.root}{family.embed}.weight", f"{family.head}.weight"
    if embedding not in stored or not is_tied(checkpoint.config):
        return ()
    return stored[embedding], stored.get(head, head)


def _totals(items: Iterable[tuple[str, int, int]]) -> dict[str, Total]:
    """Sums by key, the largest first."""
    sums: dict[str, tuple[int, int, int]] = {}
    for key, parameters, nbytes in items:
        before = sums.get(key, (0, 0, 0))
        sums[key] = (before[0] + 1, before[1] + parameters, before[2] + nbytes)
    return {key: Total(*total) for key, total in sorted(sums.items(), key=lambda item: (-item[1][2], item[0]))}


def _count(piece: Any) -> int:
    count = 1
    for size in piece.shape:
        count *= size
    return count


def _row_dict(row: Row) -> dict[str, Any]:
    return {**asdict(row), "shape": list(row.shape)}
