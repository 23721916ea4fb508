"""``offprincipal adapter`` as a person or a script meets it."""

import json

import pytest

from offprincipal.cli import main

pytest.importorskip("peft")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


@pytest.fixture
def say(monkeypatch, capsys):
    """Run the command line in this process: exit code, stdout, stderr."""

    def answer(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["offprincipal", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        written = capsys.readouterr()
        return code, written.out, written.err

    return answer


def test_from_init_to_verify(checkpoint, tmp_path, say) -> None:
    base = checkpoint("base")
    code, out, _ = say(
        "adapter", "init", base, "--method", "geora", "-r", 3, "--target", "q,v", "-o", tmp_path / "a", "--json"
    )
    assert code == 0
    assert json.loads(out)["command"].startswith("offprincipal adapter init")
    code, out, _ = say("adapter", "export", tmp_path / "a", "-o", tmp_path / "b", "-r", 2)
    assert (code, "4 modules, rank at most 2" in out) == (0, True)
    code, out, _ = say("adapter", "verify", tmp_path / "b", "--merge-drift", 1)
    assert code == 0
    for words in ("yes: at its start", "identical, bit for bit", "1 x merge and unmerge, bfloat16", "not recorded"):
        assert words in out, words


def test_a_failed_check_is_printed_with_its_numbers_and_exits_with_one(checkpoint, tmp_path, say) -> None:
    say("adapter", "init", checkpoint("base"), "--method", "rlpo", "-r", 3, "-o", tmp_path / "a")
    other = checkpoint("rl", delta=1e-3)
    code, out, err = say("adapter", "verify", tmp_path / "a", "--base", other, "--no-logits", "--json")
    assert code == 1
    assert "is not the one it was made for; see the numbers above" in err
    assert json.loads(out)["failures"]


def test_what_is_left_out_is_said(tmp_path, say) -> None:
    from tests.tiny import CONFIG, save_checkpoint, tiny_weights

    weights = tiny_weights()
    for layer in (0, 1):
        stem = f"model.layers.{layer}.mlp."
        weights[f"{stem}experts.0.gate_proj.weight"] = weights.pop(f"{stem}gate_proj.weight")
        weights[f"{stem}gate.weight"] = weights.pop(f"{stem}up_proj.weight")
    base = save_checkpoint(tmp_path / "base", weights, {**CONFIG, "model_type": "qwen3_moe"})
    code, _, err = say("adapter", "init", base, "--method", "lora", "-o", tmp_path / "a")
    assert code == 0, err
    assert "left out: 2 matrices such as model.layers.0.mlp.experts.0.gate_proj.weight: transformers" in err
    assert "left out: 2 matrices such as model.layers.0.mlp.gate.weight: a router" in err
    assert f"10 modules; adapter: {tmp_path / 'a'}" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["init", "nowhere", "--method", "lora", "-o", "out"], 3, "cannot open checkpoint 'nowhere'"),
        (["init", "nowhere", "--method", "dora", "-o", "out"], 2, "there is no method 'dora'"),
        (["verify", "nowhere"], 3, "cannot open adapter 'nowhere'"),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(arguments, code, words, tmp_path, monkeypatch, say) -> None:
    monkeypatch.chdir(tmp_path)
    found, _, err = say("adapter", *arguments)
    assert (found, words in err) == (code, True), err
    assert list(tmp_path.iterdir()) == []
