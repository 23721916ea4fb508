"""Two families of problems whose answers can be checked: *math* with a scratchpad, *code* for a stack machine.

A problem and its worked answer are a pure function of (seed, split, family, index), drawn from a hash, so that any
part of the data can be made again anywhere, in any order. Problems are text, one word per token.

*math*: ``math 3 +5 -4 +9 =``, on a clock of ten hours, is answered by the value after each step, ``3 +5 8 -4 4 +9 3``.
*code*: ``code ( a + b ) * c ^ 3 :`` is answered by a program for ``machine.run_program``, ``a b + 1 3 [ c * ] *``. Any
program that computes the expression is right; it is run, not compared.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from offprincipal.errors import UsageError
from offprincipal.lab.machine import ARITHMETIC, DIGITS, INPUTS, STACK_WORDS, BadProgram, run_program

FAMILIES = ("math", "code")

# The share of all problems that each split owns, in sixteenths. A problem belongs to a split by the hash of its text,
# so that no two splits share one, for whatever seeds.
SPLITS = {"pretrain": 8, "sft": 2, "rlvr-1": 2, "rlvr-2": 2, "heldout": 2}

# The format that the base never wrote: the same answer with this word after each word.
BREAK = ";"

TURNS = tuple(f"{sign}{digit}" for sign in "+-" for digit in DIGITS[1:])
WORDS = ("math", "code", "=", ":", "(", ")", "^", *DIGITS, *INPUTS, *ARITHMETIC, *STACK_WORDS, "[", "]", *TURNS, BREAK)

# Inputs on which a program is run; large and without relations, so that two different small expressions do not agree.
PROBES = ({"a": 23, "b": 41, "c": 67}, {"a": 37, "b": 11, "c": 5}, {"a": 2, "b": 71, "c": 29})


@dataclass(frozen=True)
class Item:
    """A problem and one worked answer: `family`, `prompt`, `completion`, and whether a step in it is wrong."""

    family: str
    prompt: str
    completion: str
    corrupted: bool


class Draws:
    """Numbers from one hash: 256 bits, spent by repeated division. Every version of Python draws the same."""

    def __init__(self, *key: object):
        self._bits = int.from_bytes(hashlib.sha256("\x1f".join(map(str, key)).encode()).digest(), "big")

    def below(self, n: int) -> int:
        """The next number in 0..n-1; the bias is below n / 2**(256 - bits spent), nothing for our few draws."""
        self._bits, rest = divmod(self._bits, n)
        return rest

    def pick(self, options: Sequence[str]) -> str:
        """The next of the options."""
        return options[self.below(len(options))]


def make_item(family: str, *, seed: int, split: str, index: int, corruption: float = 0.0) -> Item:
    """The item with this number: a pure function of the arguments.

    Args:
        family: ``"math"`` or ``"code"``.
        seed: of the whole laboratory.
        split: one of `SPLITS`. Problems of different splits never coincide; within a split they may repeat.
        index: number of the item, from 0.
        corruption: probability that one step is wrong (uniformly chosen); a wrong math step is carried on
            consistently. A corrupted answer is always refused by `verify`.

    Raises:
        UsageError: an unknown family or split.

    >>> make_item("math", seed=0, split="sft", index=1)
    Item(family='math', prompt='math 6 -4 -3 -5 -5 =', completion='6 -4 2 -3 9 -5 4 -5 9', corrupted=False)
    """
    if family not in FAMILIES or split not in SPLITS:
        found = f"there is no family {family!r} with a split {split!r}"
        raise UsageError("make a task", found, f"choose from {FAMILIES} and {tuple(SPLITS)}")
    attempt = 0
    while True:
        draws = Draws(seed, split, family, index, attempt)
        prompt, solve = _DRAW[family](draws)
        if split_of(prompt) == split and not _is_nothing(prompt):
            break
        attempt += 1
    corrupted = draws.below(10**6) < corruption * 10**6
    return Item(family, prompt, solve(draws if corrupted else None), corrupted)


def make_items(
    count: int,
    *,
    seed: int,
    split: str,
    corruption: float = 0.0,
    first: int = 0,
    families: Sequence[str] = FAMILIES,
) -> Iterator[Item]:
    """Items `first` to `first + count`, the families taking turns."""
    for index in range(first, first + count):
        family = families[index % len(families)]
        yield make_item(family, seed=seed, split=split, index=index, corruption=corruption)


def split_of(prompt: str) -> str:
    """The split that owns a problem: by the hash of its text, in proportion to `SPLITS`."""
    place = hashlib.sha256(prompt.encode()).digest()[0] % sum(SPLITS.values())
    for name, end in zip(SPLITS, itertools.accumulate(SPLITS.values()), strict=True):
        if place < end:
            return name
    raise AssertionError("the shares of SPLITS cover every place")


def verify(prompt: str, completion: str, *, broken: bool = False) -> bool:
    """Whether the final answer is right. Only the outcome counts: no step of a scratchpad, no wording of a program.

    Args:
        prompt: as made by `make_item`.
        completion: what was written after it, without the end token.
        broken: judge the off-distribution format; the plain one is then wrong, and the other way round.

    >>> verify("math 3 +5 -4 =", "3 +5 8 -4 4")
    True
    >>> verify("math 3 +5 -4 =", "3 ; +5 ; 8 ; -4 ; 4 ;", broken=True)
    True
    >>> verify("code ( a + b ) * c :", "c a b + *")
    True
    """
    words = completion.split()
    if broken:
        if len(words) % 2 or any(word != BREAK for word in words[1::2]):
            return False
        words = words[::2]
    if BREAK in words:
        return False
    family, *problem = prompt.split()
    return _VERIFY[family](problem[:-1], words)


def break_up(completion: str) -> str:
    """The same answer in the format that the base never wrote.

    >>> break_up("3 +5 8")
    '3 ; +5 ; 8 ;'
    """
    return " ".join(f"{word} {BREAK}" for word in completion.split())


# math ----------------------------------------------------------------------------------------------------------------


def _draw_math(draws: Draws) -> tuple[str, Callable[[Draws | None], str]]:
    """Three to five steps on a clock of ten hours, each by one to nine, forward or back."""
    start = draws.below(10)
    steps = [draws.pick(TURNS) for _ in range(3 + draws.below(3))]

    def solve(wrong: Draws | None) -> str:
        at = wrong.below(len(steps)) if wrong else -1
        value, written = start, [str(start)]
        for number, step in enumerate(steps):
            value = (value + int(step)) % 10
            if wrong and number == at:  # another digit; the next steps go on from there, so that the end is wrong too
                value = (value + 1 + wrong.below(9)) % 10
            written += [step, str(value)]
        return " ".join(written)

    return f"math {start} {' '.join(steps)} =", solve


def _verify_math(problem: list[str], words: list[str]) -> bool:
    """The last word is the value of the problem."""
    return bool(words) and words[-1] == str(sum(map(int, problem)) % 10)


# code ----------------------------------------------------------------------------------------------------------------

_LEAVES = (*INPUTS, *DIGITS[2:])


def _draw_code(draws: Draws) -> tuple[str, Callable[[Draws | None], str]]:
    """Two operators over three leaves, one of which may be a power, or three operators over four leaves."""
    power = draws.below(5)  # 0, 1: four leaves; 2, 3, 4: the exponent of one of three leaves, 3 or 4 by a loop
    leaves = [draws.pick(_LEAVES) for _ in range(4 if power < 2 else 3)]
    texts, programs = list(leaves), [[leaf] for leaf in leaves]
    if power >= 2:
        at = draws.below(3)
        texts[at] = f"{leaves[at]} ^ {power}"
        programs[at] = [leaves[at], "dup", "*"] if power == 2 else ["1", str(power), "[", leaves[at], "*", "]"]
    left, middle, right = (draws.pick("+-*") for _ in range(3))
    if power < 2:
        text = f"( {texts[0]} {left} {texts[1]} ) {middle} ( {texts[2]} {right} {texts[3]} )"
        program = [*programs[0], *programs[1], left, *programs[2], *programs[3], right, middle]
    elif draws.below(2):
        text = f"( {texts[0]} {left} {texts[1]} ) {right} {texts[2]}"
        program = [*programs[0], *programs[1], left, *programs[2], right]
    else:
        text = f"{texts[0]} {left} ( {texts[1]} {right} {texts[2]} )"
        program = [*programs[0], *programs[1], *programs[2], right, left]
    prompt = f"code {text} :"
    return prompt, lambda wrong: " ".join(_spoil(prompt, program, wrong) if wrong else program)


def _is_nothing(prompt: str) -> bool:
    """A code problem that is zero on every probe: in (a - a) * (b - b) no single wrong word would show."""
    family, *problem = prompt.split()
    return family == "code" and not any(evaluate(problem[:-1], probe) for probe in PROBES)


def _spoil(prompt: str, program: list[str], wrong: Draws) -> list[str]:
    """The program with one operator or operand replaced, such that its output changes.

    It ends: where the value is not zero, one of the other two operators at the top gives another value.
    """
    bits = wrong.below(2**64)
    for attempt in itertools.count():
        draws = Draws(prompt, bits, attempt)
        at = draws.below(len(program))
        group = next((g for g in ("+-*", _LEAVES) if program[at] in g), None)
        if group is None:
            continue
        spoiled = [*program[:at], draws.pick(group), *program[at + 1 :]]
        if not verify(prompt, " ".join(spoiled)):
            return spoiled
    raise AssertionError("count() has no end")


def _verify_code(problem: list[str], words: list[str]) -> bool:
    """The program gives the value of the expression on every probe."""
    try:
        return all(run_program(words, probe) == evaluate(problem, probe) for probe in PROBES)
    except BadProgram:
        return False


def evaluate(expression: Sequence[str], inputs: dict[str, int]) -> int:
    """The value of an infix expression in which every inner operation stands in parentheses.

    >>> evaluate("( a + 2 ) * b ^ 3".split(), {"a": 1, "b": 2})
    24
    """
    value, rest = _operand(list(expression), inputs)
    while rest:
        operator = rest[0]
        right, rest = _operand(rest[1:], inputs)
        value = ARITHMETIC[operator](value, right)
    return value


def _operand(words: list[str], inputs: dict[str, int]) -> tuple[int, list[str]]:
    if words[0] == "(":
        end = words.index(")")
        value, rest = evaluate(words[1:end], inputs), words[end + 1 :]
    else:
        value, rest = inputs[words[0]] if words[0] in INPUTS else int(words[0]), words[1:]
    if rest and rest[0] == "^":
        value, rest = value ** int(rest[1]), rest[2:]
    return value, rest


_DRAW = {"math": _draw_math, "code": _draw_code}
_VERIFY = {"math": _verify_math, "code": _verify_code}
