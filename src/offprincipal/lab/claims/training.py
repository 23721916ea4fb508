"""F1 to F8: which weights may be trained? From the records of ``offprincipal lab arms``, on the test half.

What it is: differences of accuracy between arms of one laboratory and run seed, each arm at the learning rate that did
best on the validation half. What it is not: the ranking (``lab.ranking``). A unit is one laboratory and run seed; its
values are the two task families.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from offprincipal import survey
from offprincipal.fanout import Engine, here
from offprincipal.lab.claims.record import NotRun, Record
from offprincipal.lab.claims.samples import Evidence, Row, log_ratio
from offprincipal.lab.claims.verdict import Measured, Sample
from offprincipal.lab.claims.weights import judged_record
from offprincipal.lab.judge import per_token
from offprincipal.lab.kinds import RANK_ONE

GAIN, CLOSE = 0.01, 0.02
"""Least difference of accuracy that counts, and what counts as equal (*ours*): one point, two points."""

Unit = tuple[str, int]


def chosen(evidence: Evidence, arm: str) -> dict[Unit, Row]:
    """The records of an arm at its best learning rate on validation, by laboratory and run seed."""
    rates: dict[float, list[Row]] = {}
    for record in evidence.arms:
        if record["arm"] == arm:
            rates.setdefault(record["learning_rate"], []).append(record)
    best = max(
        rates, key=lambda rate: np.mean([accuracy(record, "validation") for record in rates[rate]]), default=None
    )
    return {(r["lab"], r["run_seed"]): r for r in rates.get(best, [])} if best is not None else {}


def accuracy(record: Row, part: str, family: str | None = None) -> float:
    """Share of right answers after training, in one family or both."""
    found = record[part]["accuracy_after"]
    counted = [found[family]] if family else list(found.values())
    return sum(each["right"] for each in counted) / sum(each["samples"] for each in counted)


def needed(evidence: Evidence, *arms: str) -> list[dict[Unit, Row]]:
    """The chosen records of these arms; or what to run."""
    found = [chosen(evidence, arm) for arm in arms]
    missing = [arm for arm, records in zip(arms, found, strict=True) if not records]
    if missing:
        command = f"offprincipal lab arms --arms {','.join(arms)} --seeds 0,1,2 -o {first_folder(evidence)}"
        raise NotRun(f"the arms {', '.join(missing)}", command)
    return found


def first_folder(evidence: Evidence) -> str:
    """Where a command for one laboratory should go."""
    known = [str(seed.folder) for seed in evidence.seeds if seed.folder]
    return known[0] if known else evidence.asked.split(" ")[0]


def better(evidence: Evidence, one: str, other: str) -> Sample:
    """Per unit that has both, and family: accuracy of `one` minus accuracy of `other` on the test half."""
    first, second = needed(evidence, one, other)
    return [
        np.array([accuracy(first[unit], "test", f) - accuracy(second[unit], "test", f) for f in ("math", "code")])
        for unit in sorted(first.keys() & second.keys())
    ]


def f1(evidence: Evidence) -> tuple[Measured, ...]:
    """Safe against dense: equal within two points."""
    return (Measured("accuracy of safe minus dense", better(evidence, "safe", "dense"), least=CLOSE, equal=True),)


def f2(evidence: Evidence) -> tuple[Measured, ...]:
    """Principal is below every other mask."""
    others = ("nonprincipal", "low", "safe", "random")
    needed(evidence, "principal", *others)
    return tuple(
        Measured(f"accuracy of {other} minus principal", better(evidence, other, "principal"), least=GAIN)
        for other in others
    )


def f3(evidence: Evidence) -> tuple[Measured, ...]:
    """The two halves of equal size."""
    sample = better(evidence, "nonprincipal", "principal")
    return (Measured("accuracy of nonprincipal minus principal", sample, least=GAIN),)


def f4(evidence: Evidence) -> tuple[Measured, ...]:
    """Safe against random of its density, matrix by matrix."""
    return (Measured("accuracy of safe minus random", better(evidence, "safe", "random"), least=GAIN),)


def f5(evidence: Evidence) -> tuple[Measured, ...]:
    """Low against dense: equal within two points."""
    return (Measured("accuracy of low minus dense", better(evidence, "low", "dense"), least=CLOSE, equal=True),)


def f6(evidence: Evidence) -> tuple[Measured, ...]:
    """PiSSA gains less than a point over LoRA, each at its best rate."""
    sample = [GAIN + values for values in better(evidence, "lora", "pissa")]
    return (Measured("accuracy of LoRA minus PiSSA, plus one point", sample),)


def f8(evidence: Evidence) -> tuple[Measured, ...]:
    """LoRA of rank 1 is at most two points below dense."""
    sample = [CLOSE + values for values in better(evidence, RANK_ONE, "dense")]
    return (Measured("accuracy of rank-1 LoRA minus dense, plus two points", sample),)


def f7(evidence: Evidence, engine: Engine) -> tuple[Measured, ...]:
    """Energy of the merged update in the principal subspaces: LoRA's below chance, PiSSA's above LoRA's."""
    lora, pissa = needed(evidence, "lora", "pissa")
    lifts = {unit: _lifts(evidence, unit, {"lora": lora[unit], "pissa": pissa[unit]}, engine)
             for unit in sorted(lora.keys() & pissa.keys())}  # fmt: skip
    below = [-np.array([ln["lora"] for ln in found]) for found in lifts.values()]
    apart = [np.array([ln["pissa"] - ln["lora"] for ln in found]) for found in lifts.values()]
    return (
        Measured("ln(chance energy in the principal subspaces / energy of LoRA)", below, least=np.log(1.1)),
        Measured("ln(energy of PiSSA / energy of LoRA)", apart, least=np.log(1.1)),
    )


def _lifts(evidence: Evidence, unit: Unit, arms: Mapping[str, Row], engine: Engine) -> list[dict[str, float]]:
    """Per matrix ln of the energy lift of each arm's float32 update, by `survey.compare`."""
    assert evidence.out is not None  # arms were read from folders
    rates = "-".join(f"{arm}-{record['learning_rate']:g}" for arm, record in arms.items())  # the best may change
    place = evidence.out / "compare" / f"{unit[0]}-{rates}-seed-{unit[1]}"
    lab = next(seed.folder for seed in evidence.seeds if seed.name == unit[0])
    assert lab is not None
    tuned = {arm: record["folder"] / "master" for arm, record in arms.items()}
    found: dict[str, dict[str, float]] = {}
    for row in survey.compare(lab / "base", tuned, place, engine=engine).table().to_pylist():
        lift = log_ratio(row["energy_both_sq"], row["delta_sq"])
        if row["linear"] and lift is not None:
            found.setdefault(row["tensor"], {})[row["run"]] = lift - np.log(row["energy_both_gauss_mean"])
    return [each for each in found.values() if set(each) == set(arms)]


def table(evidence: Evidence) -> dict[str, Any]:
    """Every arm and rate: test accuracy and KL to the base, means over units."""
    cells: dict[str, list[Row]] = {}
    for record in evidence.arms:
        cells.setdefault(f"{record['arm']} at {record['learning_rate']:g}", []).append(record)
    return {name: {"accuracy": float(np.mean([accuracy(r, "test") for r in found])),
                   "kl_arm_to_base": float(np.mean([per_token(r["test"]["kl_arm_to_base"]) for r in found])),
                   "units": len(found)}
            for name, found in sorted(cells.items())}  # fmt: skip


def weigh_arms(id_: str, measure: Callable[[Evidence], tuple[Measured, ...]], evidence: Evidence) -> Record:
    """Judge a claim about arms. Their controls are arms: dense above, random of equal density below."""
    settings = {"part": "test; rates chosen on validation", "units": "laboratories x run seeds"}
    return judged_record(id_, measure(evidence), evidence, numbers=table(evidence), settings=settings)


def claims(engine: Engine = here) -> Sequence[tuple[str, Callable[[Evidence], Record]]]:
    """The claims about arms, by id."""
    measures = {"F1": f1, "F2": f2, "F3": f3, "F4": f4, "F5": f5, "F6": f6, "F8": f8}
    measures["F7"] = lambda evidence: f7(evidence, engine)
    return [(id_, lambda e, i=id_, m=measure: weigh_arms(i, m, e)) for id_, measure in measures.items()]
