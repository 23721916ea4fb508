"""What is to be measured: small plain data that a plan is made of and that travels to whatever does the work."""

from dataclasses import dataclass

from offprincipal.pairs import Pair


@dataclass(frozen=True)
class Settings:
    """What is measured and how; part of a comparison's identity.

    Attributes:
        seed: of every simulated null; each tensor draws from a stream of its own.
        geometry: factorise, or count only.
        device: where tensors are measured, "cpu" or "cuda".
        cache: keep and reuse the base's factors.
        steps: when the runs are checkpoints of one run, their step numbers.
    """

    seed: int = 0
    geometry: bool = True
    device: str = "cpu"
    cache: bool = True
    steps: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Task:
    """One tensor and, for each run that has it, where base and tuned values lie. Small and picklable.

    Attributes:
        name: canonical name of the tensor.
        pairs: label and pair of each run that has the tensor.
        settings: what is measured and how.
        runs: labels of all runs of the comparison, in order.
        picture: also keep a small picture of its masks for the report.
    """

    name: str
    pairs: tuple[tuple[str, Pair], ...]
    settings: Settings
    runs: tuple[str, ...] = ()
    picture: bool = False

    @property
    def steps(self) -> tuple[float, ...] | None:
        """The step numbers of the runs that have this tensor, when they are steps of one run."""
        every = self.settings.steps
        return None if every is None else tuple(every[self.runs.index(label)] for label, _ in self.pairs)

    @property
    def cost(self) -> float:
        """Work in no particular unit: every weight once per run, times the short side where a matrix is factored."""
        pair = self.pairs[0][1]
        factored = self.settings.geometry and pair.place.linear
        return float(pair.count * len(self.pairs) * (1 + (min(pair.shape) if factored else 0)))
