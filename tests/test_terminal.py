"""What a person reads: dashes for what is not there, and the words that explain a null."""

import io

from rich.console import Console

from offprincipal import compare
from offprincipal.terminal import print_comparison, progress_bar


def printed(result) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_comparison(result.summary, result.table(), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_identical_checkpoints_print_dashes_not_errors(checkpoint):
    base = checkpoint("base")
    text = printed(compare(base, {"same": base}))
    assert "100.0 %" in text
    assert "Changes that fall into" not in text


def test_every_overlap_stands_beside_its_nulls(checkpoint):
    text = printed(compare(checkpoint("base"), {"rl": checkpoint("rl", delta=3e-5)}))
    assert "Changes that fall into the half largest in the rank-64 part" in text
    assert "the magnitude null equals the observation by construction" in text
    for word in ("chance", "rounding null", "magnitude null", "excess, points", "energy lift", "NSS mean"):
        assert word in text


def test_progress_without_a_terminal_is_a_line_per_tenth(capsys):
    with progress_bar("tensors") as tell:
        for done in range(101):
            tell(done, 100, "x")
    assert len(capsys.readouterr().err.splitlines()) == 11


def test_layers_are_left_to_the_report_when_they_would_fill_the_screen(checkpoint, monkeypatch):
    result = compare(checkpoint("base"), {"rl": checkpoint("rl", delta=3e-5)})
    assert "rl, by layer" in printed(result)
    monkeypatch.setattr("offprincipal.terminal.LAYER_LINES", 1)
    text = printed(result)
    assert "rl, by kind" in text
    assert "rl, by layer" not in text
    assert "see report.html" in text
