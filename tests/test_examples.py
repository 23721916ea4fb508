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


def test_every_example_has_a_test():
    assert [file.name for file in EXAMPLES.glob("*.py")] == ["compare_two_checkpoints.py"]
