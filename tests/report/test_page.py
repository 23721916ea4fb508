"""The page itself: what is written, and what a real browser makes of it."""

import importlib
import json
import time

import pytest

from offprincipal.errors import InputError, UsageError
from offprincipal.report import draw, page
from tests.report.synthetic import RUNS, write_comparison
from tests.report.test_palette import luminance

HOSTILE = '</script><script>window.hit=1</script><img src="http://evil.test/x" onerror="window.hit=2">'


@pytest.fixture(scope="session")
def report(folder):
    return draw(folder)


def test_the_page_is_one_file_that_names_no_other(report):
    text = report.read_text(encoding="utf-8")
    assert report.name == "report.html"
    assert not report.with_suffix(".html.tmp").exists()
    head = text[: text.index("</style>")]
    assert "default-src 'none'" in head
    assert "unsafe-eval" not in head
    assert "http-equiv" in head
    assert "src=" not in head
    assert "<link" not in head


def test_without_the_extra_the_command_to_install_it_is_named(folder, monkeypatch):
    def refuse(name, *rest):
        if name == "altair":
            raise ModuleNotFoundError("No module named 'altair'")
        return importlib.__import__(name)

    monkeypatch.setattr(page.importlib, "import_module", refuse)
    with pytest.raises(
        UsageError, match=r"the package 'altair' is not installed; run `pip install offprincipal\[report\]`"
    ):
        draw(folder)


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no tensors.parquet in it"):
        draw(tmp_path)


def test_figures_are_written_as_svg_and_pdf_in_plain_colours(tmp_path):
    where = write_comparison(tmp_path / "c", layers=1, hidden=64, runs=RUNS[:2], picture=False)
    draw(where, figures=tmp_path / "figures")
    svgs = {path.stem: path.read_text() for path in (tmp_path / "figures").glob("*.svg")}
    assert {"map-sparsity", "alpha-principal", "matrix-spectrum", "excess"} <= set(svgs)
    assert all("var(--" not in svg for svg in svgs.values())
    assert all(
        path.with_suffix(".pdf").read_bytes().startswith(b"%PDF") for path in (tmp_path / "figures").glob("*.svg")
    )


@pytest.mark.parametrize("damage", [b"", b"x", b"\xff", b"0\nother"])
def test_a_kept_text_is_used_until_it_is_damaged(tmp_path, damage):
    def never():
        raise AssertionError("made although kept")

    text = "first\r\nsecond\n"
    assert page.kept("code.js", lambda: text, tmp_path) == text
    assert page.kept("code.js", never, tmp_path) == text
    (tmp_path / "code.js").write_bytes(damage)
    assert page.kept("code.js", lambda: text, tmp_path) == text
    assert page.kept("code.js", never, tmp_path) == text


def test_a_text_that_cannot_be_kept_is_used_all_the_same(tmp_path):
    (tmp_path / "file").write_text("")
    assert page.kept("code.js", lambda: "text", tmp_path / "file" / "cache") == "text"


@pytest.mark.slow
def test_a_large_model_with_three_runs_is_quick_and_small(tmp_path):
    where = write_comparison(tmp_path, layers=36)
    began = time.process_time()
    assert draw(where).stat().st_size <= 6_000_000
    assert time.process_time() - began < 10


@pytest.mark.browser
def test_every_chart_is_drawn_without_a_word_or_a_request(visit, report):
    seen = visit(report)
    counts = seen.page.evaluate(
        """() => [...document.querySelectorAll('.chart')].map(box =>
            [box.dataset.chart, box.querySelectorAll('svg path, svg rect, svg line').length])"""
    )
    assert len(counts) >= 18
    assert all(marks > 3 for _, marks in counts), counts
    assert seen.said == []
    assert seen.asked == []


@pytest.mark.browser
def test_pointing_at_a_cell_shows_its_numbers(visit, report):
    seen = visit(report)
    cell = seen.page.locator("[data-chart=map-sparsity] svg .mark-rect.role-mark path").nth(5)
    cell.scroll_into_view_if_needed()
    cell.hover()
    tip = seen.page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    words = tip.inner_text()
    for name in ("Sparsity", "magnitude null", "NSS", "z", "%"):
        assert name in words


@pytest.mark.browser
def test_the_table_sorts_both_ways_and_filters(visit, report):
    seen = visit(report)

    def column(title):
        at = seen.page.evaluate(
            "title => [...document.querySelectorAll('#table th')].findIndex(th => th.innerText.startsWith(title))",
            title,
        )
        return seen.page.locator(f"#table tbody td:nth-child({at + 1})").all_inner_texts()

    for expected in ("descending", "ascending"):
        seen.page.get_by_role("button", name="sparsity").click()
        shown = [float(v.replace("%", "")) for v in column("sparsity")]
        assert shown == sorted(shown, reverse=expected == "descending")
        assert seen.page.locator("#table th[aria-sort]").get_attribute("aria-sort") == expected
    seen.page.get_by_role("button", name="NSS").click()
    assert column("NSS")[0] != "–"  # what is unknown comes last
    seen.page.fill("#find", "LAYERS.1.")
    seen.page.select_option("#only-kind", "o")
    assert set(column("tensor")) == {"model.layers.1.self_attn.o_proj.weight"}
    assert seen.page.inner_text("#matches") == "3 of 90 rows"
    seen.page.select_option("#only-run", "sft-distilled")
    assert column("run") == ["sft-distilled"]
    seen.page.fill("#find", "nothing like it")
    assert seen.page.inner_text("#matches") == "0 of 90 rows"


@pytest.mark.browser
def test_another_matrix_can_be_chosen(visit, report):
    seen = visit(report)
    line = "[data-chart=matrix-spectrum] svg .mark-line path"
    before = seen.page.locator(line).first.get_attribute("d")
    seen.page.select_option("#tensor", index=0)
    seen.page.wait_for_function(
        "old => document.documentElement.dataset.ready === 'yes' && document.querySelector("
        "'[data-chart=matrix-spectrum] svg .mark-line path').getAttribute('d') !== old", arg=before
    )  # fmt: skip
    assert seen.said == []


CONTRASTS = """() => {
  const found = [];
  for (const one of document.querySelectorAll('p, td, th, dt, dd, a, .chip, h1, h2, h3, code, svg text')) {
    if (!one.textContent.trim() || !one.getClientRects().length) continue;
    const style = getComputedStyle(one);
    const ground = one.closest('#table thead, button, select') ? '--panel' : '--paper';
    found.push([one instanceof SVGElement ? style.fill : style.color, ground]);
  }
  const canvas = document.createElement('canvas').getContext('2d');
  const hex = (colour) => { canvas.fillStyle = colour; return canvas.fillStyle; };
  const root = getComputedStyle(document.documentElement);
  return [...new Set(found.map(([c, g]) => hex(c) + ' ' + hex(root.getPropertyValue(g).trim())))];
}"""


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_all_words_are_legible_in_both_themes(visit, report, dark):
    seen = visit(report, dark=dark)
    pairs = [pair.split() for pair in seen.page.evaluate(CONTRASTS)]
    assert len(pairs) >= 3
    for ink, ground in pairs:
        high, low = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
    assert (luminance(seen.page.evaluate(CONTRASTS)[0].split()[1]) < 0.1) is dark


@pytest.mark.browser
def test_the_button_changes_the_theme_of_words_and_charts(visit, report):
    seen = visit(report)
    fill = "() => getComputedStyle(document.querySelector('.chart svg text')).fill"
    ground = "() => getComputedStyle(document.body).backgroundColor"
    before = seen.page.evaluate(fill), seen.page.evaluate(ground)
    seen.page.click("#theme")
    after = seen.page.evaluate(fill), seen.page.evaluate(ground)
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert seen.page.inner_text("#theme") == "Light"


@pytest.mark.browser
def test_on_paper_it_is_always_light(visit, report):
    seen = visit(report, dark=True)
    seen.page.emulate_media(media="print", color_scheme="dark")
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    text = seen.page.evaluate("getComputedStyle(document.querySelector('.chart svg text')).fill")
    assert text == "rgb(85, 96, 107)"
    assert not seen.page.locator("nav").is_visible()


@pytest.mark.browser
def test_a_phone_scrolls_only_downwards(visit, report):
    seen = visit(report, width=360)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 360
    wide = seen.page.evaluate(
        "[...document.querySelectorAll('.chart')].filter(b => b.scrollWidth > b.clientWidth + 1).length"
    )
    assert wide == 0


@pytest.mark.browser
def test_hostile_names_are_only_words(visit, tmp_path):
    runs = ((f"run {HOSTILE}", "rl"), ('"><b onmouseover=alert(1)>', "sft"))
    where = write_comparison(tmp_path, layers=1, hidden=64, runs=runs, extra_name=f"model.{HOSTILE}.weight")
    unpaired = [{"side": HOSTILE, "tensor": HOSTILE, "shape": [1], "reason": HOSTILE}]
    (where / "unpaired.json").write_text(json.dumps(unpaired))
    seen = visit(draw(where))
    assert seen.page.evaluate("window.hit") is None
    assert seen.page.locator("img").count() == 0
    assert seen.said == []
    assert seen.asked == []
    seen.page.fill("#find", "script")
    assert HOSTILE in seen.page.locator("#table tbody td.name").first.inner_text()
    seen.page.locator("[data-chart=map-sparsity] svg .mark-rect.role-mark path").first.hover()
    seen.page.locator("#vg-tooltip-element.visible").wait_for()
    assert seen.page.locator("img").count() == 0
    assert seen.page.evaluate("window.hit") is None


@pytest.mark.browser
@pytest.mark.parametrize(("layers", "runs"), [(1, RUNS[:1]), (2, RUNS[:2])])
def test_sections_without_data_are_not_there(visit, tmp_path, layers, runs):
    where = write_comparison(tmp_path, layers=layers, hidden=64, runs=runs, geometry=False)
    seen = visit(draw(where))
    assert seen.page.locator("[data-chart^=map-z], [data-chart=matrix-angles], .masks, #steps").count() == 0
    assert seen.page.locator("#agree").count() == (1 if len(runs) > 1 else 0)
    assert "Spectra and principal angles were not measured." in seen.page.inner_text("#left-out")
    dead = seen.page.evaluate(
        "[...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.hash)).length"
    )
    assert dead == 0
    assert seen.said == []
