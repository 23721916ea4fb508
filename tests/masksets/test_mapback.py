"""Through a permutation and back a mask is what it was; what does not belong together, or was rotated, is refused."""

import pytest
import torch

from offprincipal.errors import InputError, UsageError
from offprincipal.masksets import build_masks, map_back, overlap, save_masks
from offprincipal.rewrite import Transform, permute, rotate
from tests.tiny import save_checkpoint, tiny_weights


@pytest.fixture
def permuted(checkpoint, tmp_path):
    permute(checkpoint("base"), tmp_path / "permuted", seed=1)
    return tmp_path / "permuted"


def test_low_masks_of_the_permuted_base_come_back_as_those_of_the_base(checkpoint, tmp_path):
    """Every magnitude is moved and none is changed, so M_low comes back up to the ties that flat order decides."""
    weights = {
        name: torch.arange(1, weight.numel() + 1).view(weight.shape) / 7.0 for name, weight in tiny_weights().items()
    }
    base, moved = save_checkpoint(tmp_path / "base", weights), tmp_path / "moved"
    permute(base, moved, seed=2)
    there = build_masks(moved, tmp_path / "there", "low", alpha=0.25)
    back = map_back(there, moved, base, Transform.load(moved), tmp_path / "back")
    here = build_masks(base, tmp_path / "here", "low", alpha=0.25)
    for name in here:
        magnitude = weights[name].to(torch.bfloat16).abs()
        threshold = magnitude[here[name]].max()
        assert bool((magnitude[here[name] != back[name]] == threshold).all())
        assert here.ones(name) == back.ones(name)
    back.check_base(base)


def test_an_update_comes_back_entry_by_entry(permuted, tmp_path):
    transform = Transform.load(permuted)
    moved = save_checkpoint(tmp_path / "tuned", tiny_weights(delta=5e-5))
    permute(moved, tmp_path / "tuned-permuted", seed=1)
    there = build_masks(permuted, tmp_path / "there", "update", tuned=tmp_path / "tuned-permuted")
    here = build_masks(tmp_path / "base", tmp_path / "here", "update", tuned=moved)
    assert any(not torch.equal(there[name], here[name]) for name in here)
    found = map_back(there, permuted, tmp_path / "base", transform, tmp_path / "back")
    assert all(torch.equal(found[name], here[name]) for name in here)
    assert overlap(found, here, base=tmp_path / "base").summary["jaccard"] == 1.0
    assert overlap(found, here).summary["jaccard_pooled"] == 1.0


def test_another_base_or_other_masks_are_refused(permuted, checkpoint, tmp_path):
    transform = Transform.load(permuted)
    there = build_masks(permuted, tmp_path / "there", "low")
    here = build_masks(tmp_path / "base", tmp_path / "here", "low")
    with pytest.raises(InputError, match=r"is not what .* was made from; give the original base"):
        map_back(there, permuted, checkpoint("other", delta=1e-3), transform, tmp_path / "out")
    with pytest.raises(InputError, match=r"the values of .* are others"):
        map_back(here, permuted, tmp_path / "base", transform, tmp_path / "out")
    stray = save_masks(tmp_path / "stray", {"w": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(InputError, match="has no tensor 'w'"):
        map_back(stray, permuted, tmp_path / "base", transform, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_mask_goes_through_a_rotation(checkpoint, tmp_path):
    rotate(checkpoint("base"), tmp_path / "rotated", seed=1)
    there = build_masks(tmp_path / "rotated", tmp_path / "there", "low")
    transform = Transform.load(tmp_path / "rotated")
    with pytest.raises(
        UsageError,
        match=r"4 of 14 matrices were rotated \(first .*o_proj.*a rotation carries numbers",
    ):
        map_back(there, tmp_path / "rotated", tmp_path / "base", transform, tmp_path / "out")
    assert not (tmp_path / "out").exists()
