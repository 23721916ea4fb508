"""Several runs on one tensor: agreement of the update masks of different runs, or the path of one over its steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from offprincipal.measures import bits
from offprincipal.measures.consensus import Agreement, Consensus
from offprincipal.measures.trajectory import Path, Trajectory
from offprincipal.pairs import Pair


@dataclass
class Together:
    """Takes the tuned sides of one tensor in turn; knows whether they are different runs or steps of one."""

    labels: Sequence[str]
    steps: Sequence[float] | None
    pair: Pair
    seed: int
    counted: Consensus | Trajectory | None = field(default=None, init=False)

    def update(self, before: Tensor, after: Tensor) -> None:
        """Add the next run, or the next step."""
        if self.counted is None:
            self.counted = self._started(before)
        if isinstance(self.counted, Consensus):
            self.counted.update(bits.changed(before, after))
        else:
            self.counted.update(after)

    def _started(self, before: Tensor) -> Consensus | Trajectory:
        if self.steps is None:
            return Consensus(bits.magnitude_code(before))
        return Trajectory(before, self.steps, path=self.pair.place.linear, seed=self.seed, name=self.pair.name)

    def part(self) -> dict[str, Any]:
        """Plain data for the store: rows of ``consensus``, ``pairs``, ``steps`` and ``paths``, and curves."""
        heads = {"heads": self.pair.heads, "head_axis": self.pair.head_axis}
        place = {"tensor": self.pair.name, "kind": self.pair.place.kind, "layer": self.pair.place.layer,
                 "linear": self.pair.place.linear}  # fmt: skip
        if isinstance(self.counted, Trajectory):
            path = self.counted.result(**heads)
            return {**_agreement(path.agreement, place, self.labels), **_path(path, place, self.labels)}
        if self.counted is None:
            return {}
        return _agreement(self.counted.result(**heads, seed=self.seed, name=self.pair.name), place, self.labels)


def _agreement(found: Agreement, place: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    pairs = [
        {**place, "run_a": labels[pair.left], "run_b": labels[pair.right], **_without(pair.row(), "left", "right")}
        for pair in found.pairs
    ]
    times = {"times": found.times.tolist(), "times_matched": found.times_matched.tolist()}
    curves = [["", name, list(x), list(y)] for name, (x, y) in found.curves().items()]
    return {"consensus": [{**place, **found.row(), **times}], "pairs": pairs, "curves": curves}


def _path(found: Path, place: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    steps = [{**place, "run": label, **row} for label, row in zip(labels, found.rows(), strict=True)]
    return {"steps": steps, "paths": [{**place, **found.row()}]}


def _without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names}
