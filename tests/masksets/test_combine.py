"""Set operations and agreement against boolean twins; what does not fit together is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.errors import InputError, UsageError
from offprincipal.masksets import build_masks, combine, consensus, save_masks
from offprincipal.measures.seeds import torch_generator
from tests.tiny import save_checkpoint, tiny_weights

TWINS = {"and": torch.logical_and, "or": torch.logical_or, "minus": lambda a, b: a & ~b}


def drawn(density: float, seed: int, shapes=((7, 9), (40, 30))) -> dict[str, torch.Tensor]:
    return {
        f"w{i}": torch.rand(shape, generator=torch_generator(seed, f"w{i}")) < density
        for i, shape in enumerate(shapes)
    }


@given(st.sampled_from([*TWINS, "not"]), st.sampled_from([0.01, 0.3, 0.9]), st.sampled_from([0.02, 0.5]))
@settings(max_examples=24, deadline=None)
def test_operations_equal_their_boolean_twins(tmp_path_factory, operation, p, q):
    folder = tmp_path_factory.mktemp("combine")
    left, right = drawn(p, 1), drawn(q, 2)
    a, b = save_masks(folder / "a", left), save_masks(folder / "b", right)
    wanted = {n: ~left[n] if operation == "not" else TWINS[operation](left[n], right[n]) for n in left}
    if not any(mask.any() for mask in wanted.values()):
        with pytest.raises(InputError, match="the mask is empty"):
            combine(a, operation, b, folder / "out")
        return
    found = combine(a, operation, None if operation == "not" else folder / "b", folder / "out")
    assert all(torch.equal(found[name], mask) for name, mask in wanted.items())
    assert found.header["rule"]["operation"] == operation
    assert len(found.header["rule"]["of"]) == (1 if operation == "not" else 2)


def test_a_combined_set_keeps_base_and_content(checkpoint, tmp_path):
    base = checkpoint("base")
    safe, low = build_masks(base, tmp_path / "safe"), build_masks(base, tmp_path / "low", "low")
    rest = combine(safe, "minus", low, tmp_path / "rest")
    rest.check_base(base)
    assert rest.header["left_out"] == safe.header["left_out"]
    nonprincipal = build_masks(base, tmp_path / "non", "nonprincipal")
    again = combine(combine(nonprincipal, "or", low, tmp_path / "or"), "minus", low, tmp_path / "minus")
    assert all(torch.equal(rest[name], again[name]) for name in rest)


@pytest.mark.parametrize("least", [1, 2, 3])
def test_consensus_counts_and_chance(tmp_path, least):
    densities = (0.2, 0.5, 0.9)
    masks = [drawn(p, seed, ((60, 50),)) for seed, p in enumerate(densities)]
    sets = [save_masks(tmp_path / str(i), mask) for i, mask in enumerate(masks)]
    made, found = consensus(sets, least, tmp_path / "out")
    total = sum(mask["w0"].int() for mask in masks)
    assert torch.equal(made["w0"], total >= least)
    assert found["times"] == torch.bincount(total.flatten(), minlength=4).tolist()
    share = [float(mask["w0"].double().mean()) for mask in masks]
    literal = np.zeros(4)
    for outcome in np.ndindex(2, 2, 2):
        literal[sum(outcome)] += 3000 * np.prod([p if hit else 1 - p for p, hit in zip(share, outcome, strict=True)])
    assert found["times_chance"] == pytest.approx(literal.tolist(), rel=1e-6)
    assert "times_matched" not in found


def test_sets_that_do_not_fit_together(checkpoint, tmp_path):
    base, other = checkpoint("base"), checkpoint("other", delta=1e-2)
    low, all_ = (
        build_masks(base, tmp_path / "low", "low"),
        build_masks(base, tmp_path / "all", "low", include_all=True),
    )
    with pytest.raises(InputError, match=r"different weights \('lm_head.weight' is in one only, 2 in all\)"):
        combine(low, "and", all_, tmp_path / "out")
    elsewhere = build_masks(other, tmp_path / "elsewhere", "low")
    with pytest.raises(InputError, match=r"bases with other values of 'model\.layers\.0"):
        combine(low, "and", elsewhere, tmp_path / "out")
    weights = tiny_weights()
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].T.contiguous()
    turned = build_masks(save_checkpoint(tmp_path / "turned", weights), tmp_path / "t", "low")
    with pytest.raises(InputError, match=r"is \[48, 32\] in one of .* and \[32, 48\] in the other"):
        consensus([low, turned], 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_requests(tmp_path):
    one = save_masks(tmp_path / "one", drawn(0.5, 0))
    with pytest.raises(UsageError, match="there is no such operation; choose one of and, or, minus or not"):
        combine(one, "xor", one, tmp_path / "out")
    with pytest.raises(UsageError, match="it takes two mask sets"):
        combine(one, "and", None, tmp_path / "out")
    with pytest.raises(UsageError, match="it takes one mask set"):
        combine(one, "not", one, tmp_path / "out")
    with pytest.raises(UsageError, match="not a number of at least two sets"):
        consensus([one], 1, tmp_path / "out")
    with pytest.raises(UsageError, match="give --min-agree from 1 to 2"):
        consensus([one, one], 3, tmp_path / "out")
    with pytest.raises(InputError, match="the mask is empty"):
        combine(one, "minus", one, tmp_path / "out")


def test_stopped_and_run_again_gives_the_same_bytes(tmp_path):
    a, b = save_masks(tmp_path / "a", drawn(0.5, 1)), save_masks(tmp_path / "b", drawn(0.5, 2))
    combine(a, "and", b, tmp_path / "whole")

    def stop(done: int, total: int, name: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        combine(a, "and", b, tmp_path / "out", progress=stop)
    combine(a, "and", b, tmp_path / "out")
    file = "masks.safetensors"
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
