import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from offprincipal.errors import InputError
from offprincipal.measures import bits
from offprincipal.measures.trajectory import Trajectory, random_walk_linearity


def a_run(shape=(24, 32), checkpoints=4, seed=0, scale=3e-3, dtype=torch.bfloat16):
    """A base and its checkpoints: a random walk of float32 masters, stored in `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    master = torch.randn(shape, generator=generator)
    base = master.to(dtype)
    master, stored = base.float(), []
    for _ in range(checkpoints):
        master = master + scale * torch.randn(shape, generator=generator)
        stored.append(master.to(dtype))
    return base, stored


def follow(base, stored, steps=None, **options):
    walk = Trajectory(base, steps or range(1, len(stored) + 1), **options)
    for tuned in stored:
        walk.update(tuned)
    return walk.result()


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.integers(2, 12), st.integers(2, 12)), st.integers(2, 5), st.integers(0, 2**20))
def test_counts_and_linearity_are_the_literal_ones(shape, checkpoints, seed):
    base, stored = a_run(shape, checkpoints, seed)
    steps = np.cumsum(np.random.default_rng(seed).integers(1, 9, checkpoints)).tolist()
    path = follow(base, stored, steps)
    masks = [bits.changed(base, tuned) for tuned in stored]
    ever = torch.stack(masks).any(dim=0)
    assert path.never == int((~ever).sum())
    assert path.cancelled == int((ever & ~masks[-1]).sum())
    assert path.effective == int(masks[-1].sum())
    explained = variation = straight = 0.0
    for weights in torch.stack([base, *stored]).double().reshape(checkpoints + 1, -1).T.numpy():
        spread = ((weights - weights.mean()) ** 2).sum()
        if spread > 0:
            r2 = stats.linregress([0, *steps], weights).rvalue ** 2
            explained, variation, straight = explained + r2 * spread, variation + spread, straight + (r2 > 0.7)
    assert path.variation_sq == pytest.approx(variation, rel=1e-9, abs=1e-18)
    assert path.linear_sq == pytest.approx(explained, rel=1e-9, abs=1e-18)
    assert abs(path.straight - straight) <= 1  # an R2 at the threshold itself
    assert path.moved == int(ever.sum())


def test_steps_against_svd_and_masks():
    base, stored = a_run()
    path = follow(base, stored, k=4)
    end = torch.linalg.svd(stored[-1].double() - base.double())
    end_mask = bits.changed(base, stored[-1])
    previous = base
    for step, tuned in zip(path.steps, stored, strict=True):
        delta = tuned.double() - base.double()
        _, values, right = torch.linalg.svd(delta)
        mask = bits.changed(base, tuned)
        assert step.changed == mask.sum()
        assert step.changed_since_previous == bits.changed(previous, tuned).sum()
        assert step.delta_sq == pytest.approx(float(delta.square().sum()))
        assert step.rank1_sq == pytest.approx(float(values[0] ** 2))
        shared = right[:4] @ end.Vh[:4].T
        assert step.sim_end_sq == pytest.approx(float(shared.square().sum()), rel=1e-8)
        assert step.sim_end_k == 4
        assert step.sim_end_chance == pytest.approx(4 / 32)
        if step.with_end:
            assert step.with_end.both == int((mask & end_mask).sum())
            assert step.with_end.either == int((mask | end_mask).sum())
        previous = tuned
    assert path.steps[-1].with_end is None
    assert path.steps[-1].sim_end_sq == pytest.approx(4)


def test_a_straight_path_is_straight_and_a_walk_is_its_null():
    base = torch.zeros(50, 60)
    direction = torch.randn(50, 60, generator=torch.Generator().manual_seed(0))
    line = follow(base, [t * direction for t in (1, 2, 5)], [1, 2, 5]).row()
    assert line["linear_r2_energy"] == pytest.approx(1)
    assert line["straight"] == line["moved"] == 3000
    _, stored = a_run((50, 60), 8, dtype=torch.float32)
    start, stored = a_run((100, 100), 8, dtype=torch.float32)
    walk = follow(start, stored).row()
    assert walk["linear_r2_energy"] == pytest.approx(walk["linear_random_walk"], abs=0.02)


def test_random_walk_null_against_simulation():
    at = torch.tensor([0.0, 1.0, 3.0, 4.0, 9.0], dtype=torch.float64)
    rng = np.random.default_rng(0)
    walks = np.cumsum(rng.normal(size=(20000, 4)) * np.sqrt(np.diff(at)), axis=1)
    walks = np.concatenate([np.zeros((20000, 1)), walks], axis=1)
    offset, centred = walks - walks.mean(axis=1, keepdims=True), (at - at.mean()).numpy()
    explained = (offset @ centred) ** 2 / (centred**2).sum()
    assert random_walk_linearity(at) == pytest.approx(explained.sum() / (offset**2).sum(), rel=0.02)


def test_rank_one_gaussian_null():
    delta = torch.randn(300, 400, generator=torch.Generator().manual_seed(0))
    step = follow(torch.zeros(300, 400), [delta]).steps[0]
    assert step.rank1_sq / step.delta_sq == pytest.approx(step.rank1_gauss, rel=0.05)


def test_a_low_rank_end_is_compared_within_its_rank():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(40, 2, generator=generator), torch.randn(2, 50, generator=generator)
    path = follow(torch.zeros(40, 50), [0.5 * left @ right, left @ right])
    assert [step.kept for step in path.steps] == [2, 2]
    assert path.steps[0].sim_end_sq / path.steps[0].sim_end_k == pytest.approx(1)


def test_nothing_moved():
    base, _ = a_run()
    path = follow(base, [base, base])
    assert (path.never, path.cancelled, path.effective, path.moved) == (24 * 32, 0, 0, 0)
    assert path.row()["linear_r2_energy"] is None
    assert path.rows()[0]["kept"] == 0
    assert path.rows()[0]["sim_end_sq"] is None


def test_back_at_the_base_is_cancelled_not_never():
    base = torch.ones(2, 4)
    path = follow(base, [2 * base, base], [10, 20])
    assert (path.never, path.cancelled, path.effective) == (0, 8, 0)


def test_nonfinite_entries_are_measured_around_and_counted():
    base, stored = a_run()
    stored[0][0, 0] = float("nan")
    path = follow(base, stored)
    assert [step.nonfinite for step in path.steps] == [1, 0, 0, 0]
    assert all(np.isfinite(step.delta_sq) and np.isfinite(step.rank1_sq) for step in path.steps)


@pytest.mark.parametrize(
    ("shape", "path"), [((7,), True), ((24, 32), False), ((0, 4), False), ((1, 5), True), ((), True)]
)
def test_vectors_and_masks_alone(shape, path):
    base, stored = a_run(shape)
    found = follow(base, stored, path=path)
    assert found.steps[0].rank1_sq is None
    assert (found.moved is None) is not path
    assert found.never + found.cancelled + found.effective == base.numel()


def test_rows_are_flat_and_the_agreement_is_of_the_steps():
    base, stored = a_run()
    path = follow(base, stored)
    for row in [path.row(), *path.rows()]:
        assert all(value is None or isinstance(value, int | float) for value in row.values())
    assert len({tuple(row) for row in path.rows()}) == 1
    assert path.agreement.runs == 4
    assert path.agreement.rows.pearson > 0
    assert follow(base, stored[:1]).row()["linear_r2_energy"] is None


class TestErrors:
    @pytest.mark.parametrize("steps", [[], [2, 1], [0, 1], [1, 1]])
    def test_steps_that_do_not_rise(self, steps):
        message = r"^cannot follow 'w' over a run: the steps are \[.*\]; give rising step numbers above 0"
        with pytest.raises(InputError, match=message):
            Trajectory(torch.zeros(2, 2), steps, name="w")

    def test_too_many(self):
        message = r"^cannot add checkpoint 2 of 'w': only 1 steps were announced; give one step per checkpoint$"
        with pytest.raises(InputError, match=message):
            Trajectory(torch.zeros(2, 2), [1], name="w").update(torch.ones(2, 2)).update(torch.ones(2, 2))

    def test_too_few(self):
        message = (
            r"^cannot summarise the path of 'w': 0 of 1 checkpoints were added; add every checkpoint, the last one"
        )
        with pytest.raises(InputError, match=message):
            Trajectory(torch.zeros(2, 2), [1], name="w").result()

    def test_another_shape(self):
        message = (
            r"^cannot add checkpoint 1 of 'w': its shape is \(3,\) and the base's is \(2, 2\); give checkpoints of one"
        )
        with pytest.raises(InputError, match=message):
            Trajectory(torch.zeros(2, 2), [1], name="w").update(torch.zeros(3))
