"""The two families: pure, disjoint, spoilt as often as asked, and judged by the outcome alone."""

import hashlib
import itertools
import operator

import pytest

from offprincipal.errors import UsageError
from offprincipal.lab.tasks import (
    FAMILIES,
    PROBES,
    SPLITS,
    WORDS,
    Draws,
    break_up,
    evaluate,
    make_item,
    make_items,
    split_of,
    verify,
)


def test_an_item_is_a_function_of_seed_split_family_and_index() -> None:
    def make(**changes: object):
        return make_item(**{"family": "math", "seed": 3, "split": "sft", "index": 7, **changes})

    assert make() == make()
    others = [make(seed=4), make(split="heldout"), make(index=8), make(family="code"), make(seed=7, index=3)]
    assert all(other.prompt != make().prompt for other in others)
    assert list(make_items(6, seed=3, split="sft", first=2)) == list(make_items(8, seed=3, split="sft"))[2:]
    assert [item.family for item in make_items(4, seed=3, split="sft")] == ["math", "code", "math", "code"]


def test_items_do_not_change_between_versions() -> None:
    """Published runs name their data by seed and index alone."""
    text = "\n".join(f"{i.prompt} {i.completion}" for i in make_items(200, seed=0, split="pretrain", corruption=0.4))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "e008f9b5e503aefd"


def test_draws_are_uniform_enough_and_differ_by_key() -> None:
    counts = [0] * 7
    for key in range(7000):
        counts[Draws("x", key).below(7)] += 1
    assert min(counts) > 850
    assert Draws("ab", "c").below(2**200) != Draws("a", "bc").below(2**200)


def test_no_two_splits_share_a_problem_for_any_seed() -> None:
    prompts = {
        split: {item.prompt for seed in (0, 1) for item in make_items(600, seed=seed, split=split)} for split in SPLITS
    }
    for left, right in itertools.combinations(SPLITS, 2):
        assert not prompts[left] & prompts[right]
    assert all(split_of(prompt) == split for split, owned in prompts.items() for prompt in owned)


@pytest.mark.parametrize("corruption", [0.0, 0.4, 1.0])
def test_the_share_of_wrong_answers_is_the_one_asked_for(corruption: float) -> None:
    items = list(make_items(2000, seed=5, split="pretrain", corruption=corruption))
    for family in FAMILIES:
        wrong = [item.corrupted for item in items if item.family == family]
        assert sum(wrong) / len(wrong) == pytest.approx(corruption, abs=0.05)


def test_the_judge_accepts_right_answers_and_refuses_spoilt_ones() -> None:
    for item in make_items(2000, seed=6, split="rlvr-1", corruption=0.5):
        broken = break_up(item.completion)
        assert verify(item.prompt, item.completion) is not item.corrupted
        assert verify(item.prompt, broken, broken=True) is not item.corrupted
        assert not verify(item.prompt, broken)
        assert not verify(item.prompt, item.completion, broken=True)


def test_every_word_of_the_tasks_is_in_the_vocabulary_once() -> None:
    assert len(set(WORDS)) == len(WORDS)
    for item in make_items(500, seed=1, split="sft", corruption=0.3):
        assert set(f"{item.prompt} {item.completion} {break_up(item.completion)}".split()) <= set(WORDS)


@pytest.mark.parametrize(
    ("prompt", "answer", "right"),
    [
        ("math 3 +5 -4 =", "3 +5 8 -4 4", True),
        ("math 3 +5 -4 =", "4", True),  # only the outcome counts
        ("math 3 -5 =", "8", True),  # before zero comes nine
        ("math 3 +5 -4 =", "3 +5 8", False),
        ("math 3 +5 -4 =", "", False),
        ("math 3 +5 -4 =", "3 ; +5 8 -4 4", False),
        ("code ( a + b ) * c :", "a b + c *", True),
        ("code ( a + b ) * c :", "c b a + *", True),  # another program of the same function
        ("code ( a + b ) * c :", "a c * b c * +", True),
        ("code ( a + b ) * c :", "a b + c", False),
        ("code ( a + b ) * c :", "a b * c *", False),
        ("code ( a + b ) * c :", "9 [ 9 [ 9 [ ] ] ]", False),
        ("code ( a + b ) * c :", "", False),
        ("code a ^ 3 - ( b * 2 ) :", "1 3 [ a * ] b 2 * -", True),
    ],
)
def test_the_outcome_is_judged(prompt: str, answer: str, right: bool) -> None:
    assert verify(prompt, answer) is right


def test_expressions_agree_with_python() -> None:
    for item in make_items(400, seed=2, split="heldout"):
        if item.family == "code":
            text = item.prompt.removeprefix("code").removesuffix(":").replace("^", "**")
            for probe in PROBES:
                assert evaluate(item.prompt.split()[1:-1], probe) == eval(text, {}, dict(probe))
        else:
            start, *steps = map(int, item.prompt.split()[1:-1])
            values = list(itertools.accumulate(steps, operator.add, initial=start))
            assert item.completion.split()[::2] == [str(value % 10) for value in values]


@pytest.mark.parametrize(("family", "split"), [("poetry", "sft"), ("math", "test")])
def test_an_unknown_family_or_split_is_refused(family: str, split: str) -> None:
    with pytest.raises(UsageError, match=r"cannot make a task: there is no family .* choose from"):
        make_item(family, seed=0, split=split, index=0)
