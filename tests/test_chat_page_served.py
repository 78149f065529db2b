"""The chat page as ``hasten serve`` sends it, over a tiny model: what the page paints against what the API said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from chromium import Visit, visit
from serving import Running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture
def visited(browser: Browser, server: Running) -> Iterator[Visit]:
    with visit(browser, server.url + "/") as visited:
        visited.open()
        yield visited


def set_up(page: Page, **values: str) -> None:
    page.click("#open-settings")
    for name, value in values.items():
        page.fill(f"#{name.replace('_', '-')}", value)
    page.uncheck("#formatted")
    page.keyboard.press("Escape")


# Keeps what the API said, word by word, while the page reads it; and asks for drafts in every round, as the tiny model is so
# quick that the server would rather not draft.
LISTEN = """
const ask = window.fetch;
window.fetch = async (address, options = {}) => {
    if (options.method !== 'POST') return ask(address, options);
    const answer = await ask(address, { ...options, body: JSON.stringify({ ...JSON.parse(options.body), speculation: 'on' }) });
    const [forPage, forTest] = answer.body.tee();
    window.said = new Response(forTest).text();
    return new Response(forPage, { status: answer.status, headers: answer.headers });
};
window.said = null; // were the function the last value, Playwright would call it
"""


def told_by_api(page: Page) -> tuple[list[list[str]], dict[str, Any]]:
    """(piece, code) of every token with text, and the account, out of the stream that the page read."""
    tokens: list[list[str]] = []
    account: dict[str, Any] = {}
    for line in str(page.evaluate("window.said")).splitlines():
        if not line.startswith("data: {"):
            continue
        own = json.loads(line.removeprefix("data: ")).get("hasten", {})
        tokens += [[piece, code] for piece, code in zip(own.get("pieces", []), own.get("provenance", ""), strict=True) if piece]
        account.update(own)
    return tokens, account


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_the_marks_are_those_that_the_api_gave(temperature: str, visited: Visit) -> None:
    page = visited.page
    page.evaluate(LISTEN)
    set_up(page, temperature=temperature, max_tokens="120", seed="3")
    visited.ask("def fibonacci(number): def fibonacci(number): def")
    tokens, account = told_by_api(page)
    shown = page.locator(".body").evaluate(
        "(body) => [...body.querySelectorAll('.token')].map((each) => [each.textContent, each.dataset.by])"
    )
    assert shown == tokens
    assert len({code for _, code in tokens}) > 1, "nobody guessed anything: the test shows nothing"
    assert page.locator(".account").inner_text().endswith("exact")
    # Every drafter that has a letter in the text has its row, and every decision its reason.
    names = page.locator(".drafter-name").all_inner_texts()
    assert set(names) == {"model", *account["decisions"], *(account["legend"][code] for _, code in tokens)}
    states = page.locator(".drafter .state").all_inner_texts()
    assert len(states) == len(account["decisions"])
    assert set(states) <= {"on", "off"}


def test_stop_frees_the_engine_at_once(visited: Visit, server: Running) -> None:
    page = visited.page
    set_up(page, temperature="1", max_tokens="1500", seed="1")
    # The tiny model would be done before a click from here arrives: no end of its own, and the page itself clicks.
    page.evaluate(
        "const ask = window.fetch; window.fetch = (address, options = {}) => ask(address, options.method !== 'POST' ? options :"
        " { ...options, body: JSON.stringify({ ...JSON.parse(options.body), ignore_eos: true }) }); null"
    )
    page.evaluate(
        "new MutationObserver(() => document.querySelector('.turn:last-child.running .token')"
        " && document.getElementById('stop').click())"
        ".observe(document.getElementById('turns'), { childList: true, subtree: true })"
    )
    for _ in range(2):
        visited.ask("Write for a long time", wait=False)
        page.wait_for_selector(".turn:nth-child(1) .status.stopped")
        server.wait_idle()
        page.click("text=New conversation")


def test_the_servers_refusal_is_told_in_its_words(visited: Visit) -> None:
    visited.expected_errors.append("400")
    page = visited.page
    visited.ask("word " * 5_000)
    told = page.locator(".status.failed").inner_text()
    assert "tokens" in told


def test_files_are_served_with_a_policy_and_asked_about_again(server: Running) -> None:
    whole = server.get("/")
    assert whole.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in whole.headers["content-security-policy"]
    assert "unsafe" not in whole.headers["content-security-policy"]
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.headers["cache-control"] == "no-cache"
    script = server.get("/main.js")
    assert script.headers["content-type"].startswith(("text/javascript", "application/javascript"))
    again = server.get("/main.js", headers={"If-None-Match": script.headers["etag"]})
    assert again.status_code == 304
    for path in ("/../app.py", "/..%2fapp.py", "/page/index.html", "/nothing.js"):
        assert server.get(path).status_code == 404
