import numpy as np
import pytest

from offprincipal.report import cells


def test_a_cell_holds_the_numbers_of_its_matrix(comparison):
    found = {(c["run"], c["layer"], c["kind"]): c for c in cells.cells(comparison)}
    assert len(found) == 3 * 3 * 7
    rows = comparison.rows_of("grpo-math")
    at = int(np.flatnonzero(rows.text("tensor") == "model.layers.2.mlp.up_proj.weight")[0])
    cell = found["grpo-math", 2, "up"]
    assert cell["sparsity"] == pytest.approx(1 - rows.number("changed")[at] / rows.number("counted")[at])
    z = (rows.number("principal_changed")[at] - rows.number("principal_matched")[at]) / np.sqrt(
        rows.number("principal_matched_var")[at]
    )
    assert cell["z"] == pytest.approx(z)


def test_overlaps_over_alpha_end_at_the_default_mask(comparison):
    points = cells.over_alpha(comparison)
    end = next(p for p in points if (p["run"], p["mask"], p["alpha"], p["series"]) ==
               ("grpo-math", "principal", 0.5, "observed"))  # fmt: skip
    assert end["share"] == pytest.approx(comparison.runs[0]["overlap_principal"], rel=1e-3)
    assert end["bias"] == pytest.approx(100 * (end["share"] - 0.5))
    assert not any(p["mask"] == "low" and p["series"] == "magnitude null" for p in points)
    assert all(p["bias"] == 0 for p in points if p["series"] == "chance")


def test_shares_of_steps_add_up(comparison):
    found = cells.ulp_shares(comparison)
    for label in comparison.labels:
        assert sum(row["share"] for row in found if row["run"] == label) == pytest.approx(1)
    assert found[-1]["step"] == "≥ 64"


def test_kinds_follow_the_block():
    assert cells.kind_order({"down", "v", "q", "strange"}) == ["q", "v", "down", "strange"]
