"""L7 on planted masks, and its reading of a laboratory."""

import json
import shutil

import pytest
import torch
from tests.tiny import save_checkpoint, tiny_weights

from offprincipal.lab.claims import footprint
from offprincipal.lab.claims.record import NotRun
from offprincipal.lab.claims.samples import Evidence, Seed
from offprincipal.lab.claims.verdict import judge
from offprincipal.lab.overlaps import jaccard


def _found(kept: float, labs: int = 5) -> dict:
    """Masks of density one half that keep this share of a common half's places; the first run and its kind keep .8."""
    found = {}
    for lab in range(labs):
        draw = torch.Generator().manual_seed(lab)
        codes = torch.randint(15_000, 15_050, (600, 400), generator=draw)
        common = torch.rand(600, 400, generator=draw) < 0.5

        def mask(share, draw=draw, common=common):
            return torch.where(torch.rand(common.shape, generator=draw) < share, common, common.roll(1, 0))

        first = mask(0.8)
        shares = {"rlvr": 0.8, "rlvr-2": 0.8, "rlvr-math": kept, "rlvr-code": kept, "rlvr-batch": kept}
        found[f"seed-{lab}"] = {name: {"w": jaccard(codes, first, mask(share))} for name, share in shares.items()}
    return found


@pytest.mark.parametrize(("kept", "verdict"), [(0.8, "supported"), (0.6, "not supported")])
def test_a_planted_difference_is_found_and_no_other(kept, verdict):
    effects = footprint.measured(_found(kept), footprint.BETWEEN)
    assert [judge(each).verdict for each in effects] == [verdict, verdict]
    apart = footprint.measured(_found(kept), footprint.BETWEEN, independent=True)
    assert {judge(each).verdict for each in apart} == {"not supported"}
    assert {judge(each).verdict for each in footprint.measured(_found(kept, labs=2), footprint.BETWEEN)} == {
        "cannot tell"
    }


def test_a_laboratory_is_read_by_its_folders(tmp_path):
    seeds = []
    places = {"rlvr-1": "rlvr-1", "rlvr-2": "rlvr-2"}
    for name in ("rlvr", "rlvr-math", "rlvr-code", "rlvr-batch"):
        places[name] = f"matched/{name}/lr-0.001/step-3"
    for number in range(3):
        lab = tmp_path / f"lab-{number}"
        save_checkpoint(lab / "base", tiny_weights())
        (lab / "lab.json").write_text(json.dumps({"preset": {"rlvr": {"learning_rate": 0.001, "steps": 3}}}))
        for seed, place in enumerate(places.values()):
            save_checkpoint(lab / place, tiny_weights(2e-5, 10 * number + seed))
        seeds.append(Seed(lab.name, (), {}, lab))
    evidence = Evidence(tuple(seeds), asked="lab")
    record = footprint.judge_l7(evidence)
    assert record.verdict in ("supported", "cannot tell")  # equal in truth; matrices of a thousand weights are noisy
    assert (record.seeds, record.negative.passed) == (3, True)
    assert set(record.numbers) == set(places) - {"rlvr-1"}
    same = record.numbers["rlvr"]  # independent steps: what magnitude gives, well above independent masks
    assert same["jaccard"] == pytest.approx(same["jaccard_matched"], abs=0.01)
    assert same["jaccard"] > same["jaccard_bernoulli"] + 0.05
    shutil.rmtree(tmp_path / "lab-0" / "matched" / "rlvr-batch")
    assert footprint.judge_l7(evidence).settings["labs"] == ["lab-1", "lab-2"]


def test_without_the_courses_it_names_the_command():
    with pytest.raises(NotRun) as missing:
        footprint.judge_l7(Evidence((), asked="lab/a lab/b"))
    assert (
        missing.value.command
        == "offprincipal lab matched lab/a lab/b --algorithms rlvr,rlvr-math,rlvr-code,rlvr-batch"
    )
