"""The distance between two arms' ways, on ways made in the test."""

import math

import pytest

from offprincipal.lab.kl_paths import LEAST, apart, between_seeds, to_dense


def way(*nats: float, seed: int = 0, first: int = 5) -> dict:
    looks = [{"step": first * (i + 1), "nats": each, "tokens": 10} for i, each in enumerate(nats)]
    return {"run_seed": seed, "path": {"kl_base_to_arm": looks}}


def test_a_run_lies_at_no_distance_from_itself_and_twice_as_far_at_ln_2() -> None:
    assert apart(way(1, 2, 3), way(1, 2, 3)) == (0, 0)
    assert apart(way(2, 4, 6), way(1, 2, 3)) == pytest.approx((math.log(2), math.log(2)))
    assert apart(way(1, 2, 3), way(2, 4, 6)) == pytest.approx((math.log(2), -math.log(2)))


def test_where_nothing_moved_yet_there_is_still_a_logarithm() -> None:
    found = apart(way(0.0, 1.0), way(10 * LEAST, 1.0))
    assert found == (0, 0)


def test_only_steps_at_which_both_were_looked_at_count() -> None:
    assert apart(way(1, 1), way(9, 1, first=10)) == pytest.approx((math.log(9), -math.log(9)))
    assert apart(way(1), way(1, first=7)) is None
    assert apart(way(1), {"run_seed": 0}) is None


def test_an_arm_is_held_against_dense_of_its_own_seed_and_dense_against_itself() -> None:
    dense = [way(1, seed=0), way(2, seed=1), way(4, seed=2)]
    arm = [way(math.e, seed=0), way(2 * math.e, seed=1), way(4 * math.e, seed=2), way(1, seed=9)]
    found = to_dense(arm, dense)
    assert found is not None
    assert (found["seeds"], found["mean"], found["ahead"]) == (3, pytest.approx(1), pytest.approx(1))
    assert (found["low"], found["high"]) == pytest.approx((1, 1))
    assert to_dense(arm[:1], dense)["low"] is None  # type: ignore[index]
    assert to_dense(arm[3:], dense) is None
    null = between_seeds(dense)
    assert null is not None
    assert null["pairs"] == 3
    assert null["mean"] == pytest.approx(4 * math.log(2) / 3)
    assert (null["least"], null["largest"]) == pytest.approx((math.log(2), math.log(4)))
    assert between_seeds(dense[:1]) is None
