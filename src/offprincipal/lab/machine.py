"""The stack machine that judges the *code* family: every program ends, whatever the model wrote.

A program is a list of words. ``a b c`` push an input, ``0`` to ``9`` push a digit, ``+ - *`` take two numbers and push
one, ``dup swap drop`` move the top of the stack, and ``[ ... ]`` takes a number n and runs its body n times.
"""

from collections.abc import Mapping, Sequence

ARITHMETIC = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y}
INPUTS = ("a", "b", "c")
DIGITS = tuple("0123456789")
STACK_WORDS = ("dup", "swap", "drop")


class BadProgram(Exception):
    """The program has no output: it is malformed, or it ran out of a bound. The message says which."""


def run_program(
    words: Sequence[str],
    inputs: Mapping[str, int],
    *,
    max_steps: int = 256,
    max_stack: int = 32,
    max_abs: int = 10**12,
) -> int:
    """Run a program and return the one number that it leaves on the stack.

    Args:
        words: the program, one word each.
        inputs: the values of ``a``, ``b`` and ``c``.
        max_steps: words executed before the machine gives up; a pass over a loop's empty body counts as one.
        max_stack: numbers on the stack at once.
        max_abs: largest magnitude of any number (repeated squaring would otherwise eat the memory).

    Raises:
        BadProgram: unknown word, unbalanced brackets, too little on the stack, not exactly one number left at the
            end, or a bound exceeded.

    The language is ours. Left out on purpose: conditions, jumps, definitions.

    >>> run_program("a b + dup *".split(), {"a": 1, "b": 2, "c": 0})
    9
    >>> run_program("1 3 [ a * ]".split(), {"a": 2, "b": 0, "c": 0})
    8
    """
    closing = _match_brackets(words)
    stack: list[int] = []
    loops: list[list[int]] = []  # [first word of the body, passes left]
    at = steps = 0
    while at < len(words):
        steps += 1
        if steps > max_steps:
            raise BadProgram(f"more than {max_steps} steps")
        word = words[at]
        if word == "[":
            loops.append([at + 1, _take(stack)])
            at = _next_pass(loops, closing[at])
        elif word == "]":
            at = _next_pass(loops, at)
        else:
            _execute(word, stack, inputs)
            at += 1
        if len(stack) > max_stack:
            raise BadProgram(f"more than {max_stack} numbers on the stack")
        if stack and abs(stack[-1]) > max_abs:
            raise BadProgram(f"a number beyond {max_abs}")
    if len(stack) != 1:
        raise BadProgram(f"{len(stack)} numbers left instead of 1")
    return stack[0]


def _next_pass(loops: list[list[int]], closing: int) -> int:
    """Where to go on: at the body of the innermost loop if a pass is left, else behind its closing bracket."""
    if loops[-1][1] > 0:
        loops[-1][1] -= 1
        return loops[-1][0]
    loops.pop()
    return closing + 1


def _execute(word: str, stack: list[int], inputs: Mapping[str, int]) -> None:
    if word in ARITHMETIC:
        right, left = _take(stack), _take(stack)
        stack.append(ARITHMETIC[word](left, right))
    elif word in INPUTS:
        stack.append(inputs[word])
    elif word in DIGITS:
        stack.append(int(word))
    elif word == "dup":
        top = _take(stack)
        stack += [top, top]
    elif word == "swap":
        top, below = _take(stack), _take(stack)
        stack += [top, below]
    elif word == "drop":
        _take(stack)
    else:
        raise BadProgram(f"unknown word {word!r}")


def _take(stack: list[int]) -> int:
    if not stack:
        raise BadProgram("the stack is empty")
    return stack.pop()


def _match_brackets(words: Sequence[str]) -> dict[int, int]:
    """From the place of each ``[`` to the place of its ``]``."""
    opened: list[int] = []
    pairs: dict[int, int] = {}
    for at, word in enumerate(words):
        if word == "[":
            opened.append(at)
        elif word == "]":
            if not opened:
                raise BadProgram("']' without '['")
            pairs[opened.pop()] = at
    if opened:
        raise BadProgram("'[' without ']'")
    return pairs
