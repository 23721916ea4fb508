"""Every example runs."""

import subprocess
import sys
from pathlib import Path

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


def test_every_example_has_a_test():
    tested = Path(__file__).read_text()
    assert all(f'"{file.name}"' in tested for file in EXAMPLES.glob("*.py"))
