"""Whether two checkpoints speak one language: the same tokenizer, and where texts begin and end in it."""

from collections.abc import Sequence
from typing import Any

from offprincipal.checkpoint import Checkpoint
from offprincipal.errors import InputError
from offprincipal.probes.models import Model, load_tokenizer

CANARY = "Off the principals: 3.14 + x**2\n\tdef f(a): return [a, 'ü', '漢']  # €"
"""Text that two tokenizers with one vocabulary must cut alike: merges and normalisers differ where words do not."""


def one_tokenizer(base: Checkpoint, tuned: Sequence[Checkpoint]) -> Any:
    """The tokenizer that all of them share; a checkpoint without one takes the others'.

    Raises:
        InputError: none has one, or two differ; it says how.
    """
    found = [(each.ref, load_tokenizer(each)) for each in (base, *tuned)]
    having = [(ref, tokenizer) for ref, tokenizer in found if tokenizer is not None]
    if not having:
        asked, do_next = f"probe {base.ref!r}", "copy tokenizer.json and tokenizer_config.json into the folder"
        raise InputError(asked, "no checkpoint has a tokenizer", do_next)
    ref, first = having[0]
    for other_ref, other in having[1:]:
        difference = how_they_differ(first, other)
        if difference:
            do_next = "a KL over tokens needs one vocabulary: choose checkpoints that share it"
            raise InputError(f"probe {other_ref!r} against {ref!r}", f"their tokenizers differ: {difference}", do_next)
    return first


def how_they_differ(first: Any, second: Any) -> str | None:
    """In words, or None where they give every token the same number and cut a difficult text alike."""
    left, right = first.get_vocab(), second.get_vocab()
    for token in sorted(left.keys() & right.keys(), key=left.__getitem__):
        if left[token] != right[token]:
            return f"{token!r} is token {left[token]} in one and {right[token]} in the other"
    only = sorted(left.keys() ^ right.keys(), key=lambda token: left.get(token, right.get(token)))
    if only:
        counts = (
            f"{len(left.keys() - right.keys())} tokens are only in the first and {len(right.keys() - left.keys())}"
        )
        return f"{counts} only in the second, {only[0]!r} among them"
    cuts = [list(tokenizer(CANARY).input_ids) for tokenizer in (first, second)]
    return None if cuts[0] == cuts[1] else "one vocabulary, and yet they cut a text into different tokens"


def ends_of(model: Model, tokenizer: Any) -> list[int]:
    """The tokens that end a text, as the model's generation settings or its tokenizer name them."""
    declared = getattr(model.module.generation_config, "eos_token_id", None)
    declared = tokenizer.eos_token_id if declared is None else declared
    if declared is None:
        return []
    return list(declared) if isinstance(declared, list | tuple) else [declared]


def beginning(tokenizer: Any) -> tuple[int, ...]:
    """What an unprompted sample follows: the beginning-of-text token, else the end-of-text token.

    Raises:
        InputError: the tokenizer has neither.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise InputError("sample without prompts", "the tokenizer names no token to begin with", "give --prompts")
    return (start,)
