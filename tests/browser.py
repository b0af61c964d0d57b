"""A real Chromium for the tests of the pages: Debian's own, driven by Playwright; and what a visit leaves behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; `pip install -e '.[dev]'` brings it"
)

CHROMIUM = shutil.which("chromium")
# No sandbox: tests run as root in containers. The rest keeps the browser itself from asking for anything.
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A page waits for an engine that other tests may keep busy.
PATIENCE_MS = 60_000

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed; `make test-tools` installs it where this is root on Debian"
)


@dataclass
class Visit:
    """A page of the browser, and what happened in it. requests: addresses, with the headers sent."""

    page: playwright.Page
    url: str
    requests: list[playwright.Request] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def open(self, path: str = "playground") -> playwright.Page:
        """Go there, and wait until the playground has shown its numbers or its trouble."""
        self.page.goto(f"{self.url}/{path}")
        if path.startswith("playground"):
            self.settle()
        return self.page

    def settle(self) -> None:
        """Wait until what was asked for is shown."""
        self.page.locator("body:not(.waiting)").wait_for(state="attached")

    def foreign(self) -> list[str]:
        """Addresses asked for that are not the gateway's."""
        home = urlsplit(self.url).netloc
        return [each.url for each in self.requests if urlsplit(each.url).netloc not in (home, "")]


@contextmanager
def open_browser() -> Iterator[playwright.Browser]:
    """A browser without a window."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGS)
        yield browser
        browser.close()


@contextmanager
def open_visit(browser: playwright.Browser, url: str, *, faults: bool = False, **options: object) -> Iterator[Visit]:
    """A new profile with one page. At the end nothing may have gone wrong in it, and nothing have left the origin.

    faults: whether the server refuses requests on purpose; the browser's console says so, and is not looked at.
    options: of Playwright's new_context.
    """
    context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, "locale": "en-US", **options})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    visit = Visit(page, url)
    context.on("request", lambda request: visit.requests.append(request))
    page.on("pageerror", lambda error: visit.problems.append(str(error)))
    page.on("console", lambda said: visit.problems.append(said.text) if said.type == "error" and not faults else None)
    try:
        yield visit
        assert visit.problems == []
        assert visit.foreign() == []
    finally:
        context.close()
