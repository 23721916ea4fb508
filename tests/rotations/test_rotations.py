"""Changes of coordinates against their literal twins; inverses; edits of spectra by what defines them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprincipal import rotations
from offprincipal.errors import InputError, UsageError
from offprincipal.measures.seeds import torch_generator
from offprincipal.rotations import Order, Stretch, Turn

sizes = st.integers(1, 5)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch_generator(seed, str(shape)))


def block_diagonal(turn: Turn, length: int) -> Tensor:
    """The slow twin of a Turn: the whole matrix."""
    count, size = turn.blocks.shape[:2]
    repeats = length // (count * size)
    return torch.block_diag(*(turn.blocks[h // repeats] for h in range(count * repeats)))


@settings(max_examples=40, deadline=None)
@given(count=sizes, size=sizes, repeats=sizes, other=sizes, seed=st.integers(0, 9))
def test_turn_is_the_block_diagonal_product(count, size, repeats, other, seed):
    turn = Turn(torch.stack([rotations.haar(size, torch_generator(seed, str(h))) for h in range(count)]))
    length = count * size * repeats
    whole = block_diagonal(turn, length)
    weight, bias = draw(length, other, seed=seed), draw(length, seed=seed)
    torch.testing.assert_close(turn.rows(weight), whole.T @ weight)
    torch.testing.assert_close(turn.rows(bias), whole.T @ bias)
    torch.testing.assert_close(turn.columns(weight.T), weight.T @ whole)
    torch.testing.assert_close(turn.inverse().rows(turn.rows(weight)), weight)
    torch.testing.assert_close(turn.inverse().columns(turn.columns(weight.T)), weight.T)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 9),
    heads=sizes,
    dtype=st.sampled_from([torch.bool, torch.float8_e4m3fn, torch.bfloat16, torch.float64]),
)
def test_order_moves_entries_and_puts_them_back(size, heads, dtype):
    index = rotations.spread(rotations.order(heads, torch_generator(0, str(size))), size)
    change, weight = Order(index), draw(len(index), 3).to(dtype)
    moved = change.rows(weight)
    assert all(torch.equal(moved[i].float(), weight[j].float()) for i, j in enumerate(index.tolist()))
    assert torch.equal(change.columns(weight.T).float(), moved.T.float())
    assert moved.dtype == dtype
    assert torch.equal(change.inverse().rows(moved).float(), weight.float())


def test_stretch_scales_an_axis_and_is_undone():
    change, weight = Stretch(torch.tensor([2.0, -0.5, 4.0])), draw(3, 3)
    torch.testing.assert_close(change.rows(weight), torch.diag(change.factors).double() @ weight)
    torch.testing.assert_close(change.columns(weight), weight @ torch.diag(change.factors).double())
    torch.testing.assert_close(change.inverse().rows(change.rows(weight)), weight)
    with pytest.raises(UsageError, match="some of its scales are zero"):
        Stretch(torch.tensor([1.0, 0.0])).inverse()


def test_axes_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="length 6 is no multiple of 2 blocks of 2"):
        Turn(torch.eye(2).expand(2, 2, 2).double()).rows(draw(6))
    with pytest.raises(UsageError, match="3 entries and the order 2"):
        Order(torch.tensor([1, 0])).columns(draw(2, 3))


@pytest.mark.parametrize("size", [1, 2, 8, 64])
@pytest.mark.parametrize("basis", [rotations.haar, rotations.hadamard])
def test_bases_are_orthogonal_and_seeded(basis, size):
    one, two = (basis(size, torch_generator(seed, "b")) for seed in (0, 1))
    torch.testing.assert_close(one @ one.T, torch.eye(size, dtype=torch.float64))
    assert torch.equal(one, basis(size, torch_generator(0, "b")))
    assert size < 8 or not torch.equal(one, two)


def test_haar_has_the_moments_of_haar():
    """E tr(Q) = 0 and E tr(Q)^2 = 1; without the signs of R the mean is far from 0."""
    traces = torch.stack([rotations.haar(6, torch_generator(seed, "t")).trace() for seed in range(2000)])
    assert abs(traces.mean().item()) < 4 / 2000**0.5
    assert abs(traces.square().mean().item() - 1) < 0.15


def test_an_order_moves_something_and_every_such_order_comes_up():
    drawn = {tuple(rotations.order(3, torch_generator(seed, "o")).tolist()) for seed in range(100)}
    assert len(drawn) == 5
    assert (0, 1, 2) not in drawn
    assert rotations.order(1, torch_generator(0, "o")).tolist() == [0]


def test_hadamard_needs_a_power_of_two():
    with pytest.raises(UsageError, match="96 is no power of two"):
        rotations.hadamard(96, torch_generator(0, "h"))


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_spectra_are_exchanged_and_frames_stay(shape):
    base, tuned = draw(*shape, seed=1), draw(*shape, seed=2)
    restored, swapped = rotations.restore_spectrum(base, tuned), rotations.swap_spectrum(base, tuned)
    torch.testing.assert_close(torch.linalg.svdvals(restored), torch.linalg.svdvals(base))
    torch.testing.assert_close(torch.linalg.svdvals(swapped), torch.linalg.svdvals(tuned))
    torch.testing.assert_close(rotations.restore_spectrum(base, tuned, 0.0), tuned)
    for result, source in ((restored, tuned), (swapped, base)):  # U^T X V is diagonal in the source's frames
        left, _, right = torch.linalg.svd(source, full_matrices=False)
        inside = left.T @ result @ right.T
        assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-12
    half = torch.linalg.svdvals(rotations.restore_spectrum(base, tuned, 0.5))
    torch.testing.assert_close(half, (torch.linalg.svdvals(base) + torch.linalg.svdvals(tuned)) / 2)


def test_keep_rank_is_the_best_approximation_of_the_change():
    base, tuned = draw(7, 5, seed=1), draw(7, 5, seed=2)
    values = torch.linalg.svdvals(tuned - base)
    for rank in range(6):
        change = rotations.keep_rank(base, tuned, rank) - base
        assert torch.linalg.matrix_rank(change) == rank
        torch.testing.assert_close((tuned - base - change).norm(), values[rank:].norm())
    torch.testing.assert_close(rotations.keep_rank(base, tuned, 99), tuned)
    with pytest.raises(UsageError, match="-1 is negative"):
        rotations.keep_rank(base, tuned, -1)


def test_scale_is_linear_in_the_change():
    base, tuned = draw(4, seed=1), draw(4, seed=2)
    torch.testing.assert_close(rotations.scale(base, tuned, 1.0), tuned)
    torch.testing.assert_close(rotations.scale(base, tuned, -1.0), 2 * base - tuned)


def test_holes_are_refused_where_a_matrix_is_factored():
    with pytest.raises(InputError, match="NaN or infinite"):
        rotations.swap_spectrum(draw(2, 2), torch.full((2, 2), torch.nan))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_round_to_is_the_nearest_value_on_the_whole_grid(dtype):
    """Every finite value stays; between two neighbours the nearer one is taken."""
    width = torch.int16 if dtype.itemsize == 2 else torch.uint8
    codes = torch.arange(2**15 if dtype.itemsize == 2 else 2**7).to(width)
    grid = codes.view(dtype).double()
    grid = grid[grid.isfinite()]
    assert torch.equal(rotations.round_to(grid, dtype).double(), grid)
    low, high = grid[:-1], grid[1:]
    for part, wanted in ((0.25, low), (0.75, high)):
        assert torch.equal(rotations.round_to(low + part * (high - low), dtype).double(), wanted)
    holes = torch.tensor([torch.nan])
    assert rotations.round_to(holes, dtype).float().isnan().all()


@pytest.mark.parametrize(
    ("value", "dtype"), [(1e6, torch.float16), (1e4, torch.float8_e4m3fn), (1e6, torch.float8_e5m2)]
)
def test_a_weight_too_large_for_the_type_is_refused(value, dtype):
    with pytest.raises(InputError, match=r"1 weights are larger than its largest value .*; choose a wider type"):
        rotations.round_to(torch.tensor([value, 1.0]), dtype)
