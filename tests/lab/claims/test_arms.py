"""Claims about arms, interventions and what lies beside a laboratory, on records and checkpoints made in the test."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.lab.claims.test_claims import make_lab
from tests.tiny import save_checkpoint, tiny_weights

from offprincipal.fanout import here
from offprincipal.lab.claims import beside, interventions, training
from offprincipal.lab.claims.evidence import arm_records
from offprincipal.lab.claims.record import NotRun
from offprincipal.lab.claims.samples import Evidence, Seed
from offprincipal.lab.claims.verdict import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED
from offprincipal.rewrite import map_back, permute, rotate

RIGHT = {
    "dense": 80,
    "safe": 80,
    "nonprincipal": 75,
    "low": 80,
    "random": 70,
    "principal": 60,
    "lora": 79,
    "pissa": 40,
}
JUDGES = dict(training.claims(here))


def arm(name: str, unit: int, rate: float = 1e-4, right: int | None = None, rank: int | None = None) -> dict:
    found = RIGHT[name] if right is None else right
    part = {
        "accuracy_after": {f: {"samples": 100, "right": found + unit % 2} for f in ("math", "code")},
        "kl_arm_to_base": {f: {"nats": 1.0, "tokens": 100} for f in ("math", "code")},
    }
    return {"lab": "seed-0", "arm": name, "learning_rate": rate, "run_seed": unit, "rank": rank,
            "validation": part, "test": part}  # fmt: skip


@pytest.fixture
def arms() -> Evidence:
    return Evidence((Seed("seed-0"),), tuple(arm(name, unit) for name in RIGHT for unit in range(4)))


def test_the_claims_about_arms_on_known_accuracies(arms):
    verdicts = {id_: JUDGES[id_](arms).verdict for id_ in ("F1", "F2", "F3", "F4", "F5", "F6")}
    assert verdicts == dict.fromkeys(verdicts, SUPPORTED)
    worse = Evidence(arms.seeds, tuple(arm(name, unit, right=50) for name in RIGHT for unit in range(4)))
    assert JUDGES["F3"](worse).verdict == JUDGES["F4"](worse).verdict == NOT_SUPPORTED
    few = Evidence(arms.seeds, tuple(record for record in arms.arms if record["run_seed"] < 2))
    assert JUDGES["F4"](few).verdict == CANNOT_TELL
    assert JUDGES["F4"](few).leans == SUPPORTED


def test_the_rate_is_chosen_on_validation(arms):
    better = [arm("safe", unit, rate=3e-4, right=95) for unit in range(4)]
    evidence = Evidence(arms.seeds, (*arms.arms, *better))
    assert {record["learning_rate"] for record in training.chosen(evidence, "safe").values()} == {3e-4}
    assert training.table(evidence)["safe at 0.0003"]["accuracy"] == pytest.approx(0.955)


def test_missing_arms_are_named_with_their_command(arms):
    with pytest.raises(NotRun) as missing:
        JUDGES["F4"](Evidence(arms.seeds, (arm("safe", 0),)))
    assert missing.value.missing == "the arms random"
    assert missing.value.command.startswith("offprincipal lab arms --arms safe,random --seeds 0,1,2 -o ")
    with pytest.raises(NotRun, match="the arms lora-1"):
        JUDGES["F8"](arms)
    rank_one = tuple(arm(name, unit, right=79) for name in ("dense", "lora-1") for unit in range(4))
    assert JUDGES["F8"](Evidence(arms.seeds, rank_one)).verdict == SUPPORTED


@pytest.mark.slow
def test_energy_of_merged_adapters(tmp_path):
    lab = make_lab(tmp_path / "lab", runs={})
    for unit in range(3):
        for name, toward in (("lora", -1.0), ("pissa", 1.0)):
            folder = lab / "arms" / name / "lr-0.0001" / f"seed-{unit}"
            save_checkpoint(folder / "master", _leaning(toward, unit))
            (folder / "run.json").write_text(json.dumps(arm(name, unit)))
    records = tuple(arm_records([lab], {lab: "seed-0"}))
    assert len(records) == 6
    evidence = Evidence((Seed("seed-0", folder=lab),), records, out=tmp_path / "out")
    found = JUDGES["F7"](evidence)
    assert found.verdict == SUPPORTED, found.why
    assert all(each.estimate.seeds == 3 for each in found.judged)


def _leaning(toward: float, seed: int) -> dict[str, torch.Tensor]:
    """A tune whose update has nothing (-1) or much (1) in the principal subspaces of q and o."""
    weights, tuned = tiny_weights(), tiny_weights(delta=1e-4, seed=seed + 1, dtype=torch.float32)
    kept = {}
    for name, weight in tuned.items():
        if any(word in name for word in ("embed", "norm", "lm_head", "layers.0.self_attn.q", "layers.0.self_attn.o")):
            kept[name] = weight
            if "proj" in name:
                base = weights[name].double()
                left, _, right = torch.linalg.svd(base)
                inside = left[:, :16] @ left[:, :16].T @ (weight.double() - base) @ right[:16].T @ right[:16]
                kept[name] = (weight.double() + toward * 0.9 * inside).float()
    return kept


def test_interventions_are_read_and_judged(tmp_path):
    lab = make_lab(tmp_path / "lab", words=("",))
    moved = lab / "interventions"
    permute(lab / "base", moved / "permuted" / "base", layers=[0])
    rotate(lab / "base", moved / "rotated" / "base", layers=[0])
    for name in ("permuted", "rotated"):
        _tune(moved / name / "base", moved / name / "rlvr-1")
    map_back(moved / "permuted" / "base", moved / "permuted" / "rlvr-1", moved / "permuted" / "mapped" / "rlvr-1")
    read = list(interventions.read(lab, "seed-0"))
    assert [each["name"] for each in read] == ["permuted", "rotated"]
    rows = {
        (each["name"], row["tensor"].split(".")[-2]): row
        for each in read
        for row in each["matrices"]
        if ".layers.0." in row["tensor"]
    }
    assert rows["rotated", "q_proj"]["touched"] is False
    assert rows["rotated", "o_proj"]["touched"] is rows["permuted", "q_proj"]["touched"] is True
    assert rows["permuted", "q_proj"]["nss"] < 1e-12 < rows["rotated", "o_proj"]["nss"] < 2**-9
    evidence = Evidence((Seed("seed-0", folder=lab),), interventions=tuple(read))
    judges = dict(interventions.CLAIMS)
    assert judges["I4"](evidence).verdict == SUPPORTED
    assert judges["I2"](evidence).verdict == judges["I3"](evidence).verdict == CANNOT_TELL
    assert {"index", "back", "independent"} <= rows["permuted", "q_proj"].keys()
    with pytest.raises(NotRun, match="logits of seed-0/permuted"):
        judges["I1"](evidence)


def _tune(base: Path, out: Path) -> None:
    from safetensors.torch import load_file

    weights = {name: w for file in sorted(base.glob("*.safetensors")) for name, w in load_file(file).items()}
    drawn = torch.Generator().manual_seed(5)
    steps = {name: w.float() + torch.randn(w.shape, generator=drawn) * 6e-5 for name, w in weights.items()}
    save_checkpoint(out, steps, json.loads((base / "config.json").read_text()))


def test_logits_of_verified_transforms():
    verify = {
        key: {"max_relative": value} for key, value in (("float64", 1e-13), ("float32", 1e-6), ("bfloat16", 0.01))
    }
    each = {"lab": "seed-0", "name": "rotated", "record": {"verify": verify}, "matrices": []}
    judge = dict(interventions.CLAIMS)["I1"]
    assert judge(Evidence((), interventions=(each,))).verdict == SUPPORTED
    broken = each | {"record": {"verify": verify | {"float64": {"max_relative": 0.1}}}}
    assert judge(Evidence((), interventions=(each, broken))).verdict == NOT_SUPPORTED


@pytest.mark.parametrize(("ratio", "verdict"), [(3.0, SUPPORTED), (1.0, NOT_SUPPORTED)])
def test_curvature_probes_beside_three_laboratories(tmp_path, ratio, verdict):
    seeds = []
    for number in range(3):
        lab = tmp_path / f"seed-{number}"
        (lab / "probes").mkdir(parents=True)
        rows = [{"contrasts": {"fisher random on": {"ratio": ratio * (1 + 0.01 * i)}}} for i in range(4)]
        asked = {"batches": 4, "draws": 5, "rank": 64}
        probe = {"runs": [{"matrices": rows}], "settings": asked, "tokens": 600 + number}
        (lab / "probes" / "probe-curvature.json").write_text(json.dumps(probe))
        seeds.append(Seed(lab.name, folder=lab))
    found = dict(beside.CLAIMS)["D7"](Evidence(tuple(seeds)))
    assert found.verdict == verdict
    assert found.settings == {"batches": [4], "draws": [5], "rank": [64], "tokens": [600, 601, 602]}
    assert found.judged[0].estimate.mean == pytest.approx(math.log(ratio), abs=0.05)


def test_a_trajectory_beside_a_laboratory(tmp_path):
    seeds = []
    for number in range(3):
        folder = tmp_path / f"seed-{number}" / "steps"
        folder.mkdir(parents=True)
        rows = [
            {"linear": True, "kind": kind, "row_pearson": own, "col_pearson": other,
             "row_pearson_matched_mean": 0.3, "col_pearson_matched_mean": 0.3}
            for kind, own, other in (("q", 0.95, 0.2), ("o", 0.2, 0.95))
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), folder / "consensus.parquet")
        pq.write_table(pa.Table.from_pylist(rows), folder / "steps.parquet")
        seeds.append(Seed(f"seed-{number}", folder=folder.parent))
    found = dict(beside.CLAIMS)["L4"](Evidence(tuple(seeds)))
    assert found.verdict == SUPPORTED
    assert np.isclose(found.judged[0].estimate.mean, 0.95)


def test_public_pairs_are_in_the_registry():
    import tomllib
    from importlib import resources

    text = resources.files("offprincipal").joinpath("registry.toml").read_text()
    names = {entry["name"] for entry in tomllib.loads(text)["entry"]}
    for _, entry in beside.LACKING.values():
        assert entry == "--list" or entry.split(" ")[0] in names, entry
