"""Whatever the trainers do to the process, it is undone."""

import random
import warnings

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from offprincipal.lab.quiet import quiet, stage_seed


def test_the_global_random_state_is_seeded_inside_and_restored_outside() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()  # noqa: NPY002
    drawn = []
    for _ in range(2):
        with quiet(5):
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), states[2])


def test_nothing_is_sent_inside_and_the_setting_returns_even_after_an_error() -> None:
    before = constants.HF_HUB_DISABLE_TELEMETRY
    seen = []

    def stopped() -> None:
        with quiet(0):
            seen.append(constants.HF_HUB_DISABLE_TELEMETRY)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert seen == [True]
    assert before is constants.HF_HUB_DISABLE_TELEMETRY


def test_only_named_warnings_are_muted() -> None:
    with pytest.warns(UserWarning, match="news"), quiet(0):
        warnings.warn("news", UserWarning, stacklevel=1)


def test_stages_have_seeds_of_their_own() -> None:
    seeds = {stage_seed(seed, stage) for seed in range(3) for stage in ("base", "sft", "rlvr-1", "rlvr-2")}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**31 for seed in seeds)
