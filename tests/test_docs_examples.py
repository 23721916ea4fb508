"""The examples in the pages that have no code file of their own."""

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", ["masks.md", "several-runs.md"])
def test_examples_say_what_they_print(page):
    failures, examples = doctest.testfile(str(DOCS / page), module_relative=False)
    assert examples
    assert not failures
