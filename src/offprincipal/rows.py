"""One pair of tensors to one row: the explicit tuple of measures.

A measure is one function here, from a `Subject` to columns and curves. To add one: write the pure function in
``measures/``, wrap it below, list it in `MEASURES` and its columns in ``schema.SCHEMA``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprincipal.geometry import Curve, Keep
from offprincipal.geometry import measure as measure_geometry
from offprincipal.measures import nulls
from offprincipal.measures.masks import ALPHA, ALPHAS
from offprincipal.measures.seeds import numpy_generator
from offprincipal.measures.sweep import ULP_EDGES, Sweep, low_changed, sweep
from offprincipal.pairs import Pair
from offprincipal.task import Settings

PROFILE_POINTS = 512
"""Row and column profiles keep at most this many points (*ours*): neighbours are added up, bins as equal as can be."""


@dataclass(frozen=True)
class Subject:
    """One pair, loaded, and what several measures share about it."""

    pair: Pair
    before: Tensor
    after: Tensor
    settings: Settings
    factors: Keep | None = None

    @cached_property
    def counts(self) -> Sweep:
        """The one pass over both sides."""
        return sweep(_matrix(self.before), _matrix(self.after))

    @cached_property
    def rounding(self) -> nulls.RoundingDraws:
        """Simulated updates that rounding alone would leave, at this pair's number of changes."""
        generator = numpy_generator(self.settings.seed, self.pair.name, "rounding")
        return nulls.rounding_draws(self.counts.code_total, self.counts.changed, generator)


@dataclass
class Measured:
    """Columns of one row and its curves."""

    columns: dict[str, Any] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)


def _matrix(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim in (1, 2) else tensor.reshape(tensor.shape[0] if tensor.ndim else 1, -1)


def place(subject: Subject) -> Measured:
    """Name, place in the model, shape and dtypes."""
    pair, matrix = subject.pair, _matrix(subject.before)
    columns = {
        "tensor": pair.name,
        "kind": pair.place.kind,
        "layer": pair.place.layer,
        "expert": pair.place.expert,
        "linear": pair.place.linear,
        "out_features": matrix.shape[0],
        "in_features": matrix.shape[1] if matrix.ndim == 2 else 1,
        "base_dtype": pair.base_dtype,
        "tuned_dtype": pair.tuned_dtype,
    }
    return Measured(columns)


def counts(subject: Subject) -> Measured:
    """Every count of DEFINITIONS 1, norms, the change in ulps, and the profiles of the update mask."""
    found = subject.counts
    scalars = {name: value for name, value in vars(found).items() if isinstance(value, int | float)}
    curves = [("ulps", ULP_EDGES.astype(np.float64), -np.diff(found.ulps.numpy(), append=0).astype(np.float64))]
    if subject.before.ndim == 2:
        curves.append(_profile("row_changed", found.row_changed.numpy()))
        curves.append(_profile("col_changed", found.col_changed.numpy()))
    return Measured(scalars, curves)


def _profile(name: str, counted: np.ndarray) -> Curve:
    points = min(PROFILE_POINTS, len(counted))
    if not points:
        return name, np.zeros(0), np.zeros(0)
    edges = np.arange(points) * len(counted) // points
    return name, edges.astype(np.float64), np.add.reduceat(counted, edges).astype(np.float64)


def low_magnitude(subject: Subject) -> Measured:
    """Overlap of the update with the smallest weights at every fraction, beside magnitude and rounding nulls."""
    found = subject.counts
    sizes = [round(fraction * found.counted) for fraction in ALPHAS]
    observed = low_changed(subject.before, subject.after, found, sizes)
    chosen = [nulls.low_magnitude(found.code_total, size) for size in sizes]
    magnitude = nulls.magnitude(found.code_total, found.code_changed)
    matched = [magnitude.overlap(mask) for mask in chosen]
    drawn = [subject.rounding.share(mask) for mask in chosen]
    at = ALPHAS.index(ALPHA)
    columns = {
        "low_alpha": ALPHA,
        "low_ones": sizes[at],
        "low_changed": observed[at],
        "low_matched": matched[at][0],
        "low_matched_var": matched[at][1],
        "low_rounding": drawn[at][0] * found.changed,
        "low_rounding_var": drawn[at][1] * found.changed**2,
        "rounding_scale": subject.rounding.scale,
    }
    x = np.array(ALPHAS)
    curves = [
        ("low_count", x, np.array(observed, dtype=np.float64)),
        ("low_matched", x, np.array([expected for expected, _ in matched])),
        ("low_rounding", x, np.array([share * found.changed for share, _ in drawn])),
    ]
    return Measured(columns, curves)


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch to one thread: products and eigenproblems end in other last bits with another number of threads.

    So that serial, parallel and cluster runs write the same bytes; the cores are filled by tensors, not by threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def geometry(subject: Subject) -> Measured:
    """Spectrum, subspaces, principal masks and energy, for matrices inside blocks; see ``geometry.py``."""
    if not (subject.settings.geometry and subject.pair.place.linear and subject.before.ndim == 2):
        return Measured()
    with one_thread():
        found = measure_geometry(
            subject.before,
            subject.after,
            name=subject.pair.name,
            seed=subject.settings.seed,
            factors=subject.factors,
            device=subject.settings.device,
            drawn=subject.rounding,
        )
    return Measured(found.row(), found.curves())


MEASURES: tuple[Callable[[Subject], Measured], ...] = (place, counts, low_magnitude, geometry)
"""What is measured on each pair, in this order."""


def measure(pair: Pair, before: Tensor, after: Tensor, settings: Settings, factors: Keep | None = None) -> Measured:
    """Run every measure on one loaded pair.

    Args:
        pair: names and places.
        before: the base, canonical layout, stored dtype.
        after: the tuned side.
        settings: seed and device.
        factors: where the base's factors are kept between runs.

    Returns:
        The columns of ``schema.SCHEMA`` without ``run`` (columns that do not apply are left out) and the curves.
    """
    subject = Subject(pair, before.to(settings.device), after.to(settings.device), settings, factors)
    total = Measured()
    for each in MEASURES:
        part = each(subject)
        total.columns.update(part.columns)
        total.curves.extend(part.curves)
    return total
