"""What two runs share: on planted runs from a rotated and a permuted base, whose answer is known."""

import io
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.tiny import save_checkpoint, tiny_weights

from offprincipal import rewrite
from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError
from offprincipal.lab.claims import interventions
from offprincipal.lab.overlaps import COMPARED, agreements, jaccard, print_interventions, summarise
from offprincipal.measures.consensus import Consensus

STEP = 3e-5


def plant(lab: Path, name: str) -> Path:
    """An intervention whose run took the same step as ``rlvr-1``, in the coordinates of the changed base."""
    folder = lab / "interventions" / name
    write = {"rotate": rewrite.rotate, "permute": rewrite.permute}[name]
    write(lab / "base", folder / "base", layers=[1])
    transform = rewrite.Transform.load(folder / "base")
    before, after = tiny_weights(), tiny_weights(STEP, 1, torch.float32)
    changed = open_checkpoint(folder / "base")
    start = {key: changed.read(key) for key in before}
    steps = {key: transform.apply(key, after[key].double() - before[key].double(), torch.float64) for key in before}
    save_checkpoint(folder / "rlvr-1", {key: (start[key].double() + steps[key]).float() for key in before})
    rewrite.map_back(folder / "base", folder / "rlvr-1", folder / "mapped" / "rlvr-1", base=lab / "base")
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lab = tmp_path_factory.mktemp("overlaps")
    save_checkpoint(lab / "base", tiny_weights())
    for seed, run in enumerate(("rlvr-1", "rlvr-2"), start=1):
        weights = tiny_weights(STEP, seed, torch.float32)
        save_checkpoint(lab / run, {name: weight.bfloat16() for name, weight in weights.items()})
        save_checkpoint(lab / run / "master", weights)
    for name in ("rotate", "permute"):
        plant(lab, name)
    return lab


@pytest.fixture(scope="module")
def rows(lab: Path) -> dict[str, list[dict]]:
    return {name: list(agreements(lab, lab / "interventions" / name)) for name in ("rotate", "permute")}


def test_a_step_in_other_coordinates_is_the_same_step_once_it_is_mapped_back(rows: dict[str, list[dict]]) -> None:
    touched = {name: [row for row in found if row["touched"]] for name, found in rows.items()}
    assert sorted(row["kind"] for row in touched["rotate"]) == ["o", "v"]
    assert sorted(row["kind"] for row in touched["permute"]) == ["down", "gate", "k", "o", "q", "up", "v"]
    for name, found in touched.items():
        for row in found:
            as_is, back = row["compared"]["as_is"], row["compared"]["mapped_back"]
            assert row["layer"] == 1
            assert as_is["jaccard"] == pytest.approx(as_is["jaccard_bernoulli"], abs=0.08)
            assert abs(as_is["cosine"]) < 0.2
            assert back["jaccard"] > 0.99
            assert back["cosine"] > 0.9999
            assert row["nss_exact"] < 1e-14
            assert 1e-6 < row["nss_stored"] < 2**-9 if name == "rotate" else row["nss_stored"] < 1e-14
    assert all(row["compared"]["mapped_back"]["jaccard"] == 1 for row in touched["permute"])


def test_elsewhere_nothing_is_lost_and_independent_runs_share_what_magnitude_gives(
    rows: dict[str, list[dict]],
) -> None:
    for row in (row for found in rows.values() for row in found if not row["touched"]):
        assert row["compared"]["as_is"] == row["compared"]["mapped_back"]
        assert row["compared"]["as_is"]["jaccard"] == 1
        assert (row["nss_exact"], row["nss_stored"]) == (0, 0)
        other = row["compared"]["other_problems"]
        assert other["jaccard"] == pytest.approx(other["jaccard_matched"], abs=0.1)
        assert "other_seed" not in row["compared"]  # there is no such run


def test_the_claims_read_the_same_numbers(lab: Path, rows: dict[str, list[dict]]) -> None:
    read = {found["name"]: found for found in interventions.read(lab, "seed-0")}
    assert sorted(read) == ["permute", "rotate"]
    for name, found in read.items():
        for row, claimed in zip(rows[name], found["matrices"], strict=True):
            back = row["compared"]["mapped_back"]
            assert claimed["back"] == back["jaccard"] - back["jaccard_bernoulli"]
            assert (claimed["nss"], claimed["touched"]) == (row["nss_stored"], row["touched"])
            assert {"index", "independent"} <= set(claimed)


def test_the_table_has_each_touched_kind_and_the_rest(rows: dict[str, list[dict]]) -> None:
    known = [{"intervention": name, "block": 1, **row} for name, found in rows.items() for row in found]
    summary = summarise(known)
    assert [(row["intervention"], row["where"], row["matrices"]) for row in summary] == [
        ("rotate", "block 1, o", 1), ("rotate", "block 1, v", 1), ("rotate", "block 1, rest", 5),
        ("rotate", "other blocks", 7),
        *(("permute", f"block 1, {kind}", 1) for kind in ("down", "gate", "up", "k", "o", "q", "v")),
        ("permute", "other blocks", 7),
    ]  # fmt: skip
    rest = [row["compared"]["as_is"]["jaccard_matched"] for row in known[:14] if row["layer"] == 0]
    assert summary[3]["compared"]["as_is"]["jaccard_matched"] == pytest.approx(sum(rest) / len(rest))
    assert summary[0]["compared"]["other_seed"] == dict.fromkeys(summary[0]["compared"]["as_is"])
    printed = io.StringIO()
    console = Console(width=160, file=printed)
    logits = {word: {"max_relative": 0.25} for word in ("float64", "float32", "rounding", "bfloat16")}
    kept = {"nss_exact": 1e-16, "nss_stored": 1e-3, "verify": logits | {"bfloat16_arithmetic": {"max_relative": 0.5}}}
    print_interventions({"summary": summary, "preserved": {"rotate": kept}}, console)
    text = printed.getvalue()
    for words in (*COMPARED.values(), "block 1, rest", "1.000 (", "cos 1.000", "- (-, -)", "rotate: logits differ by"):
        assert words in text, words
    assert "singular values of the touched matrices by 1.0e-16 before rounding and 1.0e-03 as stored" in text


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_two_masks_alone_are_what_the_consensus_of_two_says(entries: list[tuple[int, bool, bool]]) -> None:
    codes, first, second = (torch.tensor([list(column)]) for column in zip(*entries, strict=True))
    whole = Consensus(codes.to(torch.int32)).update(first).update(second).result()
    assert jaccard(codes, first, second) == whole.pairs[0]


def test_what_is_no_intervention_is_refused(lab: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "plain" / "base", tiny_weights())
    with pytest.raises(InputError, match="give a folder that offprincipal transform wrote"):
        list(agreements(lab, tmp_path / "plain"))
