"""Every example runs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_compare_two_checkpoints(checkpoint):
    script = EXAMPLES / "compare_two_checkpoints.py"
    command = [sys.executable, str(script), str(checkpoint("base")), str(checkpoint("rl", delta=3e-5))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for words in ("weights changed in bfloat16", "magnitude alone", "95 % interval", "changed most: model.layers."):
        assert words in done.stdout


def test_rotate_and_map_back(checkpoint, tmp_path):
    refs = [checkpoint("base"), checkpoint("rl", delta=3e-5), tmp_path / "out"]
    command = [sys.executable, str(EXAMPLES / "rotate_and_map_back.py"), *map(str, refs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for words in ("rotated 4 tensors", "tuned: |D| = ", "mapped: |D| = ", "rotated: |D| = "):
        assert words in done.stdout


def test_forecast_precision(checkpoint):
    master = checkpoint("master", delta=3e-5, dtype=torch.float32)
    command = [sys.executable, str(EXAMPLES / "forecast_precision.py"), str(checkpoint("base")), str(master), "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for words in ("fp32", "counted", "closed form", "smallest delta of one step in bf16"):
        assert words in done.stdout


@pytest.fixture(scope="module")
def small_base(tmp_path_factory):
    """The base of the laboratory's mini world: right now and then, so that rewards move something."""
    from offprincipal.lab.progress import silent
    from offprincipal.lab.run import open_lab

    out = tmp_path_factory.mktemp("lab") / "mini"
    open_lab(out, "mini", 0, silent)
    return out / "base"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sparse_grpo.py", ("the safe mask allows", "stayed, bit for bit", "optimizer state:", "mean reward")),
        ("off_principal_grpo.py", ("step  KL(model, base)", "energy on the principal subspaces", "\n   5 ")),
    ],
)
def test_examples_that_train(name, expected, small_base, tmp_path):
    command = [sys.executable, str(EXAMPLES / name), str(small_base), str(tmp_path), "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for words in expected:
        assert words in done.stdout


def test_probe_gates(tmp_path):
    from tests.probes.conftest import make_model

    (tmp_path / "p.txt").write_text("a b c d e\nf g h i\nj k l m n\no p q r s t\n")
    folders = [str(make_model(tmp_path / name, delta=delta)) for name, delta in (("base", 0.0), ("rl", 0.01))]
    command = [sys.executable, str(EXAMPLES / "probe_gates.py"), *folders, str(tmp_path / "p.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for words in ("nats per token", "of the quadratic form", "times as curved as a random direction", "it could tell"):
        assert words in done.stdout


def test_masks_from_a_base(checkpoint, tmp_path):
    script = EXAMPLES / "masks_from_a_base.py"
    folders = [str(checkpoint("base")), str(checkpoint("rl", delta=3e-5)), str(tmp_path / "masks")]
    done = subprocess.run([sys.executable, str(script), *folders], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for words in ("weights inside blocks", "the run changed", "safe   holds", "random holds", "magnitude alone"):
        assert words in done.stdout


def test_every_example_has_a_test():
    tested = Path(__file__).read_text()
    assert all(f'"{file.name}"' in tested for file in EXAMPLES.glob("*.py"))
