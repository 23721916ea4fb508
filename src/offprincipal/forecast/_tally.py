"""Tensor by tensor: what each update leaves visible in each format, counted and in closed form, added up."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from offprincipal.forecast._sizes import VALUE_BYTES, sizes
from offprincipal.measures import bits, ladder
from offprincipal.measures.ladder import FORMATS, Format, Start
from offprincipal.measures.steps import Constant, Sampled, Step

FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Every step times these, rounded again: sparsity against learning rate (PNT section 2.3 scales it by 1 to 30)."""

SCOPES = ("all", "linear")

CURVE = pa.schema(
    [("update", pa.string()), ("format", pa.string()), ("code", pa.int32()), ("magnitude", pa.float64()),
     ("weights", pa.int64()), ("counted", pa.int64()), ("expected", pa.float64())]
)  # fmt: skip
"""One row per update, format and bfloat16 magnitude code that occurs; `counted` is null where only a form is known."""


@dataclass(frozen=True)
class Update:
    """A set of steps whose visible share is asked.

    Attributes:
        name: as it is reported.
        factor: of the steps that are given tensor by tensor: counted, and their histogram put into the closed form.
        step: steps that are declared instead: closed form only.
        start: "stored" or "within"; None: stored where every weight of a tensor is exact in bfloat16, else within.
    """

    name: str
    factor: float = 1.0
    step: Step | None = None
    start: Start | None = None


@dataclass
class Tally:
    """Sums over tensors; integers are exact, expectations float64 in the order of the model.

    Attributes:
        updates: what is asked; all are counted, or none.
        weights: finite entries per scope.
        counted: visible entries, [scope, update, format].
        expected: the same in closed form.
        swept: visible entries of the first update at each of `FACTORS`, [scope, factor, format]; counted, or expected.
        codes: entries per magnitude code.
        curve_counted: visible entries of the first update per code, [format, code].
        curve_expected: the same of every update in closed form, [update, format, code].
        steps: histogram of ``|D|`` over magnitude codes.
        nonfinite: entries left out.
    """

    updates: Sequence[Update]
    weights: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    codes: np.ndarray = field(default_factory=lambda: np.zeros(bits.MAGNITUDE_CODES, np.int64))
    steps: np.ndarray = field(default_factory=lambda: np.zeros(bits.MAGNITUDE_CODES, np.int64))
    nonfinite: int = 0

    def __post_init__(self) -> None:
        shape = (len(SCOPES), len(self.updates), len(FORMATS))
        self.is_counted = self.updates[0].step is None
        self.counted, self.expected = np.zeros(shape, np.int64), np.zeros(shape)
        self.swept = np.zeros((len(SCOPES), len(FACTORS), len(FORMATS)), np.int64 if self.is_counted else np.float64)
        self.curve_counted = np.zeros((len(FORMATS), bits.MAGNITUDE_CODES), np.int64)
        self.curve_expected = np.zeros((len(self.updates), len(FORMATS), bits.MAGNITUDE_CODES))

    def add(self, before: Tensor, after: Tensor | None, linear: bool) -> None:
        """Add one tensor; `after` is None where the steps are declared."""
        scopes = [0, 1] if linear else [0]
        scales = [form.scale(ladder.largest(before)) for form in FORMATS]
        if after is None:
            total = np.bincount(bits.flat_codes(before) & 0x7FFF, minlength=bits.MAGNITUDE_CODES)
            self.nonfinite += int(total[bits.FIRST_NONFINITE_CODE :].sum())
            total[bits.FIRST_NONFINITE_CODE :] = 0
            self._sweep_in_closed_form(total, scales, scopes)
            steps = None
        else:
            found = ladder.count(before, after, [*FACTORS, *(update.factor for update in self.updates)])
            total, steps = found.code_total.numpy(), found.step_total
            self.nonfinite += found.nonfinite
            self.steps += steps.numpy()
            self.curve_counted += found.code_visible.numpy()
            along = found.scaled.numpy().T
            self.swept[scopes] += along[: len(FACTORS)]
            whole = found.code_visible.sum(1).numpy()  # at factor 1 nothing is rounded but the ends
            self.counted[scopes] += np.stack(
                [whole if u.factor == 1 else row for u, row in zip(self.updates, along[len(FACTORS) :], strict=True)]
            )
        self.weights[scopes] += int(total.sum())
        self.codes += total
        self._expect(total, steps, scales, _start(before), scopes)

    def _expect(
        self, total: np.ndarray, steps: Tensor | None, scales: Sequence[float], start: Start, scopes: list[int]
    ) -> None:
        """The closed form of every update, from histograms alone."""
        used = total.nonzero()[0]
        for u, update in enumerate(self.updates):
            step = update.step or Sampled(steps if steps is not None else torch.zeros(0), float(update.factor))
            for f, form in enumerate(FORMATS):
                moved = total[used] * _chance(form, step, update.start or start, scales[f], used)
                self.curve_expected[u, f, used] += moved
                self.expected[scopes, u, f] += moved.sum()

    def _sweep_in_closed_form(self, total: np.ndarray, scales: Sequence[float], scopes: list[int]) -> None:
        step, start = self.updates[0].step or Constant(0.0), self.updates[0].start or "stored"
        used = total.nonzero()[0]
        for k, factor in enumerate(FACTORS):
            for f, form in enumerate(FORMATS):
                moved = total[used] * _chance(form, step.times(factor), start, scales[f], used)
                self.swept[scopes, k, f] += moved.sum()

    def rows(self) -> list[dict[str, Any]]:
        """One row per update, scope and format: numerators, denominator, shares, bytes of a delta."""
        return [
            self._row(u, s, f)
            for u in range(len(self.updates))
            for s in range(len(SCOPES))
            for f in range(len(FORMATS))
        ]

    def _row(self, u: int, s: int, f: int) -> dict[str, Any]:
        weights, expected, name = int(self.weights[s]), float(self.expected[s, u, f]), FORMATS[f].name
        counted = int(self.counted[s, u, f]) if self.is_counted else None
        seen = expected if counted is None else counted
        return {
            "update": self.updates[u].name,
            "scope": SCOPES[s],
            "format": name,
            "weights": weights,
            "visible_counted": counted,
            "visible_expected": expected,
            "share_counted": None if counted is None else _share(counted, weights),
            "share_expected": _share(expected, weights),
            "bytes": sizes(weights, seen, VALUE_BYTES[name]),
        }

    def sweep(self) -> list[dict[str, Any]]:
        """Sparsity of the first update against a factor on all its steps, one row per factor, scope and format."""
        rows = []
        for k, factor in enumerate(FACTORS):
            for s, scope in enumerate(SCOPES):
                weights = int(self.weights[s])
                for f, form in enumerate(FORMATS):
                    seen = self.swept[s, k, f].item()
                    row = {"factor": factor, "scope": scope, "format": form.name, "weights": weights, "visible": seen}
                    rows.append(row | {"sparsity": 1 - _share(seen, weights)})
        return rows

    def curve(self) -> pa.Table:
        """`CURVE`: visible entries per magnitude code."""
        used = self.codes.nonzero()[0]
        values = bits.value(torch.from_numpy(used)).numpy()
        parts = []
        for u, update in enumerate(self.updates):
            for f, form in enumerate(FORMATS):
                known = self.is_counted and update.factor == 1
                columns = {
                    "update": [update.name] * len(used),
                    "format": [form.name] * len(used),
                    "code": used,
                    "magnitude": values,
                    "weights": self.codes[used],
                    "counted": self.curve_counted[f, used] if known else [None] * len(used),
                    "expected": self.curve_expected[u, f, used],
                }
                parts.append(pa.table(columns, schema=CURVE))
        return pa.concat_tables(parts)


def _chance(form: Format, step: Step, start: Start, scale: float, used: np.ndarray) -> np.ndarray:
    """`ladder.visible` of the codes that occur."""
    if scale == 1.0 and not isinstance(step, Sampled):
        return _declared(form, step, start)[used]
    return ladder.visible(form, step, start, scale, torch.from_numpy(used)).numpy()


@lru_cache(maxsize=128)
def _declared(form: Format, step: Step, start: Start) -> np.ndarray:
    """`ladder.visible` of a declared step: the same for every tensor, so that it is computed once (32 MB at most)."""
    return ladder.visible(form, step, start).numpy()


def _start(weight: Tensor) -> Start:
    """Whether every weight lies on the bfloat16 grid."""
    return "stored" if torch.equal(weight.to(torch.bfloat16).to(weight.dtype), weight) else "within"


def _share(part: float, whole: int) -> float:
    return part / whole if whole else 0.0
