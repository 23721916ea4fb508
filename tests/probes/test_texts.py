"""Prompt files, batches, and sampling that follows the model's own distribution."""

import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError
from offprincipal.probes.models import load_tokenizer
from offprincipal.probes.texts import Text, batches, check_ids, padded, prompts_of, read_texts, sample
from tests.probes.conftest import loaded


@pytest.fixture(scope="module")
def tokenizer(folders):
    return load_tokenizer(open_checkpoint(folders["base"]))


def written(tmp_path, text, name="p.jsonl"):
    file = tmp_path / name
    file.write_text(text)
    return file


def test_a_prompt_is_scored_from_its_second_token_a_completion_from_its_first(tmp_path, tokenizer):
    lines = [{"prompt": "a b c"}, {"prompt": "a b", "completion": "c d"}, {"prompt": "a", "completion": "b", "id": 7}]
    texts = read_texts(written(tmp_path, "\n".join(map(json.dumps, lines))), tokenizer)
    assert texts == [Text((3, 4, 5), 1, 0), Text((3, 4, 5, 6), 2, 1), Text((3, 4), 1, 2)]
    assert prompts_of(texts[:2]) == [(3, 4, 5), (3, 4)]
    plain = read_texts(written(tmp_path, "a b c\n\n  \nd e\n", "p.txt"), tokenizer)
    assert plain == [Text((3, 4, 5), 1, 0), Text((6, 7), 1, 1)]


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("", "p.txt", "it holds no prompt"),
        ("\n\n", "p.jsonl", "it holds no prompt"),
        ("a", "p.txt", "line 1 has no token to score"),
        ('{"prompt": ""}', "p.jsonl", "line 1 has no token to score"),
        ('{"prompt": "a b", "completion": ""}', "p.jsonl", "line 1 has no token to score"),
        ('{"prompt": "a b"}\n{"prompt', "p.jsonl", "line 2 is not JSON"),
        ('["a b"]', "p.jsonl", "line 1 has no string 'prompt'"),
        ('{"text": "a b"}', "p.jsonl", "line 1 has no string 'prompt'"),
        ('{"prompt": "a b", "completion": 3}', "p.jsonl", "line 1 has no string 'prompt'"),
    ],
)
def test_bad_prompt_files(tmp_path, tokenizer, text, name, words):
    with pytest.raises(InputError, match=words):
        read_texts(written(tmp_path, text, name), tokenizer)


def test_a_file_that_cannot_be_read(tmp_path, tokenizer):
    with pytest.raises(InputError, match="No such file"):
        read_texts(tmp_path / "nowhere.txt", tokenizer)
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="in UTF-8"):
        read_texts(tmp_path / "p.txt", tokenizer)


texts_of_any_length = st.lists(
    st.tuples(st.integers(2, 9), st.integers(1, 8)).filter(lambda pair: pair[1] < pair[0]), min_size=1, max_size=9
)


@given(texts_of_any_length, st.integers(1, 4))
def test_batches_hold_every_scored_token_once(shapes, size):
    texts = [Text(tuple(range(10 * i + 1, 10 * i + 1 + n)), first, i) for i, (n, first) in enumerate(shapes)]
    found = list(batches(texts, size))
    tokens = [token for batch in found for token in batch.following.tolist()]
    assert sorted(tokens) == sorted(token for text in texts for token in text.ids[text.first :])
    assert sorted(text.prompt for batch in found for text in batch.texts) == list(range(len(texts)))
    for batch in found:
        assert batch.seen.sum(1).tolist() == [len(text.ids) for text in batch.texts]
        assert batch.scored.sum(1).tolist() == [len(text.ids) - text.first for text in batch.texts]


def test_texts_that_a_model_cannot_take():
    check_ids([Text((1, 2), 1, 0)], 3, 2, "probe")
    with pytest.raises(InputError, match="prompt 1 holds token 3; the model's vocabulary ends at 3"):
        check_ids([Text((1, 3), 1, 0)], 3, None, "probe")
    with pytest.raises(InputError, match="prompt 5 has 3 tokens, and the model has 2 positions"):
        check_ids([Text((1, 2, 1), 1, 4)], 3, 2, "probe")


def test_samples_follow_the_distribution_of_the_model(folders):
    model = loaded(folders["base"])
    drawn = sample(model, [(3, 4, 5)], 2000, ends=[1], longest=1, seed=0, size=500)
    counts = Counter(text.ids[3] for text in drawn)
    p = model.logits(model.hidden(torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.bool))[0])[-1].softmax(-1)
    for token, share in enumerate(p.tolist()):
        assert abs(counts[token] - 2000 * share) < 5 * (2000 * share * (1 - share)) ** 0.5 + 1


def test_samples_end_where_they_end_and_do_not_depend_on_company(folders):
    model = loaded(folders["base"])
    prompts = [(3, 4, 5), (6,), (7, 8)]
    texts = sample(model, prompts, 3, ends=[1, 9], longest=6, seed=5, size=9)
    assert [text.prompt for text in texts] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for text in texts:
        new = text.ids[text.first :]
        assert text.ids[: text.first] == prompts[text.prompt]
        assert 1 <= len(new) <= 6
        assert not {1, 9} & set(new[:-1])
        assert len(new) == 6 or new[-1] in (1, 9)
    assert sample(model, prompts, 3, ends=[1, 9], longest=6, seed=5, size=2) == texts
    assert sample(model, prompts[:2], 1, ends=[1, 9], longest=6, seed=5) == [texts[0], texts[3]]
    assert sample(model, prompts, 3, ends=[1, 9], longest=6, seed=6) != texts
    before = torch.random.get_rng_state()
    sample(model, prompts, 1, ends=[], longest=2, seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_padding_changes_nothing():
    batch = padded([Text((5, 6, 7), 1, 0), Text((8, 9), 1, 1)])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.following.tolist() == [6, 7, 9]
