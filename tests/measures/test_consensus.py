import math
import pickle
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.errors import InputError
from offprincipal.measures.consensus import Consensus


def tally(codes, masks):
    counted = Consensus(codes)
    for mask in masks:
        counted.update(mask)
    return counted


def random_case(shape, runs, seed=0, codes=5, density=0.4):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, codes, shape, generator=generator) * 6000,
        [torch.rand(shape, generator=generator) < density for _ in range(runs)],
    )


def placements(codes, mask):
    """Every mask with the same changed count per code: the matched null of one run, all equally likely."""
    codes, mask = codes.reshape(-1), mask.reshape(-1)
    choices = []
    for code in codes.unique():
        at = (codes == code).nonzero().flatten().tolist()
        choices.append(list(combinations(at, int(mask[at].sum()))))
    for chosen in product(*choices):
        drawn = torch.zeros(len(codes), dtype=torch.bool)
        drawn[[i for part in chosen for i in part]] = True
        yield drawn


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 5), st.integers(0, 2**20))
def test_counts_are_the_literal_ones(shape, runs, seed):
    codes, masks = random_case(shape, runs, seed)
    found = tally(codes, masks).result()
    stack = torch.stack(masks)
    assert found.changed == tuple(int(mask.sum()) for mask in masks)
    assert found.times.tolist() == [int((stack.sum(dim=0) == k).sum()) for k in range(runs + 1)]
    assert torch.equal(found.row_counts, stack.sum(dim=2))
    assert torch.equal(found.col_counts, stack.sum(dim=1))
    assert [(p.left, p.right) for p in found.pairs] == sorted(combinations(range(runs), 2), key=lambda p: (p[1], p[0]))
    for pair in found.pairs:
        a, b = masks[pair.left], masks[pair.right]
        assert (pair.both, pair.either) == (int((a & b).sum()), int((a | b).sum()))
        assert pair.changed_left == a.sum()
        assert pair.changed_right == b.sum()
    assert found.times_matched.sum() == pytest.approx(codes.numel())
    assert found.row_matched.sum() == pytest.approx(float(stack.sum()))
    assert found.col_matched.sum() == pytest.approx(float(stack.sum()))


def test_matched_null_is_the_mean_over_all_placements():
    codes = torch.tensor([[1, 1, 2, 1], [2, 2, 1, 2]])
    masks = [torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0]]).bool(), torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]).bool()]
    found = tally(codes, masks).result(heads=2, head_axis=1)
    both, times, rows, columns, heads = [], [], [], [], []
    for a, b in product(placements(codes, masks[0]), placements(codes, masks[1])):
        share = (a.double() + b.double()).reshape(2, 4)
        both.append(float((a & b).sum()))
        times.append([float((share == k).sum()) for k in range(3)])
        rows.append(float((share.mean(dim=1) / 2).var(correction=0)))
        columns.append(float((share.mean(dim=0) / 2).var(correction=0)))
        heads.append(float((share.reshape(2, 2, 2).mean(dim=(0, 2)) / 2).var(correction=0)))
    (pair,) = found.pairs
    assert pair.both_matched == pytest.approx(np.mean(both))
    assert pair.both_matched_var == pytest.approx(np.var(both))
    assert found.times_matched.tolist() == pytest.approx(np.mean(times, axis=0).tolist())
    assert found.rows.variance_matched.mean == pytest.approx(np.mean(rows))
    assert found.columns.variance_matched.mean == pytest.approx(np.mean(columns))
    assert found.heads.between_matched.mean == pytest.approx(np.mean(heads))
    assert pair.excess_z == pytest.approx((pair.both - np.mean(both)) / np.std(both))


def test_intersections_of_different_pairs_are_uncorrelated_under_the_matched_null():
    codes, masks = random_case((2, 3), 3, seed=4, codes=2, density=0.5)
    drawn = [
        (float((a & b).sum()), float((a & c).sum()), float((b & c).sum()))
        for a, b, c in product(*(placements(codes, mask) for mask in masks))
    ]
    row = tally(codes, masks).result().row()
    assert row["pairs_both_matched_var"] == pytest.approx(np.var(np.sum(drawn, axis=1)))
    assert row["pairs_both_matched"] == pytest.approx(np.mean(np.sum(drawn, axis=1)))


def test_jaccard_null_against_real_draws():
    codes, masks = random_case((40, 50), 2, codes=4)
    (pair,) = tally(codes, masks).result().pairs
    rng, flat = np.random.default_rng(0), codes.reshape(-1).numpy()
    jaccards = []
    for _ in range(800):
        drawn = []
        for mask in masks:
            new = mask.reshape(-1).numpy().copy()
            for code in np.unique(flat):
                new[flat == code] = rng.permutation(new[flat == code])
            drawn.append(new)
        jaccards.append((drawn[0] & drawn[1]).sum() / (drawn[0] | drawn[1]).sum())
    assert np.mean(jaccards) == pytest.approx(pair.jaccard_matched.mean, rel=0.005)
    assert np.std(jaccards) == pytest.approx(pair.jaccard_matched.sd, rel=0.1)


def test_magnitude_alone_explains_runs_that_move_the_same_codes():
    """Two runs that both move mostly the small code agree far above Bernoulli, and not above the matched null."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2, (64, 64), generator=generator)
    chance = torch.where(codes == 0, 0.9, 0.1)
    masks = [torch.rand(64, 64, generator=generator) < chance for _ in range(2)]
    (pair,) = tally(codes, masks).result().pairs
    assert pair.jaccard > 1.5 * pair.jaccard_bernoulli
    assert abs(pair.excess_z) < 3


def test_planted_row_stripes_are_seen_in_rows_only_and_correlate_between_runs():
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 6, (48, 64), generator=generator)
    chance = torch.where(torch.arange(48) % 6 == 0, 0.8, 0.2)[:, None].expand(48, 64)
    masks = [torch.rand(48, 64, generator=generator) < chance for _ in range(3)]
    found = tally(codes, masks).result(heads=8, head_axis=0)
    rows, columns = found.rows, found.columns
    assert rows.variance > rows.variance_matched.mean + 20 * rows.variance_matched.sd
    assert rows.variance > rows.variance_shuffled.mean + 20 * rows.variance_shuffled.sd
    assert rows.gini > rows.gini_matched.mean + 20 * rows.gini_matched.sd
    assert rows.pearson > rows.pearson_matched.mean + 5 * rows.pearson_matched.sd
    assert abs(columns.variance - columns.variance_matched.mean) < 4 * columns.variance_matched.sd
    assert abs(columns.pearson - columns.pearson_matched.mean) < 4 * columns.pearson_matched.sd
    assert found.heads.within > found.heads.within_matched.mean + 20 * found.heads.within_matched.sd
    assert found.heads.between < found.heads.between_matched.mean + 4 * found.heads.between_matched.sd


def test_stripes_of_magnitude_are_in_the_matched_null_and_not_in_the_shuffled_one():
    """Rows of small weights move more: that is magnitude, and the matched null must hold it."""
    generator = torch.Generator().manual_seed(2)
    codes = (torch.arange(40) % 2)[:, None].expand(40, 60).contiguous()
    masks = [torch.rand(40, 60, generator=generator) < torch.where(codes == 0, 0.7, 0.2) for _ in range(2)]
    rows = tally(codes, masks).result().rows
    assert rows.variance > rows.variance_shuffled.mean + 20 * rows.variance_shuffled.sd
    assert abs(rows.variance - rows.variance_matched.mean) < 4 * rows.variance_matched.sd
    assert rows.pearson_matched.mean > 0.9


def test_merging_equals_counting_in_one():
    codes, masks = random_case((7, 13), 4)
    merged = pickle.loads(pickle.dumps(tally(codes, masks[:1]))).merge(tally(codes, masks[1:])).result(name="w").row()
    assert merged == tally(codes, masks).result(name="w").row()


def test_null_depends_on_seed_and_name_only():
    codes, masks = random_case((9, 11), 2)
    counted = tally(codes, masks)
    assert counted.result(seed=1, name="a").row() == counted.result(seed=1, name="a").row()
    assert counted.result(seed=1, name="a").row() != counted.result(seed=1, name="b").row()


def test_row_is_flat_and_holds_numerators_and_denominators():
    codes, masks = random_case((8, 12), 3)
    row = tally(codes, masks).result(heads=4, head_axis=0).row()
    assert all(value is None or isinstance(value, int | float) for value in row.values())
    assert not any(isinstance(value, float) and math.isnan(value) for value in row.values())
    a, b, c = masks
    assert row["pairs_both"] == int((a & b).sum() + (a & c).sum() + (b & c).sum())
    assert row["pairs_either"] == int((a | b).sum() + (a | c).sum() + (b | c).sum())
    assert row["changed_by_all"] == int((a & b & c).sum())
    assert row["head_number"] == 4
    names = "both either changed_left jaccard jaccard_bernoulli jaccard_matched jaccard_matched_sd excess_z"
    assert set(names.split()) <= set(tally(codes, masks).result().pairs[0].row())


def test_curves_are_bounded_and_average_to_the_density():
    codes, masks = random_case((4, 1030), 2)
    curves = tally(codes, masks).result().curves()
    at, share = curves["col_consensus"]
    assert at[:3] == [0.0, 3.0, 6.0]
    assert len(at) == len(share) == 344
    assert share[0] == pytest.approx(torch.stack(masks).double()[:, :, :3].mean().item())
    assert np.mean(curves["row_consensus"][1]) == pytest.approx(torch.stack(masks).double().mean().item())
    assert np.mean(curves["row_consensus_matched"][1]) == pytest.approx(torch.stack(masks).double().mean().item())
    assert sum(curves["consensus_times"][1]) == 4 * 1030


@pytest.mark.parametrize("shape", [(5,), (1, 7), (7, 1), (), (0,), (0, 4), (4, 0)])
def test_thin_tensors_are_counted_without_stripes(shape):
    codes, masks = random_case(shape, 2)
    found = tally(codes, masks).result()
    assert found.counted == codes.numel()
    assert found.rows is None
    assert found.columns is None
    assert found.row()["pairs"] == 1
    assert set(found.curves()) == set(tally(*random_case((4, 4), 2)).result().curves())


@pytest.mark.parametrize("value", [False, True])
def test_nothing_or_everything_changed(value):
    codes, _ = random_case((6, 8), 1)
    found = tally(codes, [torch.full((6, 8), value)] * 2).result(heads=2, head_axis=0)
    assert found.pairs[0].jaccard == float(value)
    assert found.pairs[0].jaccard_matched == type(found.rows.variance_matched)(float(value), 0.0)
    assert found.pairs[0].excess_z == 0
    assert found.rows.variance == 0
    assert found.row()["row_pearson"] is None


def test_one_run_has_stripes_and_no_pair():
    codes, masks = random_case((6, 8), 1)
    row = tally(codes, masks).result().row()
    assert row["pairs"] == 0
    assert row["jaccard_mean"] is None
    assert row["row_variance"] > 0


class TestErrors:
    def test_another_shape(self):
        message = r"^cannot add run 0 to a consensus: its mask is \(2, 2\) and the tensor is \(2, 3\); compare"
        with pytest.raises(InputError, match=message):
            Consensus(torch.zeros(2, 3, dtype=torch.int32)).update(torch.zeros(2, 2, dtype=torch.bool))

    def test_no_run(self):
        message = r"^cannot summarise the consensus of 'w': no run was added; add one mask or more$"
        with pytest.raises(InputError, match=message):
            Consensus(torch.zeros(2, 3, dtype=torch.int32)).result(name="w")

    def test_another_base(self):
        left, right = Consensus(torch.zeros(2, 3, dtype=torch.int32)), Consensus(torch.ones(2, 3, dtype=torch.int32))
        message = (
            "^cannot merge two consensus counts: they were counted on different base weights; merge runs of one tensor"
        )
        with pytest.raises(InputError, match=message):
            left.merge(right)

    def test_heads_that_do_not_divide(self):
        codes, masks = random_case((6, 8), 2)
        message = "^cannot split 'q' into heads: axis 0 has 6 lines and there are 4 heads; look at the configuration"
        with pytest.raises(InputError, match=message):
            tally(codes, masks).result(heads=4, head_axis=0, name="q")
