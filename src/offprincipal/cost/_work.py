"""What the comparison of one tensor costs, counted from its shape.

The one table of stages; change it together with the measures. Flops are multiplications and additions of float64;
lower orders and the small matrices of the angles at small k are left out.
"""

from collections.abc import Callable
from dataclasses import dataclass

from offprincipal.pairs import Pair

PRINCIPAL = 64
"""Rank of the principal mask (DEFINITIONS section 2)."""

LARGEST_ANGLES = 512
"""Largest k of the principal angles (DEFINITIONS section 3), capped at half the short side."""

PASSES = 4.0
"""Times that every weight is ranked or counted beside the first sweep: masks over rank and share, joint histograms."""


@dataclass(frozen=True)
class Work:
    """One tensor of a plan.

    Attributes:
        name: of the pair.
        count: elements of one side.
        nbytes: stored bytes of both sides.
        long: the longer side of a matrix that is factored, else 0; `short` the shorter.
    """

    name: str
    count: int
    nbytes: int
    long: int = 0
    short: int = 0


@dataclass(frozen=True)
class Stage:
    """A stage of a comparison.

    Attributes:
        name: in words.
        rate: the field of `Rates` that tells how fast it goes.
        amount: of a `Work`, in the unit of that rate.
        once: paid once per base, however many runs there are.
    """

    name: str
    rate: str
    amount: Callable[[Work], float]
    once: bool = False


def work_of(pair: Pair, geometry: bool = True) -> Work:
    """The work of one pair; a matrix is factored where it is a linear weight and geometry is wanted."""
    if geometry and pair.place.linear and len(pair.shape) == 2:
        return Work(pair.name, pair.count, pair.nbytes, max(pair.shape), min(pair.shape))
    return Work(pair.name, pair.count, pair.nbytes)


def _k(work: Work) -> int:
    return min(LARGEST_ANGLES, work.short // 2)


def _area(work: Work) -> float:
    return float(work.long) * work.short


def _gram(work: Work) -> float:
    return 7 / 6 * _area(work) * work.short  # blocks on and below the diagonal, six of them


def _long_side(work: Work) -> float:
    return 2 * _area(work) * _k(work)


STAGES: tuple[Stage, ...] = (
    Stage("read", "read", lambda w: w.nbytes),
    Stage("hash", "hash", lambda w: w.nbytes),
    Stage("tensor", "tensors", lambda _: 1.0),
    Stage("count", "count", lambda w: w.count),
    Stage("base: Gram matrix", "gemm", _gram, once=True),
    Stage("base: vectors", "vectors", lambda w: 9.0 * w.short**3, once=True),
    Stage("base: long side", "gemm", _long_side, once=True),
    Stage("tuned: Gram matrix", "gemm", _gram),
    Stage("tuned: vectors", "vectors", lambda w: 9.0 * w.short**3),
    Stage("tuned: long side", "gemm", _long_side),
    Stage("change: Gram matrix", "gemm", _gram),
    Stage("change: values", "values", lambda w: 4 / 3 * w.short**3),
    Stage("angles: products", "gemm", lambda w: 8.0 * (w.long + w.short) * _k(w) ** 2),
    Stage("angles: values", "values", lambda w: 4 * 4 / 3 * _k(w) ** 3),
    Stage("principal masks and energy", "gemm", lambda w: 3 * 2 * _area(w) * min(PRINCIPAL, _k(w))),
    Stage("rank and count", "count", lambda w: PASSES * _area(w)),
)
"""Every stage, in order. A tuned side is counted as if it were factorised: headers do not tell whether its step is
small or sparse enough for the short way (``measures.carried``), which saves a tenth to a fifth of the whole with a new
base and up to a third with a kept one. 9 n^3 and 4/3 n^3 are the usual counts of a symmetric eigenproblem with and
without vectors (Golub and Van Loan, 8.3); the rates are measured with the same counts, so that only their growth
matters."""
