"""``offprincipal transform`` as a person or a script meets it."""

import json

import click
import pytest
from click.testing import CliRunner

from offprincipal.checkpoint import open_checkpoint
from offprincipal.cli import cli
from offprincipal.cli.transform import layer_numbers
from offprincipal.errors import OffprincipalError, UsageError
from tests.test_cli import run


def invoke(*arguments: object) -> str:
    """Stdout of a command that runs in this process; its own errors come out as they are."""
    done = CliRunner().invoke(cli, ["transform", *map(str, arguments)], catch_exceptions=False, standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.stdout


def test_rotate_prints_where_the_checkpoint_lies_and_json_the_record(checkpoint, tmp_path):
    done = run("transform", "rotate", checkpoint("base"), "--layers", "0-1", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["layers"] == [0, 1]
    assert record["command"].startswith("offprincipal transform rotate ")
    assert "actions" not in record
    assert f"checkpoint: {tmp_path / 'out'}" in done.stderr
    assert "tensors: 21 of 21" in done.stderr


@pytest.mark.slow
def test_verify_prints_each_comparison_beside_the_noise_of_bfloat16(tmp_path):
    from tests.rewrite.families import make

    base = make("llama", tmp_path / "base")
    done = run("transform", "rotate", base, "--residual", "--verify", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for words in (
        "64 random tokens",
        "before rounding: float64",
        "stored transform",
        "base in float64, base in bfloat16",
    ):
        assert words in done.stdout
    assert "Loading weights" not in done.stderr


def test_every_verb_writes_a_checkpoint(checkpoint, tmp_path):
    base, tuned = checkpoint("base"), checkpoint("rl", delta=1e-3)
    for verb, arguments in {
        "permute": [base, "--only", "heads", "--layers", "1"],
        "restore-spectrum": [base, tuned, "--strength", "0.5"],
        "swap-spectrum": [base, tuned],
        "keep-rank": [base, tuned, "--rank", "1"],
        "scale": [base, tuned, "--factor", "2"],
        "round": [base, "--dtype", "fp32"],
    }.items():
        out = tmp_path / verb
        record = json.loads(invoke(verb, *arguments, "-o", out, "--json"))
        assert record["what"] == verb
        assert len(open_checkpoint(out).tensors) == 21
    assert open_checkpoint(tmp_path / "round").tensors["model.norm.weight"].dtype == "F32"
    back = json.loads(invoke("map-back", tmp_path / "permute", tmp_path / "permute", "-o", tmp_path / "b", "--json"))
    assert back["options"] == {"undoes": "permute"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["rotate", "{base}", "--layers", "5-7", "-o", "out"], 2, "there is no layer 5: the model has layers 0 to 1"),
        (["rotate", "{base}", "--residual", "--layers", "0", "-o", "out"], 2, "it runs through all layers"),
        (["rotate", "{base}"], 2, "Missing option '-o'"),
        (["rotate", "nowhere", "-o", "out"], 3, "cannot open checkpoint 'nowhere'"),
        (["round", "{base}", "--dtype", "int8", "-o", "out"], 2, "'int8' is not one of"),
    ],
)
def test_bad_input_gives_one_line_and_an_exit_code(checkpoint, tmp_path, arguments, code, words):
    base = checkpoint("base")
    wanted = [str(base) if a == "{base}" else str(tmp_path / a) if a == "out" else a for a in arguments]
    with pytest.raises((OffprincipalError, click.ClickException)) as caught:
        invoke(*wanted)
    assert caught.value.exit_code == code
    said = caught.value.format_message() if isinstance(caught.value, click.ClickException) else str(caught.value)
    assert words in said
    assert not (tmp_path / "out").exists()


def test_lists_of_layers():
    assert layer_numbers(None) is None
    assert layer_numbers("20,25-27, 3") == [20, 25, 26, 27, 3]
    for wrong in ("", "a", "3-", "5-2", "-1", "1,,2", "1-99999"):
        with pytest.raises(UsageError, match="is no layer and no range; write --layers 0,5-7"):
            layer_numbers(wrong)
