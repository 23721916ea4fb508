"""How much a draw decides, on accuracies made in the test."""

import pytest
from tests.lab.test_ranking import record

from offprincipal.lab.draws import spread


def test_spreads_over_draws_and_over_seeds_lie_beside_each_other() -> None:
    rights = {"random": (80, 82), "random-2": (84, 86), "random-3": (82,), "safe": (10, 10)}
    found = spread(
        record(arm, 1e-4, seed, 50, right) for arm, all_ in rights.items() for seed, right in enumerate(all_)
    )
    assert len(found) == 1
    row = found[0]
    assert (row["learning_rate"], row["draws"], row["seeds"]) == (1e-4, ["random", "random-2", "random-3"], [0, 1])
    assert row["over_draws"] == {"range": pytest.approx(0.04), "sd": pytest.approx((0.0016 / 3) ** 0.5)}
    assert row["over_seeds"] == {"range": pytest.approx(0.02), "sd": pytest.approx(0.02 / 2**0.5)}
    mean = (0.80 + 0.82 + 0.84 + 0.86 + 0.82) / 5
    assert row["sampling"] == pytest.approx((mean * (1 - mean) / 200) ** 0.5)


def test_one_draw_or_one_seed_says_nothing() -> None:
    assert spread([record("random", 1e-4, seed, 50, 80) for seed in (0, 1)]) == []
    rows = spread([record("random-3", 1e-3, 0, 50, 80), record("random", 1e-3, 0, 50, 81)])
    assert rows[0]["over_seeds"] is None
    assert rows[0]["over_draws"]["range"] == pytest.approx(0.01)
    apart = spread([record("random-3", 1e-3, 0, 50, 80), record("random", 1e-3, 1, 50, 81)])
    assert (apart[0]["over_draws"], apart[0]["over_seeds"]) == (None, None)
