"""A bar on a terminal, a line per stage elsewhere."""

import io

from rich.console import Console

from offprincipal.lab.progress import show_progress, silent


def test_a_line_per_finished_stage_where_there_is_no_terminal() -> None:
    text = io.StringIO()
    with show_progress(Console(file=text, force_terminal=False)) as progress:
        for done in (1, 2):
            progress("base", done, 2)
        progress("sft", 1, 3)
    assert text.getvalue().startswith("base: 2 steps, ")
    assert len(text.getvalue().splitlines()) == 1


def test_a_bar_per_stage_on_a_terminal() -> None:
    text = io.StringIO()
    with show_progress(Console(file=text, force_terminal=True, width=100)) as progress:
        progress("base", 2, 2)
        progress("rlvr-1", 1, 7)
    assert "base" in text.getvalue()
    assert "1/7" in text.getvalue()


def test_silence_is_silent(capsys) -> None:
    silent("base", 1, 1)
    assert capsys.readouterr() == ("", "")
