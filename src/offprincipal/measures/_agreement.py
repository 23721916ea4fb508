"""The frozen results of a consensus: a pair of runs, and what all runs of one tensor have in common."""

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprincipal.measures.excess import z_score
from offprincipal.measures.nulls import bernoulli_jaccard
from offprincipal.measures.stripes import Heads, Null, Stripes

POINTS = 512
"""Points of a profile curve at most; longer profiles are averaged over equal bins (the last may be shorter)."""


@dataclass(frozen=True)
class RunPair:
    """Two runs of one tensor: numerators, denominators and their nulls.

    Attributes:
        left: index of the first run; `right` of the second.
        counted: entries of the tensor.
        changed_left: entries that the first run changed; `changed_right` the second.
        both: entries that both changed.
        both_chance: expected `both` of independent masks of these densities.
        both_matched: expected `both` under the matched null, with its variance `both_matched_var`.
    """

    left: int
    right: int
    counted: int
    changed_left: int
    changed_right: int
    both: int
    both_chance: float
    both_matched: float
    both_matched_var: float

    @property
    def either(self) -> int:
        """Entries that at least one of the two changed."""
        return self.changed_left + self.changed_right - self.both

    @property
    def jaccard(self) -> float:
        """``both / either`` (PNT section 2.2); zero when nothing changed."""
        return self.both / self.either if self.either else 0.0

    @property
    def jaccard_bernoulli(self) -> float:
        """``p q / (p + q - p q)`` for the two densities (PNT section 2.2)."""
        counted = max(self.counted, 1)
        return bernoulli_jaccard(self.changed_left / counted, self.changed_right / counted)

    @property
    def jaccard_matched(self) -> Null:
        """Jaccard under the matched null, by the delta method: E/(A + B - E), sd scaled by (A + B)/(A + B - E)^2."""
        sizes = self.changed_left + self.changed_right
        rest = sizes - self.both_matched
        if rest <= 0:
            return Null(0.0, 0.0)
        return Null(self.both_matched / rest, self.both_matched_var**0.5 * sizes / rest**2)

    @property
    def excess_z(self) -> float:
        """Standard deviations of `both` above the matched null."""
        return z_score(float(self.both), self.both_matched, self.both_matched_var)

    def row(self) -> dict:
        """Flat record, ratios beside their counts."""
        ratios = {
            "either": self.either,
            "jaccard": self.jaccard,
            "jaccard_bernoulli": self.jaccard_bernoulli,
            "jaccard_matched": self.jaccard_matched.mean,
            "jaccard_matched_sd": self.jaccard_matched.sd,
            "excess_z": self.excess_z,
        }
        return asdict(self) | ratios


@dataclass(frozen=True)
class Agreement:
    """What R runs of one tensor have in common.

    Attributes:
        runs: R.
        counted: entries of the tensor.
        changed: changed entries per run.
        pairs: every pair of runs.
        times: int64 [R + 1], entries that 0, 1, ... R runs changed.
        times_matched: float64 [R + 1], their exact expectation under the matched null (Poisson-binomial per code).
        row_counts: int64 [R, out], changed entries per run and row; `col_counts` int64 [R, in] per column.
        row_matched: float64 [out], expected changes of all runs together per row; `col_matched` per column.
        rows: stripes along the rows, None for a tensor of one axis; `columns` along the columns.
        heads: split of the variance of the head axis, None where no heads are known.
    """

    runs: int
    counted: int
    changed: tuple[int, ...]
    pairs: tuple[RunPair, ...]
    times: Int[Tensor, " times"]
    times_matched: Float[Tensor, " times"]
    row_counts: Int[Tensor, "runs out"]
    col_counts: Int[Tensor, "runs in"]
    row_matched: Float[Tensor, " out"]
    col_matched: Float[Tensor, " in"]
    rows: Stripes | None
    columns: Stripes | None
    heads: Heads | None

    def row(self) -> dict:
        """One flat record: sums over the pairs of runs (``pairs_*``), their means, the histogram's ends, the stripes.

        Sums of ``pairs_both`` over tensors by those of ``pairs_either`` give a model's Jaccard, weighted by count;
        means of ``jaccard_mean`` give the paper's, unweighted. The intersections of different pairs are uncorrelated
        under the matched null, so that ``pairs_both_matched_var`` may be added up as well.
        """
        both = sum(pair.both for pair in self.pairs)
        matched = float(sum(pair.both_matched for pair in self.pairs))
        variance = float(sum(pair.both_matched_var for pair in self.pairs))
        found: dict = {"runs": self.runs, "counted": self.counted, "changed_sum": sum(self.changed)}
        found |= {
            "pairs": len(self.pairs),
            "pairs_both": both,
            "pairs_either": sum(pair.either for pair in self.pairs),
            "pairs_changed": sum(pair.changed_left + pair.changed_right for pair in self.pairs),
            "pairs_both_chance": sum(pair.both_chance for pair in self.pairs),
            "pairs_both_matched": matched,
            "pairs_both_matched_var": variance,
            "pairs_excess_z": z_score(float(both), matched, variance) if self.pairs else None,
        }
        found |= {
            "jaccard_mean": _mean([pair.jaccard for pair in self.pairs]),
            "jaccard_bernoulli_mean": _mean([pair.jaccard_bernoulli for pair in self.pairs]),
            "jaccard_matched_mean": _mean([pair.jaccard_matched.mean for pair in self.pairs]),
            "jaccard_matched_mean_sd": _mean_sd([pair.jaccard_matched.sd for pair in self.pairs]),
            "changed_by_none": int(self.times[0]),
            "changed_by_none_matched": float(self.times_matched[0]),
            "changed_by_all": int(self.times[-1]),
            "changed_by_all_matched": float(self.times_matched[-1]),
        }
        for axis, part in (("row", self.rows), ("col", self.columns), ("head", self.heads)):
            found |= _flat(axis, part)
        return found

    def curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """Curves as (x, y), at most `POINTS` points each.

        ``consensus_times`` and ``consensus_times_matched``: x = number of runs, y = entries. ``row_consensus`` and
        ``row_consensus_matched`` (``col_*`` likewise): x = first line of the bin, y = mean of C over the bin.
        """
        at = [float(x) for x in range(self.runs + 1)]
        found = {
            "consensus_times": (at, self.times.to(torch.float64).tolist()),
            "consensus_times_matched": (at, self.times_matched.tolist()),
        }
        for axis, counts, matched in (
            ("row", self.row_counts, self.row_matched),
            ("col", self.col_counts, self.col_matched),
        ):
            per_line = max(self.counted / max(len(matched), 1), 1) * self.runs
            found[f"{axis}_consensus"] = _binned(counts.sum(dim=0).to(torch.float64) / per_line)
            found[f"{axis}_consensus_matched"] = _binned(matched / per_line)
        return found


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean_sd(values: list[float]) -> float | None:
    return sum(value**2 for value in values) ** 0.5 / len(values) if values else None


def _flat(axis: str, part: Stripes | Heads | None) -> dict:
    """Fields of a nested record as ``axis_field``, ``axis_field_mean`` and ``axis_field_sd``; NaN becomes None."""
    found = {}
    for field, value in (vars(part) if part else {}).items():
        if isinstance(value, Null):
            found |= {f"{axis}_{field}_mean": value.mean, f"{axis}_{field}_sd": value.sd}
        else:
            found[f"{axis}_{field}"] = value
    return {key: None if value != value else value for key, value in found.items()}


def _binned(line_means: Tensor) -> tuple[list[float], list[float]]:
    step = max(-(-len(line_means) // POINTS), 1)
    bins = line_means.split(step) if len(line_means) else ()
    return [float(i * step) for i in range(len(bins))], [float(part.mean()) for part in bins]
