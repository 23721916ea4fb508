"""The table of arms: rates chosen on validation, results told on test."""

import io
from typing import Any

import pytest
from rich.console import Console

from offprincipal.lab.ranking import against, collapse, print_ranking, rank_arms


def record(arm: str, rate: float, seed: int, validation: int, test: int) -> dict[str, Any]:
    def part(right: int) -> dict[str, Any]:
        def counted(each: int) -> dict[str, Any]:
            return {family: {"samples": 100, "right": each} for family in ("math", "code")}

        moved = {"math": {"nats": 1.0, "tokens": 10}, "code": {"nats": 5.0, "tokens": 30}}
        before, after = counted(40), counted(right)
        kl = {"kl_arm_to_base": moved, "kl_base_to_arm": moved}
        return {"accuracy_before": before, "accuracy_after": after, **kl}

    return {
        "arm": arm, "learning_rate": rate, "run_seed": seed, "validation": part(validation), "test": part(test),
        "parameters_trained": 7, "optimizer_bytes": 56, "seconds_training": 2.0,
    }  # fmt: skip


RECORDS = [
    record("lora", 1e-4, 0, 50, 90),
    record("lora", 1e-4, 1, 60, 90),
    record("lora", 1e-3, 0, 70, 60),
    record("safe", 1e-5, 0, 65, 65),
]


def test_arms_are_ranked_by_validation_and_test_decides_nothing() -> None:
    rows = rank_arms(RECORDS)
    ranked = [("lora", 1e-3, True), ("safe", 1e-5, True), ("lora", 1e-4, False)]
    assert [(row["arm"], row["learning_rate"], row["chosen"]) for row in rows] == ranked
    last = rows[2]
    assert (last["validation"], last["validation_range"], last["seeds"]) == (0.55, [0.5, 0.6], [0, 1])
    assert (last["validation_before"], last["test_before"], last["test"]) == (0.4, 0.4, 0.9)
    assert last["kl_arm_to_base"] == 6 / 40
    assert [row["edge"] for row in rows] == ["largest", "only", "smallest"]


def test_the_table_shows_gain_range_and_cost() -> None:
    page = io.StringIO()
    print_ranking(rank_arms(RECORDS), Console(file=page, width=190))
    for words in (
        "lora *",
        "0.001 ^",
        "safe *",
        "55.0 [50.0, 60.0]",
        "+20.0",
        "0.15",
        "rate on validation",
        "[range over seeds]",
    ):
        assert words in page.getvalue(), page.getvalue()


def test_an_arm_is_held_against_dense_at_its_best_rate_seed_by_seed() -> None:
    dense = [record("dense", 1e-4, seed, 80, right) for seed, right in enumerate((80, 81, 79))]
    worse = [record("low", 1e-4, seed, 70, right) for seed, right in enumerate((70, 71, 69))]
    same = [record("safe", 1e-4, seed, 75, right) for seed, right in enumerate((81, 80, 79))]
    rows = {row["arm"]: row for row in rank_arms([*dense, *worse, *same])}
    assert rows["dense"]["against"] == {}
    assert (rows["low"]["against"]["dense"]["says"], rows["safe"]["against"]["dense"]["says"]) == (
        "worse",
        "no difference",
    )
    assert rows["low"]["against"]["dense"]["mean"] == pytest.approx(-0.1)
    found = against(worse, dense[:2])
    assert (found["says"], found["seeds"]) == ("too few seeds", 2)
    assert against(dense, worse)["says"] == "better"
    assert against(worse, dense)["shown"] == "-10.0 [-10.0, -10.0] worse"
    assert against(worse, [])["shown"].endswith("too few seeds")


@pytest.mark.parametrize(
    ("rewards", "step"),
    [
        ([0.4] * 60, None),
        ([0.4] * 20 + [0.0] * 20, 23),
        ([0.4] * 10 + [0.0] * 9 + [0.4] * 20, None),
        ([0.0] * 8, 1),
        ([], None),
    ],
)
def test_a_collapse_is_the_step_after_which_the_reward_stays_low(rewards: list[float], step: int | None) -> None:
    assert collapse(record("dense", 1e-4, 0, 50, 50) | {"path": {"reward": rewards}}) == step
