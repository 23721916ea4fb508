"""The KL of a shrinking step against its quadratic form: PNT F.5 (claim G1) and Proposition 3.2 (claim G3)."""

import itertools

import pyarrow.parquet as pq
import pytest

from offprincipal.errors import InputError, UsageError
from offprincipal.probes.fisher import Settings, measure_fisher, slope
from offprincipal.probes.kl import measure_kl


@pytest.fixture(scope="module")
def measured(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("fisher")
    (out / "p.txt").write_text("a b c d e\nf g h\ni j k l m n o p\nq r\n")
    found = measure_fisher(folders["base"], {"rl": folders["rl"]}, out, prompts=out / "p.txt", halvings=9, batch=2)
    return found, out


def test_the_ratio_tends_to_one_and_the_residual_is_cubic(measured):
    run = measured[0]["runs"][0]
    ratios = [abs(step["ratio"] - 1) for step in run["steps"]]
    assert ratios[-1] < 5e-3
    assert all(later < earlier for earlier, later in itertools.pairwise(ratios[2:]))
    assert run["slope"] == pytest.approx(3, abs=0.05)
    assert run["slope_even"] == pytest.approx(4, abs=0.1)
    assert run["steps"][-1]["leash"] == pytest.approx(1, abs=5e-3)
    assert all(step["ratio_low"] <= step["ratio"] <= step["ratio_high"] for step in run["steps"])


def test_at_t_one_it_is_the_kl_of_the_two_checkpoints(measured, folders):
    found, out = measured
    kl = measure_kl(folders["base"], {"rl": folders["rl"]}, out, prompts=out / "p.txt")["runs"][0]
    assert found["runs"][0]["kl"] == pytest.approx(kl["kl_tuned_base"], rel=1e-4)


def test_the_table_holds_the_sums(measured):
    found, out = measured
    rows = pq.read_table(out / "probe-fisher.parquet").to_pylist()
    run = found["runs"][0]
    assert len(rows) == 4 * (1 + 2 * 10)
    assert sum(row["form"] for row in rows if row["t"] == 0) / found["tokens"] == pytest.approx(run["form"])
    assert sum(row["empirical"] for row in rows if row["t"] == 0) / found["tokens"] == pytest.approx(run["empirical"])


def test_a_slope_needs_three_residuals_above_rounding():
    assert slope([(1.0, 1e-13), (0.5, 1e-14), (0.25, 0.0)]) is None
    assert slope([(t, 2 * t**4) for t in (1.0, 0.5, 0.25)]) == pytest.approx(4)


def test_nothing_changed_another_model_or_a_senseless_size(folders, model, prompts, tmp_path):
    with pytest.raises(InputError, match="no parameter differs from the base's: D = 0"):
        measure_fisher(folders["base"], [folders["base"]], tmp_path, prompts=prompts)
    with pytest.raises(InputError, match=r"parameters differ in name or shape, model\.layers\.1"):
        measure_fisher(folders["base"], {"x": model("small", num_hidden_layers=1)}, tmp_path, prompts=prompts)
    with pytest.raises(UsageError, match="a size is below 1"):
        Settings(prompts="p.txt", halvings=0)
