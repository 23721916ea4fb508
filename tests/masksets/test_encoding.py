"""Bits and positions against the boolean they came from; what is no mask is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.masksets._encoding import SPARSE, pack, unpack
from offprincipal.measures.seeds import torch_generator


@given(st.lists(st.integers(0, 9), max_size=3), st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_unpack_is_the_inverse_of_pack(shape, density, seed):
    mask = torch.rand(shape, generator=torch_generator(seed, "mask")) < density
    found = unpack(pack(mask), tuple(shape))
    assert found.dtype == torch.bool
    assert torch.equal(found, mask)


@given(st.integers(1, 2000), st.floats(0, 0.1), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_layout_is_the_one_that_the_page_promises(entries, density, seed):
    mask = torch.rand(entries, generator=torch_generator(seed, "mask")) < density
    stored, ones = pack(mask), [i for i in range(entries) if mask[i]]
    if len(ones) < SPARSE * entries:
        assert stored.dtype == torch.int32
        assert stored.tolist() == ones
    else:
        assert stored.dtype == torch.uint8
        assert stored.tolist() == [
            sum(int(mask[i]) << (i % 8) for i in range(start, min(start + 8, entries)))
            for start in range(0, entries, 8)
        ]
    assert stored.nbytes <= -(-entries // 8)


def test_int64_positions_read_back():
    assert unpack(torch.tensor([1, 3]), (2, 2)).tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize(
    ("stored", "shape", "words"),
    [
        (torch.tensor([3, 1], dtype=torch.int32), (5,), "do not rise within its 5 entries"),
        (torch.tensor([1, 1], dtype=torch.int32), (5,), "do not rise"),
        (torch.tensor([-1, 1], dtype=torch.int32), (5,), "do not rise"),
        (torch.tensor([5], dtype=torch.int32), (5,), "do not rise"),
        (torch.tensor([1, 2], dtype=torch.uint8), (5,), "2 bytes of bits for 5 entries"),
        (torch.tensor([0b100000], dtype=torch.uint8), (5,), "beyond its last entry"),
    ],
)
def test_what_is_no_mask_of_the_shape_is_refused(stored, shape, words):
    with pytest.raises(ValueError, match=words):
        unpack(stored, shape)


def test_a_view_is_packed_as_it_reads(tmp_path):
    whole = torch.rand(20, 30, generator=torch_generator(0, "mask")) < 0.5
    assert torch.equal(unpack(pack(whole.T), (30, 20)), whole.T)
    assert np.array_equal(pack(whole[3:7]).numpy(), pack(whole[3:7].clone()).numpy())
