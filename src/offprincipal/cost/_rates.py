"""How fast a machine does each kind of work: measured once and kept, or assumed and labelled so."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import xxhash
from huggingface_hub import cached_assets_path

from offprincipal.measures.seeds import torch_generator
from offprincipal.measures.sweep import sweep

VERSION = 2
"""Of what is measured and how; kept rates of another version are measured again."""

SIDE = 768
"""Side of the timed matrices: large enough to be bound by arithmetic, small enough for a second or two in all."""

READ = 1e9
"""Bytes per second that one reader gets: an assumption in every column (a local NVMe drive, a good file server)."""

TENSORS = 70.0
"""Tensors per second, however small: timed once on one core with 20 draws of the rounding null."""


@dataclass(frozen=True)
class Rates:
    """Speeds of one device.

    Attributes:
        device: what it is called.
        source: where the numbers come from, in words.
        measured: whether they were timed; `read` and `tensors` are the same assumptions everywhere.
        gemm: float64 flops per second of a matrix product.
        vectors: of a symmetric eigenproblem with vectors, counted as 9 n^3.
        values: of one without vectors, counted as 4/3 n^3.
        count: weights per second through the counting pass.
        hash: bytes per second through xxh3, beside the other work.
        read: bytes per second from storage.
        tensors: tensors per second through what does not depend on their size, mostly simulated nulls (assumed).
    """

    device: str
    source: str
    measured: bool
    gemm: float
    vectors: float
    values: float
    count: float
    hash: float
    read: float = READ
    tensors: float = TENSORS


ASSUMED_GPU = Rates(
    device="one H100 SXM (assumed)",
    source=(
        "not measured: NVIDIA's data sheet gives 67e12 float64 flops/s on tensor cores and 3.35e12 bytes/s of memory;"
        " assumed are half of the first for products, 1 % of it for eigenproblems (bound by memory and latency),"
        " half of the second at 200 bytes per counted weight, and 1e10 bytes/s for xxh3 on the host"
    ),
    measured=False,
    gemm=0.5 * 67e12,
    vectors=0.01 * 67e12,
    values=0.01 * 67e12,
    count=0.5 * 3.35e12 / 200,
    hash=1e10,
)
"""Used where no GPU is at hand; with one, `rates` measures it."""


def rates(device: str = "cpu", *, cache: bool = True) -> Rates:
    """Measured rates of this machine's `device`, from the cache of earlier measurements if there are any.

    Kept as JSON under huggingface_hub's assets cache, one file per machine, device and torch version. A file that
    cannot be read as such is measured again and replaced.

    Args:
        device: "cpu" or "cuda".
        cache: False measures now and keeps nothing.
    """
    if not cache:
        return measure_rates(device)
    folder = Path(cached_assets_path(library_name="offprincipal", namespace="rates", subfolder=f"v{VERSION}"))
    machine = (
        f"{_device_name(device)} {platform.machine()} {platform.node()} {torch.get_num_threads()} {torch.__version__}"
    )
    file = folder / f"{hashlib.sha256(machine.encode()).hexdigest()[:16]}.json"
    try:
        return Rates(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):  # none yet, cut short, or of another shape
        found = measure_rates(device)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(asdict(found)))
    part.replace(file)
    return found


def measure_rates(device: str = "cpu") -> Rates:
    """Time a product, two factorisations, the counting pass and xxh3; a few seconds, the best of a few rounds.

    float64, matrices of side `SIDE`. On a CPU each is timed with one thread and with all, and the faster counts: on a
    busy machine threads that wait for each other can be slower than one. On a GPU each timing ends with a
    synchronisation.
    """
    threads = torch.get_num_threads()
    found = []
    try:
        for number in sorted({1, threads}) if device == "cpu" else [threads]:
            torch.set_num_threads(number)
            found.append(_timed(device))
    finally:
        torch.set_num_threads(threads)
    best = {name: max(speeds[name] for speeds in found) for name in found[0]}
    side = f"measured here, matrices of side {SIDE}"
    source = f"{side}, the faster of 1 and {threads} threads" if device == "cpu" else side
    return Rates(device=_device_name(device), source=source, measured=True, **best)


def _timed(device: str) -> dict[str, float]:
    """Amount per second of each kind of work, with the threads as they are set."""
    generator = torch_generator(0, "rates", device=device)
    matrix = torch.randn(SIDE, SIDE, generator=generator, dtype=torch.float64, device=device)
    gram = matrix @ matrix.T
    before = torch.randn(4 * SIDE, SIDE, generator=generator, device=device).to(torch.bfloat16)
    after = (before.float() * 1.01).to(torch.bfloat16)
    payload = bytes(32 << 20)

    def speed(amount: float, work: Callable[[], object], rounds: int) -> float:
        return amount / min(_seconds(work, device) for _ in range(rounds))

    return {
        "gemm": speed(2.0 * SIDE**3, lambda: matrix @ matrix, 5),
        "vectors": speed(9.0 * SIDE**3, lambda: torch.linalg.eigh(gram), 2),
        "values": speed(4 / 3 * SIDE**3, lambda: torch.linalg.eigvalsh(gram), 2),
        "count": speed(before.numel(), lambda: sweep(before, after), 4),  # the first round may compile
        "hash": speed(len(payload), lambda: xxhash.xxh3_128(payload), 2),
    }


def _seconds(work: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device != "cpu" else f"this machine, {torch.get_num_threads()} threads"
