"""Algorithms beside RLVR at equal learning rate, accuracy, KL or norm of the update, over laboratories.

What it is: `study` reads the courses that ``lab matched`` left and holds each against RLVR's where both have come
equally far, with intervals. What it is not: the training (``lab.courses``), or a verdict (``equal``).

Equal means: the largest value that both courses reach. Between two kept points a course is interpolated, linearly in
the accuracy or in the logarithm of KL or norm; before its first kept point it is not known, and nothing is matched.
Accuracy and KL are those of the weights rounded to bfloat16, the norm that of the float32 update.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offprincipal.errors import InputError
from offprincipal.lab.claims.evidence import find, read_json
from offprincipal.lab.claims.verdict import estimate
from offprincipal.lab.courses import ALGORITHMS, SCHEMA, Course
from offprincipal.lab.judge import per_token

REFERENCE = ALGORITHMS[0]

RATIOS = ("kl", "norm", "nss", "angle", "energy")
"""Measured as logarithms: effects are ln(other / RLVR)."""

DIFFERENCES = ("accuracy", "changed", "overlap")
"""Measured as shares: effects are other minus RLVR."""

MEASURES = (*DIFFERENCES, *RATIOS)

MATCHES = ("learning rate", "accuracy", "kl", "norm")
"""What is made equal; at equal learning rate the ends of both courses are compared."""

LEAST_GAIN = 0.02
"""Accuracy above the base's from which on two courses are matched in it (*ours*: twice the error of one figure)."""

Point = Mapping[str, float | None]


def study(folders: Sequence[Path]) -> dict[str, Any] | None:
    """Every course at its points, and each algorithm held against RLVR.

    Args:
        folders: laboratories, or folders of several.

    Returns:
        ``points`` (laboratory, algorithm, learning rate, step, `MEASURES` and the gain of accuracy over the base's),
        ``ends`` (per algorithm and rate every measure at the end) and ``pairs`` (per algorithm, rate and match every
        effect, and ``by_lab`` those of each laboratory): means over laboratories, ``low`` and ``high`` (95 %), how
        many ``seeds``, and ``shown``, all that in words. None where no laboratory has courses.

    Raises:
        InputError: a record cannot be read, or is of another version.
    """
    found: dict[str, dict[Course, list[dict[str, Any]]]] = {}
    for lab in find(folders):
        courses = dict(_course(file) for file in sorted((lab / "matched").glob("*/lr-*/run.json")))
        if courses:
            found[f"seed-{read_json(lab / 'lab.json')['seed']}"] = courses
    if not found:
        return None
    order = sorted(
        {c for lab in found.values() for c in lab}, key=lambda c: (ALGORITHMS.index(c.algorithm), c.learning_rate)
    )
    return {
        "schema_version": 1,
        "labs": sorted(found),
        "ends": [_ends(course, found) for course in order],
        "pairs": [pair for course in order if course.algorithm != REFERENCE for pair in _pairs(course, order, found)],
        "points": [{"lab": lab, **vars(course), **point} for lab, each in sorted(found.items()) for course in order
                   for point in each.get(course, [])],
    }  # fmt: skip


def _course(file: Path) -> tuple[Course, list[dict[str, Any]]]:
    """A course and its points, from its record."""
    record = read_json(file)
    version = record.get("schema_version")
    if version != SCHEMA:
        found = f"it is of version {version}, and this offprincipal writes {SCHEMA}"
        raise InputError(f"read {str(file)!r}", found, "delete its folder and run offprincipal lab matched again")
    return Course(record["algorithm"], record["learning_rate"]), [_point(point) for point in record["points"]]


def _point(judged: Mapping[str, Any]) -> dict[str, Any]:
    """One point in one line of numbers; None where something is not defined, as the energy of no change."""
    before, after = (
        sum(part["right"] + part["right_broken"] for part in judged[key].values())
        / sum(part["samples"] for part in judged[key].values())
        for key in ("accuracy_before", "accuracy_after")
    )
    weights = judged["weights"]
    angles = [angle for angle in (weights["angle_mean_deg"] or {}).values() if angle > 0]
    return {
        "step": judged["step"],
        "accuracy": after,
        "gain": after - before,
        "kl": per_token(judged["kl_arm_to_base"]),
        "norm": weights["relative_delta_norm"],
        "changed": 1 - weights["sparsity_bf16_linear"],
        "nss": weights["nss_mean"],
        "angle": math.exp(sum(map(math.log, angles)) / len(angles)) if angles else None,
        "energy": weights["energy_principal_lift"],
        "overlap": weights["overlap_principal_excess"],
    }


def _ends(course: Course, found: Mapping[str, Mapping[Course, list[dict[str, Any]]]]) -> dict[str, Any]:
    """The last point of a course, over laboratories."""
    last = [lab[course][-1] for lab in found.values() if lab.get(course)]
    intervals = {key: _interval([point[key] for point in last], key, effect=False) for key in ("gain", *MEASURES)}
    return {**vars(course), "labs": len(last), **intervals}


def _pairs(
    course: Course, known: Sequence[Course], found: Mapping[str, Mapping[Course, list[dict[str, Any]]]]
) -> list[dict[str, Any]]:
    """One algorithm at one rate against RLVR at that rate, or at its lowest where it has no such, in every match."""
    rates = [each.learning_rate for each in known if each.algorithm == REFERENCE]
    if not rates:
        return []
    same = course.learning_rate in rates
    other = Course(REFERENCE, course.learning_rate if same else min(rates))
    rows = []
    for match in MATCHES if same else MATCHES[1:]:
        met = {name: met for name, lab in sorted(found.items()) if course in lab and other in lab
               and (met := meet(lab[course], lab[other], match)) is not None}  # fmt: skip
        by_lab = {lab: {key: effect(key, own[key], rlvr[key]) for key in MEASURES} for lab, (own, rlvr) in met.items()}
        effects = {key: _interval([each[key] for each in by_lab.values()], key) for key in MEASURES}
        at = _interval([own[match] for own, _ in met.values()], match, effect=False) if match in MEASURES else None
        rows.append({**vars(course), "rlvr_learning_rate": other.learning_rate, "match": match, "labs": len(met),
                     "at": at, "effects": effects, "by_lab": by_lab})  # fmt: skip
    return rows


def effect(key: str, own: float | None, rlvr: float | None) -> float | None:
    """How much more than RLVR: ln of the quotient for `RATIOS`, the difference for `DIFFERENCES`.

    >>> effect("nss", 2.0, 1.0), effect("changed", 0.75, 0.5), effect("nss", 0.0, 1.0)
    (0.6931471805599453, 0.25, None)
    """
    if own is None or rlvr is None:
        return None
    if key in DIFFERENCES:
        return own - rlvr
    return math.log(own / rlvr) if own > 0 and rlvr > 0 else None


def meet(own: Sequence[Point], other: Sequence[Point], match: str) -> tuple[Point, Point] | None:
    """Both courses where they are equal in `match`: at the largest value that both reach, or at their ends.

    None where they are nowhere known to be equal: one is past the value at its first point, or, in accuracy, not both
    gain `LEAST_GAIN`.

    >>> a, b = ([dict.fromkeys((*RATIOS, *DIFFERENCES), x) for x in xs] for xs in ((1.0, 4.0), (1.0, 2.0)))
    >>> [point["norm"] for point in meet(a, b, "norm")]
    [2.0, 2.0]
    """
    if match == MATCHES[0]:
        return own[-1], other[-1]
    if match == "accuracy" and min(max(_number(p, "gain") for p in side) for side in (own, other)) < LEAST_GAIN:
        return None
    reach = min(max(_number(point, match) for point in side) for side in (own, other))
    met = [at_value(side, match, reach) for side in (own, other)]
    return None if met[0] is None or met[1] is None else (met[0], met[1])


def _number(point: Point, key: str) -> float:
    value = point.get(key)
    return -math.inf if value is None else value


def at_value(points: Sequence[Point], key: str, value: float) -> Point | None:
    """A course where it first reaches a value of one of its measures, every measure interpolated.

    >>> half = at_value([{"accuracy": 0.5, "nss": 1.0}, {"accuracy": 0.7, "nss": 4.0}], "accuracy", 0.6)
    >>> round(half["nss"], 9)  # halfway, in the logarithm
    2.0
    """
    at = next((number for number, point in enumerate(points) if _number(point, key) >= value), None)
    if at is None or (at == 0 and _number(points[0], key) > value):
        return None
    low, high = points[max(at - 1, 0)], points[at]
    if _number(high, key) == value:
        return high
    scale = _scale(key)
    start, end = scale(low[key]), scale(high[key])
    if start is None or end is None:
        return None
    share = ((scale(value) or 0.0) - start) / (end - start)
    return {name: _between(name, low.get(name), high.get(name), share) for name in ("gain", *MEASURES) if name in high}


def _scale(key: str) -> Callable[[float | None], float | None]:
    """The scale on which a measure is interpolated: logarithmic for `RATIOS`."""
    if key not in RATIOS:
        return lambda x: x
    return lambda x: math.log(x) if x is not None and x > 0 else None


def _between(key: str, low: float | None, high: float | None, share: float) -> float | None:
    scale = _scale(key)
    start, end = scale(low), scale(high)
    if start is None or end is None:
        return None
    value = start + share * (end - start)
    return math.exp(value) if key in RATIOS else value


def _interval(values: Sequence[float | None], key: str, *, effect: bool = True) -> dict[str, Any] | None:
    """Mean over laboratories with its 95 % interval, and in words; None where no laboratory has a value."""
    known = [np.array([value]) for value in values if value is not None]
    if not known:
        return None
    numbers = estimate(known).row()
    return {**numbers, "shown": shown(numbers, key, effect=effect)}


def shown(found: Mapping[str, Any], key: str, *, effect: bool = True) -> str:
    """A mean with its interval: points for shares, quotients for effects on ratios, plain numbers otherwise.

    >>> shown({"mean": 0.0, "low": -0.1, "high": 0.1}, "nss")
    'x1.00 [0.90, 1.11]'
    >>> shown({"mean": 0.5, "low": None, "high": None}, "changed"), shown({"mean": 0.25}, "kl", effect=False)
    ('+50.0', '0.25')
    """
    numbers = [found[name] for name in ("mean", "low", "high") if found.get(name) is not None]
    if key not in RATIOS:
        texts = [f"{100 * number:{'+' if effect else ''}.{2 if key == 'overlap' else 1}f}" for number in numbers]
    elif effect:
        texts = [f"{math.exp(number):.2f}" for number in numbers]
    else:
        texts = [f"{number:.3g}" for number in numbers]
    first = ("x" if effect and key in RATIOS else "") + texts[0]
    return first + (f" [{texts[1]}, {texts[2]}]" if len(texts) == 3 else "")
