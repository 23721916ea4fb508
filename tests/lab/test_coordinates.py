"""Interventions over laboratories, on records made in the test."""

import json
from pathlib import Path

import pytest

from offprincipal.errors import InputError
from offprincipal.lab.coordinates import study


def compared(jaccard: float, either: int = 9) -> dict:
    return {"either": either, "jaccard": jaccard, "jaccard_bernoulli": jaccard / 2, "jaccard_matched": jaccard / 4}


def make(lab: Path, moved: float) -> Path:
    """Two matrices of block 1, one of them touched; one of them was not changed by one run and the other."""
    rows = [
        {"intervention": name, "block": 1, "layer": 1, "kind": kind, "touched": kind == "q",
         "compared": {"as_is": compared(0.4 + moved), "mapped_back": compared(1.0), "other_seed": compared(0.0, 0)}}
        for name in ("permute", "rotate") for kind in ("q", "k")
    ]  # fmt: skip
    (lab / "interventions").mkdir(parents=True)
    (lab / "lab.json").write_text("{}")
    (lab / "interventions" / "interventions.json").write_text(json.dumps({"rows": rows}))
    return lab


def test_every_kind_is_told_by_place_and_comparison_with_both_nulls(tmp_path: Path) -> None:
    for number in range(3):
        make(tmp_path / f"seed-{number}", number / 10)
    found = study([tmp_path])
    assert found is not None
    assert found["laboratories"] == 3
    order = [(row["intervention"], row["touched"], row["compared"]) for row in found["rows"]]
    assert order == [
        (name, touched, word) for name in ("permute", "rotate") for touched in (True, False)
        for word in ("as_is", "mapped_back")
    ]  # fmt: skip
    first, second = found["rows"][:2]
    assert (first["kinds"], first["block"], first["matrices"], first["laboratories"]) == (["q"], 1, 1, 3)
    assert first["observed"]["mean"] == pytest.approx(0.5)
    assert first["observed"]["high"] - 0.5 == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert first["independent masks"]["mean"] == pytest.approx(0.25)
    assert first["magnitude null"]["mean"] == pytest.approx(0.125)
    assert second["observed"] == {"mean": 1, "low": 1, "high": 1}


def test_one_laboratory_has_no_interval_and_none_has_nothing(tmp_path: Path) -> None:
    found = study([make(tmp_path / "one", 0)])
    assert found is not None
    assert found["rows"][0]["observed"] == {"mean": 0.4, "low": None, "high": None}
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "lab.json").write_text("{}")
    assert study([tmp_path / "bare"]) is None
    (tmp_path / "one" / "interventions" / "interventions.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*interventions.json"):
        study([tmp_path / "one"])
