"""Slices in one reused buffer against the whole matrix widened at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offprincipal.measures import _slices
from offprincipal.measures._slices import slices, tall

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from(DTYPES), st.sampled_from([torch.float32, torch.float64]),
    st.booleans(), st.booleans(), st.booleans(), st.integers(1, 64),
)  # fmt: skip
def test_slices_together_are_the_matrix(out, into, stored, dtype, subtract, holed, turned, entries):
    generator = torch.Generator().manual_seed(out * 41 + into)
    weight, minus = ((torch.randn(out, into, generator=generator)).to(stored) for _ in range(2))
    if turned:  # a view whose rows are not contiguous
        weight, minus = weight.T.contiguous().T, minus.T.contiguous().T
    holes = torch.rand(out, into, generator=generator) < 0.2 if holed else None
    want = weight.to(dtype) - minus.to(dtype) if subtract else weight.to(dtype)
    want = want if holes is None else want.masked_fill(holes, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_slices, "SLICE_ENTRIES", entries)
        patch.setattr(_slices, "SLICE_ROWS", 3)
        made = slices(weight, minus if subtract else None, device="cpu", holes=holes, dtype=dtype)
        parts = [(start, stop, part.clone()) for start, stop, part in made]
    assert [start for start, _, _ in parts] == [0, *(stop for _, stop, _ in parts[:-1])]
    assert torch.equal(torch.cat([part for _, _, part in parts]), tall(want))


def test_a_slice_is_overwritten_by_the_next():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_slices, "SLICE_ENTRIES", 2)
        patch.setattr(_slices, "SLICE_ROWS", 1)
        first, second = (part for _, _, part in slices(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), device="cpu"))
    assert first.data_ptr() == second.data_ptr()
    assert first.tolist() == [[3.0, 4.0]]
