"""What a comparison will cost, from headers alone: bytes, flops, peak memory, hours.

What it is: the stages of `_work.py`, counted for every pair of a plan, over the rates of `_rates.py`. What it is not:
a promise. Rates are timed at one size, storage is assumed, and Hub downloads come on top.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from offprincipal.checkpoint import Checkpoint
from offprincipal.cost._rates import ASSUMED_GPU, Rates, measure_rates, rates
from offprincipal.cost._work import STAGES, Work, work_of
from offprincipal.fanout import deal
from offprincipal.pairs import Plan, pair

__all__ = [
    "ASSUMED_GPU",
    "STAGES",
    "Cost",
    "Rates",
    "Work",
    "measure_rates",
    "plan_cost",
    "rates",
    "seconds",
    "work_of",
]

GPUS = (1, 8, 64)
"""Numbers of GPUs for which hours are estimated."""

BASELINE = 1 << 30
"""Bytes of a worker before any tensor: interpreter, torch, compiled code."""

WORKING = 48
"""Bytes per weight while a matrix is factored, at most: 12 times its size in float32, our own bound."""

COUNTING = 1
"""Bytes per weight beside the stored ones where a tensor is only counted; 0.1 was measured."""


@dataclass(frozen=True)
class Cost:
    """The estimate for one base and some runs.

    Attributes:
        tensors: pairs; `matrices` of them are factored.
        weights: elements compared, one side, one run.
        runs: tuned checkpoints.
        nbytes: stored bytes read.
        amounts: per stage, in flops, weights or bytes.
        flops: float64 flops altogether.
        peak_nbytes: memory of one worker at most, at its largest tensor, whose name is `largest`.
        hours_here: on this machine, all its cores on one tensor at a time.
        hours_gpus: per number of GPUs, tensors dealt out largest first and never split.
        here: rates of this machine.
        gpu: rates of one GPU, measured where this machine has one and assumed otherwise.
    """

    tensors: int
    matrices: int
    weights: int
    runs: int
    nbytes: int
    amounts: Mapping[str, float]
    flops: float
    peak_nbytes: int
    largest: str
    hours_here: float
    hours_gpus: Mapping[int, float]
    here: Rates
    gpu: Rates

    def to_dict(self) -> dict[str, Any]:
        """Only what JSON knows."""
        return {**asdict(self), "hours_gpus": {str(number): hours for number, hours in self.hours_gpus.items()}}

    def lines(self) -> list[tuple[str, str]]:
        """Label and value, ready to be printed one below the other."""
        gpus = "measured" if self.gpu.measured else "assumed rates"
        plural = "s" if self.runs > 1 else ""
        return [
            ("tensors", f"{self.tensors:,}, of which {self.matrices:,} matrices are factored"),
            ("weights", f"{self.weights:,} in {self.runs} run{plural} against one base"),
            ("bytes to read", f"{self.nbytes / 1e9:,.1f} GB"),
            ("work", f"{self.flops:.2g} float64 flops"),
            ("peak memory", f"at most {self.peak_nbytes / 2**30:.1f} GiB per worker ({self.largest})"),
            (f"on {self.here.device}", _duration(self.hours_here)),
            *(
                (f"on {number} GPU{'s' if number > 1 else ''} ({gpus})", _duration(h))
                for number, h in self.hours_gpus.items()
            ),
            ("rates here", self.here.source),
            ("rates of a GPU", self.gpu.source),
            ("storage", f"assumed to give each worker {self.here.read / 1e9:g} GB/s; Hub downloads come on top"),
        ]


def plan_cost(
    source: Checkpoint | Plan,
    *,
    runs: int = 1,
    geometry: bool = True,
    here: Rates | None = None,
    gpu: Rates | None = None,
) -> Cost:
    """Estimate a comparison from headers alone; no weight is read.

    Args:
        source: a plan, or a checkpoint that will be compared with tunes of its own shapes and dtypes.
        runs: tuned checkpoints; the base is read and factored once.
        geometry: whether matrices are factored.
        here: rates of this machine; measured at first use (about two seconds) and kept when None.
        gpu: rates of one GPU; measured where torch sees one, otherwise `ASSUMED_GPU`.

    Source: ours. Left out: downloads, the report, start of workers, tables (all small beside the rest or unknown).
    """
    plan = pair(source, source) if isinstance(source, Checkpoint) else source
    here = here or rates("cpu")
    gpu = gpu or (rates("cuda") if torch.cuda.is_available() else ASSUMED_GPU)
    works = [work_of(each, geometry) for each in plan.pairs]
    alike = Counter(replace(work, name="") for work in works)  # a mixture of experts has few shapes and many tensors
    amounts = {s.name: sum(number * _amount(s, work, runs) for work, number in alike.items()) for s in STAGES}
    largest = max(works, key=_peak)
    return Cost(
        tensors=len(works),
        matrices=sum(work.short > 0 for work in works),
        weights=sum(work.count for work in works),
        runs=runs,
        nbytes=round(amounts["read"]),
        amounts=amounts,
        flops=sum(amounts[stage.name] for stage in STAGES if stage.rate in ("gemm", "vectors", "values")),
        peak_nbytes=_peak(largest),
        largest=largest.name,
        hours_here=sum(number * seconds(work, here, runs) for work, number in alike.items()) / 3600,
        hours_gpus={number: _makespan(works, gpu, runs, number) / 3600 for number in GPUS},
        here=here,
        gpu=gpu,
    )


def seconds(work: Work, speed: Rates, runs: int = 1) -> float:
    """Estimated seconds of one tensor in all runs: read first, then hash beside everything else."""
    time = {stage.name: _amount(stage, work, runs) / getattr(speed, stage.rate) for stage in STAGES}
    read, hashing = time.pop("read"), time.pop("hash")
    return read + max(hashing, sum(time.values()))


def _amount(stage: Any, work: Work, runs: int) -> float:
    """Read and hash: one base and every run, each half of the pair's bytes. Otherwise per run, or once per base."""
    times = 1.0 if stage.once else (runs + 1) / 2 if stage.name in ("read", "hash") else float(runs)
    return times * stage.amount(work)


def _peak(work: Work) -> int:
    return BASELINE + (WORKING if work.short else COUNTING) * work.count + (0 if work.short else work.nbytes)


def _makespan(works: Sequence[Work], speed: Rates, runs: int, workers: int) -> float:
    """Seconds until the last of some workers is done, tensors dealt out as `fanout.deal` does."""
    times = {alike: seconds(alike, speed, runs) for alike in {replace(work, name="") for work in works}}
    items = [(time, time) for time in (times[replace(work, name="")] for work in works)]
    return max(sum(part) for part in deal(items, workers))


def _duration(hours: float) -> str:
    """Two digits of the largest unit that fits.

    >>> _duration(0.001), _duration(0.5), _duration(30)
    ('3.6 s', '30 min', '30 h')
    """
    seconds = 3600 * hours
    amount, unit = (seconds, "s") if seconds < 90 else (seconds / 60, "min") if seconds < 5400 else (hours, "h")
    return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:,.0f} {unit}"
