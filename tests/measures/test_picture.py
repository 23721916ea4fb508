"""Pictures of masks keep the density, cell by cell."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offprincipal.measures.picture import cells, grid


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 1000))
def test_cells_equal_a_literal_mean_over_each_block(height, width, seed):
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.3
    found, (rows, columns) = cells(mask), grid((height, width))
    assert found.shape == (rows, columns)
    i, j = seed % rows, seed % columns
    tops, lefts = (
        [n * size // most for n in range(most)] + [size] for size, most in ((height, rows), (width, columns))
    )
    block = mask[tops[i] : tops[i + 1], lefts[j] : lefts[j + 1]]
    assert float(found[i, j]) == pytest.approx(float(block.double().mean()))


def test_a_stripe_keeps_its_density():
    mask = torch.zeros(640, 640, dtype=torch.bool)
    mask[::10] = True
    assert np.allclose(cells(mask), 0.1)
