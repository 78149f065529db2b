"""A headless Chromium for tests of the page: the machine's own, else Playwright's; tests skip where there is none."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
WIDE = (1440, 900)


@contextmanager
def chromium() -> Iterator[Browser]:
    """One browser for many tests. Skips where Playwright or a Chromium is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    found = os.environ.get("HASTEN_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_api.sync_playwright() as playwright:
        if found is None and not os.path.exists(playwright.chromium.executable_path):
            pytest.skip("needs Chromium: install it, or name it in HASTEN_CHROMIUM")
        browser = playwright.chromium.launch(executable_path=found, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A fresh profile on the page, and all that must not happen there: errors, policy violations, requests to elsewhere.

    ``expected_errors``: parts of console errors that a test provokes.
    """

    page: Page
    context: BrowserContext
    address: str
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    expected_errors: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on(
            "console",
            lambda message: (
                self.errors.append(f"{message.text} {message.location.get('url')}")
                if message.type in ("error", "warning")
                else None
            ),
        )
        page.on("pageerror", lambda problem: self.errors.append(str(problem)))
        page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self._ask(request.url))

    def _ask(self, url: str) -> None:
        asked = urlsplit(url)
        if asked.scheme in ("http", "https", "ws", "wss") and asked.netloc != urlsplit(self.address).netloc:
            self.foreign.append(url)

    def check(self) -> None:
        unexpected = [error for error in self.errors if not any(part in error for part in self.expected_errors)]
        assert not unexpected, unexpected
        assert not self.foreign, self.foreign
        assert self.page.evaluate("window.violations ?? []") == []

    def open(self) -> Page:
        self.page.goto(self.address)
        self.until("!document.getElementById('model').disabled")
        return self.page

    def until(self, expression: str, seconds: float = 15.0) -> None:
        """Waits for a truthy expression. Playwright's own way evaluates strings in the page, which the page's policy forbids."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"waited in vain for {expression}"
            self.page.wait_for_timeout(20)

    def rename(self, title: str) -> None:
        """Begin to type another name for the conversation whose title begins so."""
        self.page.hover(f".conversation-list li:has-text('{title}')")
        self.page.click(f"[aria-label^='Rename {title}']")

    def ask(self, question: str, wait: bool = True) -> None:
        """Types and sends; with ``wait`` until the answer has ended, whichever way."""
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        if wait:
            self.page.wait_for_selector("#send:not([hidden])")
            self.page.wait_for_selector(".turn:last-child .foot .account", state="attached")


def second_tab(visited: Visit) -> Visit:
    """The page in another tab of the same profile; what goes wrong there counts as the first one's."""
    other = Visit(visited.context.new_page(), visited.context, visited.address, visited.errors, visited.foreign)
    other.page.set_default_timeout(15_000)
    other.watch(other.page)
    other.open()
    return other


@contextmanager
def visit(browser: Browser, address: str, size: tuple[int, int] = WIDE, **context: Any) -> Iterator[Visit]:
    """Visit the server at ``address``; at the end everything that went wrong on the page fails the test."""
    profile = browser.new_context(viewport={"width": size[0], "height": size[1]}, **context)
    profile.add_init_script(
        "window.violations = []; "
        "document.addEventListener('securitypolicyviolation', (event) => window.violations.push(event.violatedDirective))"
    )
    page = profile.new_page()
    page.set_default_timeout(15_000)
    visited = Visit(page, profile, address)
    visited.watch(page)
    try:
        yield visited
        visited.check()
    finally:
        profile.close()
