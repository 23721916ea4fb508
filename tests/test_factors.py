"""The cache of base factors: equal bytes back, damaged or foreign files computed again and said."""

import pytest
import torch

from offprincipal import factors
from offprincipal.factors import FactorCache, fingerprint
from offprincipal.geometry import Base
from offprincipal.measures import spectrum
from offprincipal.measures.levels import levels
from offprincipal.measures.seeds import torch_generator


def weights(seed: int = 0) -> torch.Tensor:
    return (torch.randn(48, 40, generator=torch_generator(seed, "w")) * 0.02).bfloat16()


def made(weight: torch.Tensor) -> Base:
    found = spectrum.factorise(weight, 20)
    return Base(found, levels(weight, found))


def never() -> Base:
    raise AssertionError("computed although cached")


def same(left: Base, right: Base) -> bool:
    pairs = [(getattr(left.factors, name), getattr(right.factors, name)) for name in ("values", "left", "right")]
    return all(torch.equal(a, b) for a, b in [*pairs, (left.levels.level, right.levels.level)])


def test_factors_come_back_bit_for_bit(tmp_path):
    cache, weight = FactorCache(tmp_path), weights()
    first = cache.fetch(weight, lambda: made(weight))
    assert same(first, cache.fetch(weight.clone(), never))
    assert cache.size()[0] == 1
    assert cache.clear() > 0
    assert cache.size() == (0, 0)


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign", "empty"])
def test_a_damaged_file_is_computed_again_and_said(tmp_path, caplog, damage):
    cache, weight, other = FactorCache(tmp_path), weights(), weights(1)
    first = cache.fetch(weight, lambda: made(weight))
    file = next(tmp_path.glob("*.safetensors"))
    content = file.read_bytes()
    if damage == "foreign":
        cache.fetch(other, lambda: made(other))
        content = next(f for f in tmp_path.glob("*.safetensors") if f != file).read_bytes()
    flipped = bytearray(content)
    flipped[-100] ^= 1
    file.write_bytes({"cut": content[:-50], "flip": bytes(flipped), "foreign": content, "empty": b""}[damage])
    assert same(first, cache.fetch(weight, lambda: made(weight)))
    assert "do not check out" in caplog.text
    assert same(first, cache.fetch(weight, never))


def test_a_folder_that_cannot_be_written_is_said_and_changes_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    weight = weights()
    found = FactorCache(tmp_path / "file" / "cache").fetch(weight, lambda: made(weight))
    assert same(found, made(weight))
    assert "cannot be kept" in caplog.text


def test_the_key_is_the_content(monkeypatch):
    weight = weights()
    assert fingerprint(weight) == fingerprint(weight.clone())
    assert fingerprint(weight) != fingerprint(weight.T.contiguous())
    before = fingerprint(weight)
    monkeypatch.setattr(factors, "ALGORITHM", "another")
    assert fingerprint(weight) != before
