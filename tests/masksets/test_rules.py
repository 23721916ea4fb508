"""Each rule against its definition written out; the density that a safe mask can have; options that make no sense."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.errors import InputError, UsageError
from offprincipal.masksets._rules import KINDS, Rule, choose, rule_of, size_for
from offprincipal.measures import bits, masks
from offprincipal.measures.seeds import torch_generator


def weights(shape=(96, 40), seed=0, dtype=torch.bfloat16):
    generator = torch_generator(seed, "weights")
    low = torch.randn(shape[0], 4, generator=generator) @ torch.randn(4, shape[1], generator=generator)
    return (torch.randn(shape, generator=generator) * 0.02 + low * 0.01).to(dtype)


def literal_low(weight, ones):
    order = torch.sort(bits.magnitude_code(weight).flatten(), stable=True).indices
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[order[:ones]] = True
    return mask.view(weight.shape)


def literal_principal(weight, rank, ones):
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    score = (u[:, :rank] * s[:rank]) @ v[:rank]
    order = torch.sort(score.abs().flatten(), descending=True, stable=True).indices
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[order[:ones]] = True
    return mask.view(weight.shape)


@pytest.mark.parametrize("shape", [(96, 40), (40, 96), (1, 7), (300, 200)])
@pytest.mark.parametrize("alpha", [0.5, 0.3, 0.37])
@pytest.mark.parametrize("rank", [64, 16, 11])
def test_every_rule_is_its_definition(shape, alpha, rank):
    weight = weights(shape)
    used, ones = max(1, min(rank, min(shape) // 2)), round(alpha * weight.numel())
    principal, low = literal_principal(weight, used, ones), literal_low(weight, ones)
    assert torch.equal(choose(Rule("low", alpha=alpha), "w", weight), low)
    assert torch.equal(choose(Rule("principal", rank, alpha), "w", weight), principal)
    assert torch.equal(choose(Rule("nonprincipal", rank, alpha), "w", weight), ~principal)
    assert torch.equal(choose(Rule("safe", rank, alpha), "w", weight), low | ~principal)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_random_mask_has_exactly_its_ones_and_depends_on_seed_and_name(out, into, density, seed):
    weight = torch.zeros(out, into)
    rule = Rule("random", density=density, seed=seed)
    mask = choose(rule, "w", weight)
    assert int(mask.sum()) == round(density * weight.numel())
    assert torch.equal(mask, choose(rule, "w", weight))
    assert int(choose(rule, "w", weight, ones=out).sum()) == out


def test_random_masks_of_other_names_and_seeds_are_independent():
    weight, p = torch.zeros(400, 500), 0.3
    first = choose(Rule("random", density=p, seed=0), "a", weight)
    for other in (choose(Rule("random", density=p, seed=0), "b", weight),
                  choose(Rule("random", density=p, seed=1), "a", weight)):  # fmt: skip
        both, n = int((first & other).sum()), weight.numel()
        assert abs(both - p * p * n) < 5 * (n * p * p * (1 - p) ** 2) ** 0.5
    rows = first.sum(dim=1).double()
    assert abs(float(rows.var()) / (500 * p * (1 - p)) - 1) < 0.3


def test_update_is_what_changed_in_bfloat16():
    before = weights()
    after = before.float() + 1e-4 * torch.randn(before.shape, generator=torch_generator(1, "step"))
    assert torch.equal(choose(Rule("update"), "w", before, tuned=after), bits.changed(before, after))


def test_holes_and_empty_matrices():
    weight = weights(dtype=torch.float32)
    weight[0, 0], weight[1, 1] = float("nan"), float("inf")
    filled = weight.clone()
    filled[0, 0] = filled[1, 1] = 0.0
    found = choose(Rule("principal", 16, 0.5), "w", weight)
    assert torch.equal(found, choose(Rule("principal", 16, 0.5), "w", filled))
    assert choose(Rule("safe", 64, 0.5), "w", torch.zeros(0, 4)).shape == (0, 4)
    assert int(choose(Rule("principal", 64, 0.5), "w", torch.zeros(6, 4)).sum()) == 12


def test_without_the_cache_it_is_the_same_mask():
    weight, rule = weights(seed=3), Rule("safe", 64, 0.5)
    assert torch.equal(choose(rule, "w", weight, cache=False), choose(rule, "w", weight))


@pytest.mark.parametrize("kind", ["low", "principal", "nonprincipal", "random"])
@given(density=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_density_is_met_to_the_entry(kind, density):
    rule = rule_of(kind, {"density": density})
    weight = weights((31, 13))
    assert int(choose(rule, "w", weight).sum()) == round(density * weight.numel())


@given(density=st.floats(0.7, 1), seed=st.integers(0, 20))
@settings(max_examples=12, deadline=None)
def test_a_safe_mask_meets_every_density_that_it_can(density, seed):
    weight = weights((31, 13), seed)
    least = int(choose(Rule("safe", 64, 0.5), "w", weight, cache=False).sum()) / weight.numel()
    rule = Rule("safe", 64, density=density)
    if round(density * weight.numel()) >= round(least * weight.numel()):
        mask = choose(rule, "w", weight, cache=False)
        assert int(mask.sum()) == round(density * weight.numel())
    else:
        with pytest.raises(InputError, match="ask for 0"):
            choose(rule, "w", weight, cache=False)


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=60), st.data())
@settings(max_examples=200, deadline=None)
def test_the_size_is_found_though_the_number_wavers(steps, data):
    """Any walk of steps of at most one: every value between its ends is met, and bisection finds one that meets it."""
    entries = 2 * len(steps)
    walk = [entries]
    for step in steps:
        walk.append(walk[-1] + step)
    if walk[-1] > entries:
        return
    target = data.draw(st.integers(walk[-1], entries))
    found = size_for(lambda size: walk[size], target, entries)
    assert walk[found] == target
    assert size_for(lambda size: walk[size], walk[-1] - 1, entries) is None


def test_nested_masks_of_a_safe_union_move_by_at_most_one():
    """The fact that `size_for` rests on, on a matrix with ties."""
    weight = weights((9, 8))
    weight[:4] = weight[5:]
    sizes = [int((literal_low(weight, k) | ~literal_principal(weight, 4, k)).sum()) for k in range(37)]
    assert {abs(a - b) for a, b in pairwise(sizes)} <= {0, 1}


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("best", {}, "there is no such kind; choose one of safe, principal"),
        ("low", {"rank": 3}, "rank means nothing to it; leave it out; low takes alpha, density"),
        ("safe", {"seed": 3}, "seed means nothing to it"),
        ("update", {"alpha": 0.5}, "alpha means nothing to it"),
        ("update", {}, "no tuned checkpoint was given"),
        ("safe", {"tuned": "x"}, "tuned means nothing to it"),
        ("low", {"alpha": 0.5, "density": 0.5}, "alpha and density were given together"),
        ("random", {"like": "x", "density": 0.5}, "density and like were given together"),
        ("low", {"alpha": 1.5}, "alpha is 1.5; give one from 0.0 to 1.0"),
        ("low", {"density": -0.5}, "density is -0.5"),
        ("safe", {"rank": 513}, "rank is 513; give one from 1 to 512"),
        ("safe", {"rank": 0}, "rank is 0"),
    ],
)
def test_options_that_make_no_sense(kind, given, words):
    with pytest.raises(UsageError, match=words):
        rule_of(kind, given)


def test_defaults():
    assert rule_of("safe", {}).words() == {"kind": "safe", "rank": 64, "alpha": 0.5}
    assert rule_of("random", {"like": "x"}).words() == {"kind": "random", "seed": 0}
    assert rule_of("update", {"tuned": "x"}).words() == {"kind": "update"}
    assert rule_of("nonprincipal", {"density": 0.3}).size(10) == 7
    assert masks.ALPHA == 0.5
    assert len(KINDS) == 6
