"""What a judged claim is: one frozen record, as the scoreboard, the JSON file and the report read it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from offprincipal.lab.claims.verdict import Judged

NOT_RUN = "not run"


@dataclass(frozen=True)
class Control:
    """A case whose answer is known, measured by the same function as the claim.

    Attributes:
        what: what was planted.
        passed: whether the measure said so; None where the claim needs none, or it could not be measured.
        found: what it said.
    """

    what: str
    passed: bool | None = None
    found: str = ""


@dataclass(frozen=True)
class Record:
    """One claim, judged.

    Attributes:
        id: as in ``catalogue.CLAIMS``.
        verdict: supported, not supported, explained by the null, cannot tell, or not run.
        why: the verdict in one sentence, with its numbers.
        judged: effects with intervals, beside every null; empty for a numeric claim.
        positive: the control in which the effect was planted.
        negative: the control in which it was not.
        numbers: whatever else was measured, by name.
        settings: what the numbers depend on.
        seeds: how many seeds were read.
        leans: what the matrices of too few seeds would say; it decides nothing. Empty where there are enough.
        seeds_needed: how many would show the least effect that counts, with 80 % power; None where it does not apply.
        command: the one command that reproduces the record, or that makes what is missing.
    """

    id: str
    verdict: str
    why: str
    judged: tuple[Judged, ...] = ()
    positive: Control = field(default_factory=lambda: Control("none"))
    negative: Control = field(default_factory=lambda: Control("none"))
    numbers: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 0
    leans: str = ""
    seeds_needed: int | None = None
    command: str = ""

    def row(self) -> dict[str, Any]:
        """Plain data, as ``claims.json`` holds it."""
        return asdict(self)


class NotRun(Exception):
    """Inside the judge only: a claim needs something that is not there. Says what, and the command that makes it."""

    def __init__(self, missing: str, command: str):
        self.missing, self.command = missing, command
        super().__init__(missing, command)
