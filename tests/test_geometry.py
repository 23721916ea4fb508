"""One pair of matrices against a literal float64 twin; odd matrices measured around, never fatal."""

import math

import numpy as np
import pytest
import torch

from offprincipal import geometry
from offprincipal.errors import CheckFailed
from offprincipal.measures import bits, masks, nulls
from offprincipal.measures.seeds import torch_generator
from tests.literal import joint


def pair(
    shape: tuple[int, int], scale: float = 1e-4, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch_generator(0, "pair", str(shape))
    low = torch.randn(shape[0], 6, generator=generator) @ torch.randn(6, shape[1], generator=generator) * 0.01
    before = (torch.randn(shape, generator=generator) * 0.02 + low).to(torch.bfloat16)
    return before, (before.float() + scale * torch.randn(shape, generator=generator)).to(dtype)


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (80, 80), (300, 40)])
def test_every_column_equals_its_literal_twin(shape):
    before, after = pair(shape)
    found = geometry.measure(before, after, name="w").row()
    w, v = before.double(), after.double()
    u0, s0, v0 = torch.linalg.svd(w, full_matrices=False)
    u1, s1, _ = torch.linalg.svd(v, full_matrices=False)
    delta = v - w
    k = masks.principal_rank(shape)
    twin = {
        "spectrum_base_sq": float(s0.square().sum()),
        "spectrum_shift_sq": float((s1 - s0).square().sum()),
        "base_s1": float(s0[0]),
        "tuned_s1": float(s1[0]),
        "delta_s1": float(torch.linalg.svdvals(delta)[0]),
        "energy_left_sq": float((u0[:, :k].T @ delta).square().sum()),
        "energy_right_sq": float((delta @ v0[:k].T).square().sum()),
        "energy_both_sq": float((u0[:, :k].T @ delta @ v0[:k].T).square().sum()),
        "energy_both_gauss_mean": k * k / (shape[0] * shape[1]),
        "ky_fan_16": abs(float((s1[:16] - s0[:16]).sum())),
        "angle_gap_16": float(s0[15] - s0[16]),
    }
    for name, value in twin.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
    cosines = torch.linalg.svdvals(u0[:, :16].T @ u1[:, :16]).clamp(max=1)
    assert found["angle_left_deg_16"] == pytest.approx(math.degrees(math.acos(float(cosines.min()))), abs=1e-4)
    assert found["principal_rank"] == k


def test_principal_overlap_equals_mask_and_null_counted_directly():
    before, after = pair((96, 64))
    found = geometry.measure(before, after, name="w").row()
    u, s, v = torch.linalg.svd(before.double(), full_matrices=False)
    k = masks.principal_rank((96, 64))
    mask = masks.largest((u[:, :k] * s[:k] @ v[:k]).abs(), masks.count(0.5, before.numel()))
    low = masks.smallest(before, masks.count(0.5, before.numel()))
    for name, chosen in (("principal", mask), ("principal_high", mask & ~low), ("safe", low | ~mask)):
        n, m, a, both = joint(before, after, chosen)
        expected, variance = nulls.magnitude(n, m).overlap(a)
        assert found[f"{name}_ones"] == int(chosen.sum())
        assert found[f"{name}_changed"] == int(both.sum())
        assert found[f"{name}_matched"] == pytest.approx(expected)
        assert found[f"{name}_matched_var"] == pytest.approx(variance)


def test_an_update_planted_in_the_principal_subspace_is_found_there():
    before, _ = pair((96, 64))
    u, _, v = torch.linalg.svd(before.double(), full_matrices=False)
    inside = (before.double() + 1e-3 * u[:, :8] @ v[:8]).float()
    outside = (before.double() + 1e-3 * u[:, -8:] @ v[-8:]).float()
    base = before.float()
    shares = []
    for after in (inside, outside):
        row = geometry.measure(base, after, name="w").row()
        shares.append(row["energy_both_sq"] / float((after.double() - base.double()).square().sum()))
    assert shares[0] > 0.99
    assert shares[1] < 0.01


@pytest.mark.parametrize("case", ["zero", "constant", "row", "column", "one", "same", "deficient", "repeated"])
def test_odd_matrices_are_measured(case):
    before = {
        "zero": torch.zeros(40, 30), "constant": torch.full((40, 30), 0.5), "row": torch.randn(1, 50),
        "column": torch.randn(50, 1), "one": torch.ones(1, 1), "same": torch.randn(40, 36),
        "deficient": torch.outer(torch.randn(40), torch.randn(36)), "repeated": torch.eye(40),
    }[case]  # fmt: skip
    after = before if case == "same" else before + 1e-3 * torch.randn(before.shape, generator=torch_generator(0, case))
    found = geometry.measure(before.bfloat16(), after.bfloat16(), name=case)
    row = found.row()
    undefined = {k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
    allowed = {"delta_entropy_rank", "base_stable_rank"}  # ranks of a matrix of zeros
    if not bits.changed(before.bfloat16(), after.bfloat16()).any():  # nor have the nulls of no change a value
        allowed |= {k for k in row if "rounding" in k or "haar" in k}
    assert undefined <= allowed
    if case == "repeated":
        assert row["angle_meaningless_16"]
    if case == "same":
        assert row["spectrum_shift_sq"] == 0.0
    assert geometry.measure(before[:0], after[:0], name="empty").row() == {}


def test_nonfinite_entries_are_measured_around_and_counted():
    before, after = pair((64, 48))
    clean = geometry.measure(before, after, name="w").row()
    holed = after.clone()
    holed[3, 4], holed[5, 6] = float("nan"), float("inf")
    row = geometry.measure(before, holed, name="w").row()
    assert row["geometry_holes"] == 2
    assert row["base_s1"] == pytest.approx(clean["base_s1"], rel=0.01)


def test_a_broken_bound_names_the_tensor(monkeypatch):
    before, after = pair((64, 48))
    monkeypatch.setattr(geometry.spectrum, "broken_bounds", lambda *_: ["|s_1(W) - s_1(W0)| > ||D||_2"])
    with pytest.raises(CheckFailed, match=r"measure the spectrum of 'layer.w'.*this is a bug in the numbers"):
        geometry.measure(before, after, name="layer.w")
    monkeypatch.undo()
    monkeypatch.setattr(geometry.angles, "sine_bound", lambda *_: -1.0)
    with pytest.raises(CheckFailed, match=r"left subspace of 'layer.w' at k = 16: the sine"):
        geometry.measure(before, after, name="layer.w")


def test_threshold_free_sums_exist_where_the_tuned_side_is_finer():
    before, after = pair((64, 48), dtype=torch.float32)
    row = geometry.measure(before, after, name="w").row()
    assert row["principal_abs_sum"] == pytest.approx(row["principal_abs_matched"], rel=0.1)
    assert "principal_abs_sum" not in geometry.measure(before, after.bfloat16(), name="w").row()


def test_curves_end_where_the_columns_are():
    before, after = pair((96, 64))
    found = geometry.measure(before, after, name="w")
    curves, row = {name: (x, y) for name, x, y in found.curves()}, found.row()
    assert curves["principal_count"][1][-1] == row["principal_changed"]
    assert curves["principal_matched"][1][-1] == pytest.approx(row["principal_matched"])
    assert curves["spectrum_base"][1][0] == row["base_s1"]
    assert np.max(curves["angles_left"][1]) == pytest.approx(row["angle_left_deg_16"])
    assert int(bits.changed(before, after).sum()) >= row["principal_changed"]
