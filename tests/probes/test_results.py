"""What a probe writes: whole files, plain numbers, and words when a folder refuses."""

import json
import math

import pytest

from offprincipal.errors import InputError
from offprincipal.probes.results import finite, prepare, ranged, write


def test_only_what_json_knows():
    assert finite({"a": [math.nan, math.inf, 1], 2: (1.5, None, "x")}) == {"a": [None, None, 1], "2": [1.5, None, "x"]}


def test_a_number_with_its_interval():
    assert ranged(0.01234, 0.01, 0.0151) == "0.0123 [0.01, 0.0151]"
    assert ranged(2.0, math.nan, math.nan) == "2"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the system says"):
        prepare(tmp_path / "file" / "out")


def test_only_flat_numbers_go_into_the_summary(tmp_path):
    (tmp_path / "summary.json").write_text('{"runs": []}')
    write(tmp_path, "kl", {"runs": [{"label": "rl", "kl": 0.5, "steps": [1], "all": {}}]}, {})
    assert json.loads((tmp_path / "summary.json").read_text())["probes"] == {"kl": [{"label": "rl", "kl": 0.5}]}


def test_a_summary_that_cannot_be_read(tmp_path):
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"add to .*summary\.json.*compare into this folder again"):
        write(tmp_path, "kl", {"runs": []}, {})
