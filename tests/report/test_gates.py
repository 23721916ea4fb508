"""Probes and forecasts on the page: shown as they say, escaped, or left out with a word."""

import json

import pytest

from offprincipal.report import draw
from offprincipal.report.gates import gates
from tests.report.synthetic import RUNS, write_comparison

HOSTILE = '</script><script>window.hit=1</script><img src="x" onerror="window.hit=2">'
CHART = {
    "data": {"values": [{"x": 1, "y": 2, "run": "a"}, {"x": 2, "y": 3, "run": "a"}]},
    "width": "container",
    "height": 120,
    "mark": "line",
    "encoding": {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}},
}


def section(title="Gate I", **more):
    table = {"title": "Token KL", "columns": ["run", "KL"], "rows": [["rl", "0.012 [0.011, 0.013]"]], "note": "nats"}
    chart = {"title": "Along the text", "words": "by token", "spec": CHART}
    return {"title": title, "sentences": ["Measured on p.txt."], "tables": [table], "charts": [chart], **more}


def written(folder, **files):
    for name, content in files.items():
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps(content))
    return folder


def test_sections_in_their_order(tmp_path):
    folder = written(
        tmp_path,
        probe_zeta={"section": section("Last")},
        forecast={"section": section("Gate III")},
        probe_fisher={"section": section("Fisher")},
        probe_kl={"section": section("KL")},
        other={"section": section("never")},
    )
    found, charts, lines = gates(folder)
    assert [gate.title for gate in found] == ["KL", "Fisher", "Gate III", "Last"]
    assert set(charts) == {f"gate-{name}-0" for name in ("probe-kl", "probe-fisher", "forecast", "probe-zeta")}
    assert lines == []


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"section": 3}', '{"section": {"title": "x", "sentences": [], "tables": [{}]}}']
)
def test_a_file_without_a_readable_section_is_left_out_and_said(tmp_path, content):
    (tmp_path / "probe-kl.json").write_text(content)
    found, charts, lines = gates(tmp_path)
    assert (found, charts) == ([], {})
    assert lines[0].startswith("probe-kl.json is not shown: it has no section that can be read")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({**CHART, "data": {"url": "http://elsewhere.test"}}, "it asks for data from elsewhere"),
        ({"mark": "nonsense", "encoding": 3}, "it is no Vega-Lite chart"),
        ("text", "it is no Vega-Lite chart"),
    ],
)
def test_a_chart_that_cannot_be_drawn_costs_only_itself(tmp_path, spec, words):
    chart = {"title": "x", "spec": spec}
    found, charts, lines = gates(written(tmp_path, forecast={"section": section(charts=[chart])}))
    assert (len(found), charts) == (1, {})
    assert f"A chart of forecast.json is not shown: {words}" in lines[0]


def test_the_page_shows_them_and_draws_them(visit, tmp_path):
    folder = write_comparison(tmp_path / "c", layers=1, hidden=64, runs=RUNS[:2], picture=False)
    hostile = section(
        HOSTILE, sentences=[HOSTILE], tables=[{"title": HOSTILE, "columns": [HOSTILE], "rows": [[HOSTILE]]}]
    )
    written(folder, probe_kl={"section": section()}, probe_zeta={"section": hostile}, forecast={})
    watched = visit(draw(folder, figures=tmp_path / "figures"))
    page = watched.page
    assert page.locator("#gates h3").first.inner_text() == "Gate I"
    assert "0.012 [0.011, 0.013]" in page.locator("#gates").inner_text()
    assert page.locator("#gates .chart svg").count() == 2
    assert "forecast.json is not shown" in page.locator("#left-out").inner_text()
    assert page.evaluate("window.hit") is None
    assert watched.said == []
    assert watched.asked == []
    assert (tmp_path / "figures" / "gate-probe-kl-0.svg").is_file()


def test_without_probes_there_is_no_section(comparison):
    assert gates(comparison.directory) == ([], {}, [])
