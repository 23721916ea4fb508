"""``offprincipal adapter`` as a person or a script meets it."""

import json

import pytest
from tests.test_cli import run

pytest.importorskip("peft")


def test_from_init_to_verify(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    done = run(
        "adapter", "init", base, "--method", "geora", "-r", 3, "--target", "q,v", "-o", tmp_path / "a", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"].startswith("offprincipal adapter init")
    assert f"4 modules; adapter: {tmp_path / 'a'}" in done.stderr
    done = run("adapter", "export", tmp_path / "a", "-o", tmp_path / "b", "-r", 2)
    assert done.returncode == 0, done.stderr
    assert "4 modules, rank at most 2" in done.stdout
    done = run("adapter", "verify", tmp_path / "b", "--merge-drift", 1)
    assert done.returncode == 0, done.stderr
    for words in ("yes: at its start", "identical, bit for bit", "1 x merge and unmerge, bfloat16", "not recorded"):
        assert words in done.stdout, words


def test_a_failed_check_is_printed_with_its_numbers_and_exits_with_one(checkpoint, tmp_path) -> None:
    run("adapter", "init", checkpoint("base"), "--method", "rlpo", "-r", 3, "-o", tmp_path / "a")
    other = checkpoint("rl", delta=1e-3)
    done = run("adapter", "verify", tmp_path / "a", "--base", other, "--no-logits", "--json")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "is not the one it was made for; see the numbers above" in done.stderr
    assert json.loads(done.stdout)["failures"]


def test_what_is_left_out_is_said(tmp_path) -> None:
    from tests.tiny import CONFIG, save_checkpoint, tiny_weights

    weights = tiny_weights()
    for layer in (0, 1):
        stem = f"model.layers.{layer}.mlp."
        weights[f"{stem}experts.0.gate_proj.weight"] = weights.pop(f"{stem}gate_proj.weight")
        weights[f"{stem}gate.weight"] = weights.pop(f"{stem}up_proj.weight")
    base = save_checkpoint(tmp_path / "base", weights, {**CONFIG, "model_type": "qwen3_moe"})
    done = run("adapter", "init", base, "--method", "lora", "-o", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert "left out: 2 matrices such as model.layers.0.mlp.experts.0.gate_proj.weight: transformers" in done.stderr
    assert "left out: 2 matrices such as model.layers.0.mlp.gate.weight: a router" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["init", "nowhere", "--method", "lora", "-o", "out"], 3, "cannot open checkpoint 'nowhere'"),
        (["init", "nowhere", "-o", "out"], 2, "Missing option '--method'"),
        (["init", "nowhere", "--method", "dora", "-o", "out"], 2, "there is no method 'dora'"),
        (["export", "nowhere", "-o", "out"], 3, "cannot open adapter 'nowhere'"),
        (["verify", "nowhere"], 3, "cannot open adapter 'nowhere'"),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(arguments, code, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("adapter", *arguments)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
