"""One tokenizer, or words about how two differ; where texts begin and end."""

import types

import pytest

from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError
from offprincipal.probes.tokens import beginning, ends_of, how_they_differ, one_tokenizer
from tests.probes.conftest import WORDS, save_tokenizer


def opened(*folders):
    return [open_checkpoint(folder) for folder in folders]


def test_the_same_tokenizer_or_none_on_one_side(model):
    base, rl = opened(model("base"), model("rl", delta=0.1, tokenizer=False))
    for pair in ((base, [rl]), (rl, [base]), (base, [base, rl])):
        assert one_tokenizer(*pair)("a b").input_ids == [3, 4]
    with pytest.raises(InputError, match="no checkpoint has a tokenizer"):
        one_tokenizer(rl, [rl])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([*WORDS[:3], "b", "a", *WORDS[5:]], "'a' is token 3 in one and 4 in the other"),
        ([*WORDS, "more"], "0 tokens are only in the first and 1 only in the second, 'more' among them"),
        (WORDS[:-1], "1 tokens are only in the first and 0 only in the second, 'z' among them"),
    ],
)
def test_different_tokenizers_are_told_apart(model, words, found):
    base, other = model("base"), model("other", tokenizer=False)
    save_tokenizer(other, words)
    with pytest.raises(InputError, match=f"their tokenizers differ: {found}; a KL over tokens needs one vocabulary"):
        one_tokenizer(*(lambda a, b: (a, [b]))(*opened(base, other)))


class Cut:
    """A tokenizer of which only this matters: its vocabulary, and how it cuts."""

    bos_token_id = eos_token_id = None

    def __init__(self, size):
        self.size = size

    def get_vocab(self):
        return {"a": 0, "b": 1}

    def __call__(self, text):
        return types.SimpleNamespace(input_ids=[0] * (len(text) // self.size))


def test_one_vocabulary_cut_in_two_ways():
    assert how_they_differ(Cut(1), Cut(1)) is None
    assert how_they_differ(Cut(1), Cut(2)) == "one vocabulary, and yet they cut a text into different tokens"


def test_beginning_and_end():
    start, none = Cut(1), Cut(1)
    start.bos_token_id, start.eos_token_id = 2, 3
    assert beginning(start) == (2,)
    start.bos_token_id = None
    assert beginning(start) == (3,)
    with pytest.raises(InputError, match="names no token to begin with; give --prompts"):
        beginning(none)

    def ended(declared):
        config = types.SimpleNamespace(eos_token_id=declared)
        return types.SimpleNamespace(module=types.SimpleNamespace(generation_config=config))

    assert ends_of(ended([4, 5]), start) == [4, 5]
    assert ends_of(ended(4), start) == [4]
    assert ends_of(ended(None), start) == [3]
    assert ends_of(ended(None), none) == []
