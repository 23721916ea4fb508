"""``offprincipal probe`` as a person or a script meets it."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from offprincipal.cli import cli
from offprincipal.errors import OffprincipalError


def run(*arguments):
    """In this process: the start of an interpreter with transformers costs seconds."""
    return CliRunner().invoke(cli, ["probe", *map(str, arguments)])


def test_kl_prints_a_table_and_where_the_result_lies(folders, prompts, tmp_path):
    done = run("kl", folders["base"], f"rl={folders['rl']}", "--prompts", prompts, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    for words in ("Token KL between tuned and base", "KL(tuned || base)", "rl", "bootstrap", "probe: 6 of 6"):
        assert words in done.output, words
    assert "probe-kl.json" in done.stderr
    assert "the report of this comparison" not in done.stderr


def test_curvature_and_fisher_as_json(folders, prompts, tmp_path):
    common = [folders["base"], folders["rl"], "--prompts", prompts, "-o", tmp_path, "--json"]
    (tmp_path / "summary.json").write_text("{}")
    curved = run("curvature", *common, "--batches", 3, "--draws", 2, "--matrices", 1, "--rank", 4)
    assert json.loads(curved.stdout)["settings"]["rank"] == 4
    fisher = run("fisher", *common, "--halvings", 3)
    assert len(json.loads(fisher.stdout)["runs"][0]["steps"]) == 4
    assert f"offprincipal report {tmp_path}" in fisher.stderr.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["kl", "BASE", "RL", "-o", "OUT"], 2, "neither prompts nor a number of samples"),
        (["kl", "nowhere", "RL", "--sample", "2", "-o", "OUT"], 3, "cannot open checkpoint 'nowhere'"),
        (["fisher", "BASE", "BASE", "--prompts", "PROMPTS", "-o", "OUT"], 3, "D = 0"),
        (["curvature", "BASE", "RL", "--prompts", "nowhere.txt", "-o", "OUT"], 3, "No such file"),
        (["kl", "BASE", "a=RL", "a=RL", "--sample", "2", "-o", "OUT"], 2, "two runs are called 'a'"),
    ],
)
def test_bad_input(arguments, code, words, folders, prompts, tmp_path):
    known = {"BASE": folders["base"], "RL": folders["rl"], "PROMPTS": prompts, "OUT": tmp_path / "out"}
    known["a=RL"] = f"a={folders['rl']}"
    done = run(*(known.get(word, word) for word in arguments))
    assert isinstance(done.exception, OffprincipalError)
    assert done.exception.exit_code == code
    assert words in str(done.exception)


def test_curvature_without_prompts_is_wrong_usage(folders, tmp_path):
    done = run("curvature", folders["base"], folders["rl"], "-o", tmp_path)
    assert done.exit_code == 2
    assert "Missing option '--prompts'" in done.output


@pytest.mark.slow
def test_the_whole_program_has_no_traceback(folders, tmp_path):
    command = [sys.executable, "-m", "offprincipal", "probe", "kl", folders["base"], "nowhere", "--sample", "1"]
    done = subprocess.run([*map(str, command), "-o", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
