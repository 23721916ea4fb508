"""What stands in the folder: content hashes, parts that are missing, shards that are gathered."""

import json

import pytest

from offprincipal import InputError, UsageError, compare
from offprincipal.results import FILES
from offprincipal.survey import measure_shard, plan
from offprincipal.task import Settings


def test_content_hashes_see_the_weights_and_not_the_sharding(checkpoint, tmp_path):
    from tests.tiny import save_checkpoint, tiny_weights

    whole = save_checkpoint(tmp_path / "whole", tiny_weights(delta=1e-5), shards=1)
    base = checkpoint("base")
    one = compare(base, {"r": checkpoint("split", delta=1e-5)}, geometry=False).summary
    two = compare(base, {"r": whole}, geometry=False).summary
    assert one["runs"][0]["content_xxh3"] == two["runs"][0]["content_xxh3"]
    assert one["base"]["content_xxh3"] != one["runs"][0]["content_xxh3"]


def test_summary_is_strict_json_with_the_promised_keys(checkpoint, tmp_path):
    runs = {"a": checkpoint("a", delta=1e-5), "b": checkpoint("b", delta=1e-3)}
    compare(checkpoint("base"), runs, tmp_path / "out")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    summary = json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=refuse)
    sparsities = ["sparsity_bf16", "sparsity_bf16_linear", "sparsity_native", "sparsity_atol_1e-5"]
    norms = ["label", "ref", "changed", "counted", "delta_norm", "relative_delta_norm"]
    spectra = ["nss_mean", "nss_max", "angle_max_deg", "spectral_residual_mean", "kappa_spec_mean"]
    overlaps = ["overlap_principal", "overlap_low", "overlap_principal_matched", "overlap_principal_excess_z"]
    promised = [*sparsities, *norms, *spectra, *overlaps, "energy_principal_lift"]
    assert [key for run in summary["runs"] for key in promised if key not in run] == []
    assert {"jaccard", "jaccard_bernoulli", "jaccard_matched"} <= summary["consensus"].keys()
    assert {"schema_version", "base", "runs", "unpaired_count", "definitions", "versions", "seed"} <= summary.keys()


def test_shards_are_gathered_by_the_same_command(checkpoint, tmp_path):
    base, run = checkpoint("base"), checkpoint("a", delta=1e-5)
    compare(base, [run], tmp_path / "whole")
    survey = plan(base, [run], Settings())
    left = [measure_shard(survey, tmp_path / "shards", 3, index) for index in (2, 0, 1)]
    assert left[0] > left[1] > left[2] == 0
    assert not (tmp_path / "shards" / "summary.json").exists()
    measured: list[int] = []
    compare(base, [run], tmp_path / "shards", progress=lambda done, total, name: measured.append(done))
    assert len(measured) == 1
    for name in FILES:
        assert (tmp_path / "shards" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(UsageError, match="shard 3 of 3 was asked for"):
        measure_shard(survey, tmp_path / "shards", 3, 3)


def test_a_part_that_vanishes_is_named(checkpoint, tmp_path, monkeypatch):
    from offprincipal.store import Store

    monkeypatch.setattr(Store, "get", lambda self, name: None)
    with pytest.raises(InputError, match=r"the part of lm_head.weight is missing; run the same comparison again"):
        compare(checkpoint("base"), [checkpoint("a", delta=1e-5)], tmp_path / "out", geometry=False)
