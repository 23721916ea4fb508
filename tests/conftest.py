"""Fixtures for every test: checkpoints made on the spot."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import save_checkpoint, tiny_weights


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Make a checkpoint: ``checkpoint("base")``, ``checkpoint("rl", delta=1e-5)``."""
    return lambda name, **choices: save_checkpoint(tmp_path / name, tiny_weights(**choices))
