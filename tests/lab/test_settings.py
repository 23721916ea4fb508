"""Presets are frozen and named; an unknown one is refused by name."""

import dataclasses

import pytest

from offprincipal.errors import UsageError
from offprincipal.lab.settings import PRESETS, find_preset


def test_presets_are_frozen_and_found_by_name() -> None:
    assert [find_preset(name).name for name in PRESETS] == ["micro", "mini", "tiny", "small"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_preset("tiny").corruption = 0.1  # type: ignore[misc]


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(
        UsageError, match="cannot run the laboratory: there is no preset 'huge'; choose from micro, mini, tiny, small"
    ):
        find_preset("huge")


def test_batches_divide_into_whole_groups() -> None:
    for preset in PRESETS.values():
        plan = preset.rlvr
        assert plan.prompts * plan.samples % plan.updates == 0
        assert plan.prompts * plan.samples // plan.updates % plan.samples == 0
