"""Several runs: the rows of all tensors reduced by hand."""

import pytest
import torch

from offprincipal import UsageError, compare
from offprincipal.across import steps_of, table
from offprincipal.measures import bits
from tests.tiny import save_checkpoint, tiny_weights


def test_consensus_of_two_runs_equals_literal_jaccard(checkpoint):
    weights = {seed: tiny_weights(delta=3e-5, seed=seed) for seed in (1, 2)}
    runs = {"a": checkpoint("a", delta=3e-5, seed=1), "b": checkpoint("b", delta=3e-5, seed=2)}
    found = compare(checkpoint("base"), runs, geometry=False).summary["consensus"]
    base, jaccards, both = tiny_weights(), [], 0
    for name in base:
        if "layers" in name and base[name].ndim == 2:
            a, b = (bits.changed(base[name], weights[seed][name]) for seed in (1, 2))
            jaccards.append(float((a & b).sum() / (a | b).sum()))
            both += int((a & b).sum())
    assert found["jaccard"] == pytest.approx(sum(jaccards) / len(jaccards))
    assert found["histogram"][2] == both
    assert found["pairs"][0]["a"] == "a"
    # independent Gaussian steps agree more than independent masks: small weights show first, which magnitude explains
    assert found["jaccard"] > 1.2 * found["jaccard_bernoulli"]
    assert abs(found["pairs"][0]["excess_z"]) < 5


def test_trajectory_of_a_straight_run(tmp_path):
    base, end = tiny_weights(dtype=torch.float32), tiny_weights(delta=1e-3, dtype=torch.float32)
    folders = [save_checkpoint(tmp_path / "base", base)]
    for i in (1, 2, 3):
        step = {name: base[name] + (end[name] - base[name]) * i / 3 for name in base}
        folders.append(save_checkpoint(tmp_path / f"step_{i}00", step))
    result = compare(folders[0], folders[1:], trajectory=True)
    steps, path = result.summary["trajectory"], result.summary["path"]
    assert [step["step"] for step in steps] == [100, 200, 300]
    assert path["linearity_r2"] == pytest.approx(1.0, abs=1e-6)
    assert path["linearity_r2_random_walk"] < 0.95
    assert path["never"] + path["cancelled"] + path["effective"] == pytest.approx(1.0)
    assert steps[0]["density"] < steps[2]["density"]
    assert steps[0]["subspace_end"] == pytest.approx(1.0, abs=1e-3)
    assert steps[0]["nss_mean"] < steps[2]["nss_mean"]


def test_a_trajectory_is_the_same_in_parallel(checkpoint, tmp_path):
    from offprincipal.fanout import engine

    base, runs = checkpoint("base"), [checkpoint("s1", delta=1e-5), checkpoint("s2", delta=1e-3)]
    for name, jobs in (("one", 1), ("two", 2)):
        compare(base, runs, tmp_path / name, trajectory=True, engine=engine("processes", jobs))
    for file in ("consensus", "pairs", "tensors", "steps", "paths"):
        one, two = ((tmp_path / name / f"{file}.parquet").read_bytes() for name in ("one", "two"))
        assert one == two


def test_step_numbers():
    assert steps_of(["a/10", "b/20.5"]) == (10.0, 20.5)
    with pytest.raises(UsageError, match="only one checkpoint was given"):
        steps_of(["step_1"])
    with pytest.raises(UsageError, match=r"the step numbers are \[2.0, 1.0\]"):
        steps_of(["step_2", "step_1"])


def test_columns_without_a_value_are_floats():
    found = table([{"a": 1, "b": None}, {"a": 2, "b": None}])
    assert str(found.schema.field("b").type) == "double"
