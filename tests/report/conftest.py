"""A small comparison, its page, and a real headless browser."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from offprincipal.report.reading import Comparison, read
from tests.report.synthetic import write_comparison


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Three layers, three runs, everything measured."""
    return write_comparison(tmp_path_factory.mktemp("report") / "full", layers=3, hidden=256, trajectory=True)


@pytest.fixture(scope="session")
def comparison(folder) -> Comparison:
    return read(folder)


@dataclass
class Watched:
    """A page in the browser, with everything that it said and asked for."""

    page: object
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium) -> Iterator[Callable[..., Watched]]:
    """Open a page in a context of its own; requests off the disk are recorded and refused."""
    contexts = []

    def open_page(path: Path, *, width: int = 1280, dark: bool = False) -> Watched:
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        watched = Watched(context.new_page())
        page = watched.page

        def refuse(route):
            watched.asked.append(route.request.url)
            route.abort()

        context.route(lambda url: not url.startswith(("file:", "data:")), refuse)
        page.on("console", lambda message: watched.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: watched.said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (watched.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=60_000)
        return watched

    yield open_page
    for context in contexts:
        context.close()
