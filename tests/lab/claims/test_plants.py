"""What is planted is what is said: nulls keep what they promise, controls change what they promise."""

import numpy as np
import pytest
import torch

from offprincipal.lab.claims import plants
from offprincipal.lab.claims.matrix import factors_of
from offprincipal.lab.claims.worlds import World, weights_with_spectrum, world_updates
from offprincipal.measures import bits
from offprincipal.measures.seeds import numpy_generator


@pytest.fixture(scope="module")
def world():
    before = weights_with_spectrum((40, 56), np.random.default_rng(0))
    base = factors_of(before)
    return before, base, world_updates(World(), before, base, 0, 0, "x")["rlvr-1"]


def test_nulls_keep_values_magnitudes_and_norms(world):
    before, _, delta = world
    even, blank = plants.even(delta, _draw()), plants.within_magnitude(before, delta, _draw())
    for moved in (even, blank):
        assert torch.equal(moved.flatten().sort().values, delta.flatten().sort().values)
        assert not torch.equal(moved, delta)
    assert float(plants.gauss(delta, _draw()).norm()) == pytest.approx(float(delta.norm()))


def test_a_step_stays_among_weights_of_its_size(world):
    before, _, _ = world
    codes = bits.magnitude_code(before)
    moved = plants.within_magnitude(before, codes.double(), _draw())
    rank = codes.flatten().double().argsort().argsort().reshape(codes.shape)
    order = moved.flatten().argsort().argsort().reshape(codes.shape)
    assert float((moved - codes).abs().quantile(0.95)) < 60  # of 32,768 codes
    assert float((rank - order).abs().double().quantile(0.9)) < 2 * plants.NEIGHBOURS


def test_controls_do_what_they_say(world):
    before, base, delta = world
    mask, low = plants.principal_mask(base), plants.low_mask(base)
    assert int(mask.sum()) == int(low.sum()) == before.numel() // 2
    aimed = plants.aiming(delta, base)
    assert torch.allclose(aimed[mask], delta[mask] * plants.ON)
    assert torch.equal(aimed[~mask], delta[~mask])
    rank = base.levels.rank
    left, right = base.factors.left[:, :rank], base.factors.right[:, :rank]
    assert float((left.T @ plants.outside(delta, base, 1.0) @ right).norm()) < 1e-12
    first, second = (plants.apart(delta, half, _draw()) for half in (True, False))
    assert torch.equal(first + second, delta)
    seen = plants.seen(delta, _draw())
    assert float(seen.norm()) == pytest.approx(float(delta.norm()))
    assert 0.05 < float((seen != 0).double().mean()) < 0.15
    turned = plants.turned(delta, base, (16,))
    assert float(turned.norm()) == pytest.approx(float(delta.norm()))


@pytest.mark.parametrize(("axis", "heads"), [(0, 4), (1, 7), (0, 0), (0, 3)])
def test_stripes_scale_whole_lines(world, axis, heads):
    _, _, delta = world
    striped = plants.striped(delta, axis, heads, _draw())
    ratio = (striped / delta).movedim(axis, 0)
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio))
    assert float(ratio[:, 0].std()) > 0.1


def _draw():
    return numpy_generator(0, "test")
