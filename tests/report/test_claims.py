"""The scoreboard on the page: shown as it was written, escaped, and left out when it cannot be read."""

import json

import pytest

from offprincipal.report import draw
from offprincipal.report.claims import scoreboard
from offprincipal.report.parts import parts
from offprincipal.report.reading import read
from tests.report.synthetic import write_comparison

RECORD = {
    "id": "A1",
    "says": "RL avoids <principal> weights",
    "shown": {
        "verdict": "cannot tell",
        "effect": "0.1 [0, 0.2]",
        "beyond": "magnitude 0",
        "controls": "+ -",
        "seeds": "1",
    },
    "why": "too few seeds",
    "numbers": {"x": 1},
    "settings": {},
    "positive": {"what": "planted", "passed": True, "found": "supported"},
    "negative": {"what": "nothing", "passed": None, "found": ""},
    "command": "offprincipal lab claims lab",
}
ANSWER = {"schema_version": 1, "records": [RECORD], "counts": {"cannot tell": 1, "supported": 0}, "laboratories": [{}]}


def test_the_page_has_a_section_when_claims_lie_beside_it(tmp_path):
    folder = write_comparison(tmp_path / "out", layers=1, hidden=64)
    (folder / "claims.json").write_text(json.dumps(ANSWER))
    page = draw(folder).read_text()
    assert 'id="claims"' in page
    assert "RL avoids &lt;principal&gt; weights" in page
    assert "1 claims over 1 laboratory: 1 cannot tell." in page
    (folder / "claims.json").write_text("{")
    words = parts(read(folder))["words"]
    assert words["claims"] is None
    assert any(line.startswith("claims.json is not shown: it cannot be read") for line in words["missing"])


def test_nothing_there_nothing_said(tmp_path):
    assert scoreboard(tmp_path) == (None, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [("{}", "KeyError"), ("[]", "TypeError"), (json.dumps(ANSWER | {"schema_version": 9}), "schema version 9")],
)
def test_what_does_not_fit_is_said(tmp_path, text, words):
    (tmp_path / "claims.json").write_text(text)
    found, lines = scoreboard(tmp_path)
    assert found is None
    assert words in lines[0]
