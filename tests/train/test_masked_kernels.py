"""The compiled loops, lane by lane, against plain ones and against torch."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprincipal.measures import bits
from offprincipal.train import _cpu, _engine, _forecast, _lanes, _loops, _region, _rules, _torch

LENGTHS = st.sampled_from([0, 1, 7, 8, 9, 63, 64, 511, 512])


@settings(deadline=None)
@given(LENGTHS, st.floats(0, 1), st.sampled_from([np.uint16, np.uint32]), st.integers(0, 99))
def test_packing_lanes_is_packing_entries(length, density, dtype, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(length) < density
    source = rng.integers(0, np.iinfo(dtype).max, length, dtype=dtype)
    shift = np.uint32(32 - 8 * source.itemsize)
    packed, again, plain = (np.zeros(520, np.uint32) for _ in range(3))
    byte = np.packbits(mask, bitorder="little")
    count, tables = int(mask.sum()), (_lanes.ORDERS, _lanes.ONES)
    _loops.pack(source, source, 0, length, byte, shift, *tables, packed, again, None, None, 0, count)
    assert _loops.pack_plain(source, 0, length, byte, 0, shift, plain) == count
    assert np.array_equal(packed[:count], source[mask].astype(np.uint32) << shift)
    assert np.array_equal(plain[:count], packed[:count])
    assert np.array_equal(again[:count], packed[:count])
    target, other = source.copy(), source.copy()
    new = rng.integers(0, 2**32, 520, dtype=np.uint32)
    _loops.unpack(target, source, 0, length, byte, shift, *tables, new)
    _loops.unpack_plain(other, 0, length, byte, 0, shift, new)
    expected = source.copy()
    expected[mask] = (new[:count] >> shift).astype(dtype)
    assert np.array_equal(target, expected)
    assert np.array_equal(other, expected)


def test_every_mask_byte():
    for byte in range(256):
        lanes = [i for i in range(8) if byte >> i & 1]
        front, before, allowed = (_lanes.ORDERS.reshape(3, 256, 8)[i, byte] for i in range(3))
        assert list(front[: len(lanes)]) == lanes
        assert [int(before[i]) for i in lanes] == list(range(len(lanes)))
        assert [i for i in range(8) if allowed[i]] == lanes
        assert _lanes.ONES[byte] == len(lanes)


def test_rounding_is_torchs_for_every_kind_of_number():
    rng = np.random.default_rng(0)
    patterns = np.concatenate([
        rng.integers(0, 2**32, 100_000, dtype=np.uint32),
        (np.arange(65536, dtype=np.uint32) << 16)[:, None].repeat(4, 1).reshape(-1)
        + np.tile(np.array([0, 0x7FFF, 0x8000, 0x8001], np.uint32), 65536),
    ])  # fmt: skip
    values = torch.from_numpy(patterns.copy()).view(torch.float32)
    rounded = patterns.copy()
    _loops.round_to_even(rounded, len(rounded))
    ours = torch.from_numpy((rounded >> 16).astype(np.uint16)).view(torch.bfloat16)
    assert torch.equal(ours.nan_to_num(7.0), values.bfloat16().nan_to_num(7.0))
    assert torch.equal(ours.isnan(), values.isnan())


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(0, 99))
def test_noise_is_the_same_compiled_and_in_torch(key, first, seed):
    values = torch.randn(200, generator=torch.Generator().manual_seed(seed))
    values[:3] = torch.tensor([float("inf"), float("-inf"), float("nan")])
    patterns = values.view(torch.uint32).numpy().copy()
    _loops.round_at_random(patterns, 200, np.int64(first), np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32))
    ours = torch.from_numpy((patterns >> 16).astype(np.uint16)).view(torch.bfloat16)
    theirs = _rules.round_randomly(values, _rules.noise(key, first, 200, torch.device("cpu")))
    assert torch.equal(ours.nan_to_num(7.0, 8.0, 9.0), theirs.nan_to_num(7.0, 8.0, 9.0))


def test_noise_is_even():
    drawn = _rules.noise(12345, 0, 1 << 20, torch.device("cpu"))
    counts = torch.bincount(drawn >> 8, minlength=256).double()
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < 65536
    assert float(((counts - 4096) ** 2 / 4096).sum()) < 360  # chi squared of 255, one in 10,000


def task(rule, entries, density, dtype, wide, masters=False, key=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(entries, generator=generator).to(dtype)
    gradient = (torch.randn(entries, generator=generator) * 0.1).to(dtype)
    mask = torch.rand(entries, generator=generator) < density
    found = _region.region(mask, (entries,), 0, weight.device)
    count = {"AdamW": 2, "SGD": 1 if rule.momentum else 0}[type(rule).__name__] if hasattr(rule, "momentum") else 2
    moments = tuple(torch.rand(found.ones, generator=generator).to(wide) for _ in range(count))
    return _rules.Task(rule, weight, gradient, found, moments, weight[mask].float() if masters else None, key)


RULES = {
    "adamw": _rules.AdamW(0.01, 0.9, 0.999, 1e-8, 0.1, 1.0, 3),
    "momentum": _rules.SGD(0.01, 0.9, 0.1, 0.1, False, 1.0, 3),
    "nesterov": _rules.SGD(0.01, 0.9, 0.0, 0.1, True, -1.0, 3),
    "plain": _rules.SGD(0.01, 0.0, 0.0, 0.1, False, 1.0, 3),
}
KINDS = {
    "float32": (torch.float32, torch.float32, False, None),
    "bfloat16": (torch.bfloat16, torch.bfloat16, False, None),
    "masters": (torch.bfloat16, torch.float32, True, None),
    "random": (torch.bfloat16, torch.float32, False, 2**62 + 12345),
}


@pytest.mark.parametrize("entries", [1, 700, 4099])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_compiled_steps_are_the_literal_ones(rule, kind, density, entries):
    dtype, wide, masters, key = KINDS[kind]
    ours, theirs = (task(RULES[rule], entries, density, dtype, wide, masters, key) for _ in range(2))
    assert _cpu.able(ours)
    _cpu.step([ours])
    _torch.step(theirs)
    ulps = 1 if kind == "bfloat16" else 4  # torch's vector square root is not always correctly rounded
    apart = [(ours.weight, theirs.weight), *zip(ours.moments, theirs.moments, strict=True)]
    apart += [(ours.master, theirs.master)] if masters else []
    for left, right in apart:
        scale = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7}[left.dtype]
        assert torch.allclose(left.double(), right.double(), rtol=ulps * scale, atol=ulps * scale * 0.01)


def test_chunks_of_the_torch_step_meet(monkeypatch):
    whole, parts = (task(RULES["adamw"], 4099, 0.3, torch.float64, torch.float64) for _ in range(2))
    _torch.step(whole)
    monkeypatch.setattr(_region, "CHUNK", 2 * _region.BLOCK)
    _torch.step(parts)
    assert torch.equal(whole.weight, parts.weight)
    assert all(torch.equal(a, b) for a, b in zip(whole.moments, parts.moments, strict=True))
    found = _engine.gather(whole.weight, whole.region)
    assert torch.equal(found, whole.weight[_region.unpack(whole.region.bits, 4099)])


def test_regions_of_parts_are_parts_of_the_region():
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    whole = _region.region(mask, (63,), 0, mask.device)
    first, second = (_region.region(mask, (36, 63), rank, mask.device) for rank in (0, 1))
    assert first.fingerprint == second.fingerprint == whole.fingerprint
    assert (first.offset, second.offset) == (0, first.ones)
    assert first.ones + second.ones == first.total == whole.ones == int(mask.sum())
    assert second.bits is not None
    assert torch.equal(_region.unpack(second.bits, 27), mask.reshape(-1)[36:])


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-9, 1e-2), st.integers(0, 99))
def test_the_forecast_counts_what_rounding_loses(lr, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(300, generator=generator) * 0.02).bfloat16()
    weight[:4] = torch.tensor([0.0, -0.0, 0.5, -0.25])
    mask = torch.rand(300, generator=generator) < 0.7
    lost = _forecast.lost_count(weight, _region.region(mask, (300,), 0, weight.device), lr)
    step = torch.full((300,), lr, dtype=torch.float64)
    shown = [bits.visible(weight, direction * step)[mask].double() for direction in (1, -1)]
    assert lost == pytest.approx(float((1 - (shown[0] + shown[1]) / 2).sum()))


@pytest.mark.skipif(find_spec("triton") is None, reason="triton comes with CUDA builds of torch")
def test_the_triton_kernel_is_the_literal_step(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # runs without a GPU
    from offprincipal.train import _cuda

    for rule in RULES.values():
        for dtype, wide, masters, key in KINDS.values():
            for density in (0.3, 1.0):
                ours, theirs = (task(rule, 1300, density, dtype, wide, masters, key) for _ in range(2))
                _cuda.step(ours)
                _torch.step(theirs)
                for left, right in [(ours.weight, theirs.weight), *zip(ours.moments, theirs.moments, strict=True)]:
                    scale = {torch.float32: 2.0**-21, torch.bfloat16: 2.0**-7}[left.dtype]
                    assert torch.allclose(left.double(), right.double(), rtol=scale, atol=scale * 0.01)
