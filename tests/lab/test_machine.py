"""The stack machine: what programs give, and that every program ends."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offprincipal.lab.machine import DIGITS, INPUTS, STACK_WORDS, BadProgram, run_program

INPUT = {"a": 2, "b": 3, "c": 5}


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("7", 7),
        ("a b c + *", 16),
        ("a b -", -1),
        ("a b swap -", 1),
        ("b dup *", 9),
        ("a b drop", 2),
        ("1 4 [ a * ]", 16),
        ("1 0 [ a * ]", 1),
        ("0 3 [ 2 [ 1 + ] ]", 6),
        ("1 2 [ ]", 1),
        ("4 a b - [ 9 * ]", 4),  # a negative number of passes is none
    ],
)
def test_programs_give_what_they_should(program: str, value: int) -> None:
    assert run_program(program.split(), INPUT) == value


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("", "0 numbers left instead of 1"),
        ("a b", "2 numbers left instead of 1"),
        ("+", "the stack is empty"),
        ("a +", "the stack is empty"),
        ("[ a ]", "the stack is empty"),
        ("a 3 [ dup", r"'\[' without '\]'"),
        ("a ]", r"'\]' without '\['"),
        ("a plus", "unknown word 'plus'"),
        ("12", "unknown word '12'"),
        ("a 9 [ dup * ]", "a number beyond 1000000000000"),
        ("9 [ 9 [ 9 [ 9 [ ] ] ] ] a", "more than 256 steps"),
        ("9 [ 9 [ a ] ]", "more than 32 numbers on the stack"),
    ],
)
def test_bad_programs_say_why(program: str, message: str) -> None:
    with pytest.raises(BadProgram, match=message):
        run_program(program.split(), INPUT)


def test_bounds_are_the_caller_s() -> None:
    assert run_program(["a", "b", "+"], INPUT, max_steps=3, max_stack=2, max_abs=5) == 5
    for tighter in ({"max_steps": 2}, {"max_stack": 1}, {"max_abs": 4}):
        with pytest.raises(BadProgram):
            run_program(["a", "b", "+"], INPUT, **tighter)


@given(st.lists(st.sampled_from([*INPUTS, *DIGITS, *STACK_WORDS, "+", "-", "*", "[", "]", "?"]), max_size=40))
def test_any_text_ends_with_a_number_or_a_reason(words: list[str]) -> None:
    with contextlib.suppress(BadProgram):
        assert abs(run_program(words, INPUT)) <= 10**12
