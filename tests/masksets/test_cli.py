"""``offprincipal mask`` as a person or a script meets it."""

import json
from importlib import import_module

import pytest
from click.testing import CliRunner

from offprincipal.cli import cli
from offprincipal.errors import OffprincipalError
from offprincipal.masksets import MaskSet, build_masks
from offprincipal.rewrite import permute, rotate


def run(*arguments: object) -> str:
    """What a command prints on stdout."""
    done = CliRunner().invoke(cli, [*map(str, arguments)], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.stdout


@pytest.fixture
def sets(checkpoint, tmp_path):
    base = checkpoint("base")
    for kind in ("safe", "low"):
        build_masks(base, tmp_path / kind, kind)
    for seed, name in enumerate("ab"):
        build_masks(base, tmp_path / name, "update", tuned=checkpoint(f"run-{name}", delta=5e-5, seed=seed))
    return tmp_path


def test_build_tells_rule_base_and_densities(checkpoint, tmp_path):
    base = checkpoint("base")
    text = run("mask", "build", base, "-o", tmp_path / "out", "-j", 1)
    for words in (
        f"safe masks for {base} (rank 64, alpha 0.5)",
        "by kind",
        "by layer",
        "no mask: 5 norm, 160 weights",
    ):
        assert words in text
    answer = json.loads(
        run("mask", "build", base, "--density", "0.3", "--kind", "low", "-o", tmp_path / "b", "--json")
    )
    assert answer["rule"] == {"kind": "low", "density": 0.3, "include_all": False}
    assert answer["density"] == pytest.approx(0.3, abs=1e-3)
    assert answer["base"] == {"ref": str(base), "commit": None}


def test_a_tuned_checkpoint_means_update(checkpoint, tmp_path):
    answer = json.loads(run("mask", "build", checkpoint("base"), checkpoint("rl", delta=1e-4), "-o", tmp_path / "out",
                            "--json"))  # fmt: skip
    assert answer["rule"]["kind"] == "update"
    assert answer["rule"]["tuned"]["ref"] == str(tmp_path / "rl")


def test_show(sets):
    assert "safe masks for" in run("mask", "show", sets / "safe")
    answer = json.loads(run("mask", "show", sets / "safe", "--json"))
    masks = MaskSet.open(sets / "safe")
    assert {name: each["density"] for name, each in answer["tensors"].items()} == {n: masks.density(n) for n in masks}
    assert sum(group["ones"] for group in answer["by_kind"]) == answer["ones"]


def test_overlap_shows_the_null_beside_the_number(sets):
    text = run("mask", "overlap", sets / "safe", sets / "a", "--base", sets / "base")
    for words in ("B in A", "chance", "rounding null", "magnitude null", "excess, points", "Jaccard", "by matrix"):
        assert words in text
    assert "magnitude null" not in run("mask", "overlap", sets / "safe", sets / "a")
    answer = json.loads(run("mask", "overlap", sets / "safe", sets / "a", "--base", sets / "base", "--json"))
    assert answer["overlap_excess_low"] <= answer["overlap_excess"] <= answer["overlap_excess_high"]
    assert len(answer["rows"]) == 14


def test_long_tables_say_what_they_leave_out(sets, monkeypatch):
    monkeypatch.setattr(import_module("offprincipal.cli.mask"), "LISTED", 3)
    assert "... and 11 more; --json shows them" in run("mask", "overlap", sets / "safe", sets / "a")


def test_consensus_and_combine(sets):
    text = run("mask", "consensus", sets / "a", sets / "b", "--min-agree", 2, "-o", sets / "both", "--base",
               sets / "base")  # fmt: skip
    assert "independent masks" in text
    assert "magnitude null" in text
    answer = json.loads(run("mask", "combine", sets / "a", "and", sets / "b", "-o", sets / "and", "--json"))
    assert answer["ones"] == MaskSet.open(sets / "both").header["ones"]
    answer = json.loads(run("mask", "combine", "not", sets / "low", "-o", sets / "high", "--json"))
    assert answer["ones"] == answer["entries"] - MaskSet.open(sets / "low").header["ones"]
    assert "combined masks for" in run("mask", "show", sets / "high")


def test_map_back(sets):
    permute(sets / "base", sets / "permuted", seed=1)
    run("mask", "build", sets / "permuted", "--kind", "principal", "-o", sets / "there")
    run("mask", "map-back", sets / "there", sets / "permuted", "-o", sets / "back")
    MaskSet.open(sets / "back").check_base(sets / "base")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["combine", "a", "b", "-o", "out"], 2, "'a b' is neither A and|or|minus B nor not A"),
        (["combine", "a", "nor", "b", "-o", "out"], 2, "there is no such operation"),
        (["show", "nowhere"], 3, "cannot open mask set 'nowhere'"),
        (["build", "nowhere", "-o", "out"], 3, "cannot open checkpoint 'nowhere'"),
        (["build", "b", "t", "--kind", "safe", "-o", "out"], 2, "tuned means nothing to it"),
        (["consensus", "a", "--min-agree", "1", "-o", "out"], 2, "not a number of at least two sets"),
        (["map-back", "a", "nowhere", "-o", "out"], 3, "cannot read the transform of 'nowhere'"),
    ],
)
def test_bad_requests_have_an_exit_code(arguments, code, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OffprincipalError) as caught:
        run("mask", *arguments)
    assert (caught.value.exit_code, words in str(caught.value)) == (code, True), str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_rotation_says_what_to_do_instead(sets):
    rotate(sets / "base", sets / "rotated", seed=1)
    run("mask", "build", sets / "rotated", "--kind", "low", "-o", sets / "there")
    with pytest.raises(OffprincipalError, match=r"offprincipal transform map-back\), then: offprincipal mask build"):
        run("mask", "map-back", sets / "there", sets / "rotated", "-o", sets / "back")
