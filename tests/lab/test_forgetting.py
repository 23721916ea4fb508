"""What was forgotten: losses against an oracle, planted forgetting, and the same bytes however it was run."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tests.lab.test_ranking import record

from offprincipal.errors import InputError, UsageError
from offprincipal.fanout import engine
from offprincipal.lab import forgetting
from offprincipal.lab.forgetting import KINDS, losses, over_seeds, read, rise, texts
from offprincipal.lab.settings import PRESETS
from offprincipal.lab.tasks import make_items, split_of
from offprincipal.lab.travel import study
from offprincipal.lab.world import END, load_arm, make_decoder, make_tokenizer, save_arm

MARK = {"seed": 3, "preset": {"name": "micro", "corruption": 0.4}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an arm that is the base again, and one whose answers were spoiled."""
    lab, tokenizer = tmp_path_factory.mktemp("forgetting"), make_tokenizer()
    for name, scale in (("base", 0.0), ("same", 0.0), ("moved", 0.5)):
        model = make_decoder(PRESETS["micro"].decoder, tokenizer, seed=1)
        with torch.no_grad():
            for weight in model.parameters():
                weight += scale * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        save_arm(model, tokenizer, lab / name)
    (lab / "lab.json").write_text(json.dumps(MARK))
    return lab


def test_the_texts_are_held_out_and_chose_nothing() -> None:
    found = texts(0.4, 3)
    assert [item.family for item in found] == ["math"] * forgetting.TEXTS + ["code"] * forgetting.TEXTS
    assert {split_of(item.prompt) for item in found} == {"heldout"}
    read_ = {item.prompt for item in make_items(2000, seed=3, split="pretrain", corruption=0.4)}
    assert not read_ & {item.prompt for item in found}
    assert texts(0.4, 4) != found


def test_losses_are_those_of_transformers_text_by_text(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "TEXTS", 3)
    monkeypatch.setattr(forgetting, "AT_ONCE", 4)  # a batch with texts of both families, of other lengths
    texts.cache_clear()
    found, items = losses(lab / "moved", corruption=0.4, data_seed=3), texts(0.4, 3)
    texts.cache_clear()
    model, tokenizer = load_arm(lab / "moved")
    for family, kinds in found.items():
        own = [f"{item.prompt} {item.completion} {END}" for item in items if item.family == family]
        whole = 0.0
        for text in own:
            ids = torch.tensor([tokenizer(text).input_ids])
            whole += float(model(input_ids=ids, labels=ids).loss.detach()) * (ids.shape[1] - 1)
        assert sum(part["nats"] for part in kinds.values()) == pytest.approx(whole, rel=1e-5)
        assert sum(part["tokens"] for part in kinds.values()) == sum(len(text.split()) - 1 for text in own)
        asked = sum(len(item.prompt.split()) - 1 for item in items if item.family == family)
        assert kinds["problems"]["tokens"] == asked


def test_a_copy_forgot_exactly_nothing_and_spoiled_weights_forgot(lab: Path, tmp_path: Path) -> None:
    base, same, moved = read(lab, [lab / "same", lab / "moved"], tmp_path, MARK)
    assert rise(same, base) == dict.fromkeys(("all", *KINDS), 0.0)
    assert all(value > 0.1 for value in rise(moved, base).values())


@pytest.mark.slow
def test_resumed_and_parallel_give_the_same_numbers_and_nothing_is_read_twice(lab: Path, tmp_path: Path) -> None:
    folders = [lab / "same", lab / "moved"]
    whole = read(lab, folders, tmp_path / "whole", MARK)
    assert read(lab, folders[:1], tmp_path / "parts", MARK) == whole[:2]
    assert read(lab, folders, tmp_path / "parts", MARK, engine("processes", 2)) == whole

    def refuse(function, items):
        assert not list(items)
        return iter(())

    assert read(lab, folders, tmp_path / "parts", MARK, refuse) == whole
    written = [
        sorted(file.read_bytes() for file in (tmp_path / name / "parts").glob("*.gz")) for name in ("whole", "parts")
    ]
    assert written[0] == written[1]
    os.utime(lab / "moved" / "model.safetensors")  # another run in its place is read again
    with pytest.raises(AssertionError):
        read(lab, folders, tmp_path / "parts", MARK, refuse)


def test_what_cannot_be_is_refused(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(lab, [], tmp_path, MARK)
    with pytest.raises(InputError, match="different data_seed"):
        read(lab, [], tmp_path, MARK | {"seed": 4})
    monkeypatch.setattr(forgetting, "NEEDED", ("no-such-package",))
    with pytest.raises(UsageError, match=r"no-such-package is not installed; install the extra: .*\[lab\]"):
        read(lab, [], tmp_path, MARK)


def test_an_interval_needs_two_seeds() -> None:
    found = over_seeds([{"all": 1.0}, {"all": 2.0}, {"all": 3.0}])["all"]
    assert (found["mean"], found["seeds"]) == (2, 3)
    assert (found["low"], found["high"]) == pytest.approx((-0.484, 4.484), abs=1e-3)


@pytest.mark.slow
def test_the_study_tells_it_of_each_arm_at_its_best_rate_and_of_the_stages(lab: Path, tmp_path: Path) -> None:
    lab = Path(shutil.copytree(lab, tmp_path / "lab"))
    for arm, rate, seed, right, source in (
        ("dense", 1e-4, 0, 80, "same"), ("dense", 1e-4, 1, 80, "moved"), ("dense", 1e-3, 0, 60, "moved"),
        ("lora", 1e-3, 0, 70, "moved"), ("random", 1e-4, 0, 70, "same"), ("random-2", 1e-4, 0, 60, "same"),
    ):  # fmt: skip
        folder = lab / "arms" / arm / f"lr-{rate:g}" / f"seed-{seed}"
        shutil.copytree(lab / source, folder)
        looks = [{"step": step, "nats": (1 + seed) * step, "tokens": 10} for step in (5, 10)]
        own = record(arm, rate, seed, right, right) | {"path": {"kl_base_to_arm": looks}}
        (folder / "run.json").write_text(json.dumps(own))
    (lab / "arms" / "arms.json").write_text(json.dumps({"rank": 8}))
    shutil.copytree(lab / "moved", lab / "sft")
    found = study([lab], tmp_path / "out")
    assert found is not None
    rows = {row["arm"]: row for row in found["arms"] if row["chosen"]}
    assert rows["dense"]["forgotten"]["all"]["seeds"] == 2
    assert rows["random"]["forgotten"]["all"]["mean"] == 0 < rows["lora"]["forgotten"]["all"]["mean"]
    assert rows["dense"]["forgotten"]["all"]["mean"] == pytest.approx(rows["lora"]["forgotten"]["all"]["mean"] / 2)
    lost = {name: each["mean"] for name, each in rows["lora"]["forgotten"].items()}
    assert found["forgetting"]["stages"] == {"sft": pytest.approx(lost)}
    assert {(each["arm"], each["run_seed"]) for each in found["forgetting"]["runs"]} == {
        ("dense", 0), ("dense", 1), ("lora", 0), ("random", 0), ("random-2", 0)
    }  # fmt: skip
    assert rows["dense"]["kl_path"] is None
    assert rows["lora"]["kl_path"]["mean"] == 0
    assert found["kl_path_null"]["mean"] == pytest.approx(0.6931, abs=1e-4)
    assert found["draws"][0]["over_draws"]["range"] == pytest.approx(0.1)
    assert (rows["dense"]["edge"], rows["lora"]["edge"]) == ("smallest", "only")
    assert study([lab], tmp_path / "out") == found
