"""One pair to one row: the columns are those of the schema, the curves add up."""

import numpy as np
import pytest
import torch

from offprincipal import rows, schema
from offprincipal.checkpoint import open_checkpoint
from offprincipal.measures import bits
from offprincipal.measures.masks import ALPHAS
from offprincipal.pairs import pair


@pytest.fixture
def measured(checkpoint):
    plan = pair(open_checkpoint(checkpoint("base")), open_checkpoint(checkpoint("rl", delta=3e-5)))
    return {p.name: (p, *p.load(), rows.measure(p, *p.load(), rows.Settings())) for p in plan.pairs}


def test_every_column_is_in_the_schema(measured):
    for _, _, _, found in measured.values():
        assert set(found.columns) <= set(schema.SCHEMA.names)


def test_curves_add_up_to_the_counts(measured):
    _, before, after, found = measured["model.layers.0.mlp.up_proj.weight"]
    mask = bits.changed(before, after)
    curve = {name: (x, y) for name, x, y in found.curves}
    assert curve["ulps"][1].sum() == curve["row_changed"][1].sum() == curve["col_changed"][1].sum() == mask.sum()
    assert np.array_equal(curve["row_changed"][1], mask.sum(dim=1).numpy())
    assert list(curve["low_count"][0]) == list(ALPHAS)
    assert curve["low_count"][1][-1] == found.columns["low_changed"]


def test_long_profiles_are_binned_without_loss():
    counted = np.arange(1300)
    _, x, y = rows._profile("row_changed", counted)
    assert (len(x), y.sum(), x[0]) == (rows.PROFILE_POINTS, counted.sum(), 0)
    assert rows._profile("row_changed", np.zeros(0, np.int64))[1].size == 0


def test_vectors_have_counts_but_no_profiles(measured):
    _, _, _, found = measured["model.norm.weight"]
    assert found.columns["counted"] == 32
    assert not {"row_changed", "col_changed"} & {name for name, _, _ in found.curves}


def test_a_tensor_of_three_axes_is_measured_as_rows(checkpoint):
    plan = pair(open_checkpoint(checkpoint("base")), open_checkpoint(checkpoint("rl", delta=3e-5)))
    found = rows.measure(plan.pairs[0], torch.zeros(2, 3, 4), torch.ones(2, 3, 4), rows.Settings(geometry=False))
    assert (found.columns["out_features"], found.columns["in_features"], found.columns["changed"]) == (2, 12, 24)
