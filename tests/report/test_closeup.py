import numpy as np
import pytest

from offprincipal.report import closeup
from offprincipal.report.reading import Curve, Rows


@pytest.fixture(scope="module")
def found(comparison):
    return closeup.closeups(comparison)


def test_every_linear_matrix_has_its_curves(found):
    assert len(found.tensors) == 21
    assert found.left_out == 0
    assert all(set(t["runs"]) == {"0", "1", "2"} for t in found.tensors)
    names = {
        "spectrum_base",
        "spectrum_tuned",
        "spectrum_shift",
        "angles_left",
        "angles_right",
        "row_changed",
        "col_changed",
    }
    assert set(found.tensors[0]["runs"]["0"]) == names
    assert found.tensors[found.default]["kind"] == "o"


def test_the_change_is_taken_before_rounding(found, comparison):
    name = found.tensors[0]["name"]
    curves = {
        c.name: c for c in comparison.curves(["spectrum_base", "spectrum_tuned"], [name]) if c.run == "grpo-math"
    }
    exact = curves["spectrum_tuned"].y / curves["spectrum_base"].y - 1
    axis, shown = found.tensors[0]["runs"]["0"]["spectrum_shift"]
    at = closeup.picked(len(exact))
    np.testing.assert_allclose(shown, exact[at], rtol=1e-3, atol=1e-12)
    assert found.axes[axis] == curves["spectrum_base"].x[at].tolist()


def test_profiles_keep_their_sum():
    """Neighbouring bins are summed and divided by what they hold, whatever the sizes of the bins."""
    rng = np.random.default_rng(0)
    edges = np.arange(512) * 1000 // 512
    counts = rng.integers(0, 60, 512).astype(float)
    x, density = closeup._thinned(Curve("r", "t", "row_changed", edges.astype(float), counts), [1000, 30])
    sizes = np.diff(x, append=1000) * 30
    assert len(density) == closeup.BINS
    assert (density * sizes).sum() == pytest.approx(counts.sum())


def test_more_matrices_than_fit_are_spread_over_the_layers(comparison, monkeypatch):
    monkeypatch.setattr(closeup, "BUDGET", 7 * 3 * (4 * closeup.POINTS + 2 * closeup.BINS))
    found = closeup.closeups(comparison)
    assert len(found.tensors) == 7
    assert found.left_out == 14
    assert {t["layer"] for t in found.tensors} == {0, 1, 2}


def test_without_curves_there_is_nothing_to_draw(comparison):
    empty = closeup.Closeups()
    assert closeup.charts(empty, comparison.labels) == {}
    assert closeup._order(Rows({}, 0)) == []


def test_stripes_of_runs_with_the_same_seed_agree(found, comparison):
    lines = closeup.stripes(comparison.labels, found)
    assert len(lines) == 3 * 7
    by_kind = {(runs, kind): (rows, columns) for runs, kind, rows, columns in lines}
    rows, columns = by_kind["grpo-math · dapo-code", "q"]
    assert rows > 0.9
    assert -1 <= columns <= 1


def test_a_real_consensus_brings_its_null(tmp_path):
    """Curves of all runs together carry no run; they become the strip below the consensus."""
    from offprincipal.report.reading import read
    from offprincipal.survey import compare
    from tests.tiny import save_checkpoint, tiny_weights

    base = save_checkpoint(tmp_path / "base", tiny_weights())
    runs = {name: save_checkpoint(tmp_path / name, tiny_weights(delta=d)) for name, d in (("a", 2e-4), ("b", 1e-3))}
    compare(base, runs, tmp_path / "out", cache=False)
    real = read(tmp_path / "out")
    found = closeup.closeups(real)
    assert set(found.tensors[0]["runs"]) == {"0", "1", "null"}
    rows = closeup.charts(found, real.labels)["rows"]["datasets"]["rows"]
    assert {row["run"] for row in rows} == {"a", "b", "magnitude null"}
    assert len(closeup.stripes(real.labels, found)) > 0
