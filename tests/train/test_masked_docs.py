"""The loop in the page on sparse training runs as it is printed."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "sparse-training.md"


def test_the_page_says_what_it_prints():
    failures, examples = doctest.testfile(str(PAGE), module_relative=False)
    assert examples
    assert not failures
