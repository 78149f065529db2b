"""Links, labels, counts and colours of the chat page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chromium import Visit, visit

pytest.importorskip("uvicorn", reason="needs the server's packages (pip install 'hasten[serve]')")

from fake_chat_server import PAGE, FakeChat, Reply, words

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

PAPER = "getComputedStyle(document.documentElement).backgroundColor"
LIGHT, DARK = "rgb(251, 248, 242)", "rgb(23, 20, 17)"

# Links


def test_an_address_in_an_answer_is_a_link_that_takes_nothing_along(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    tokens = [("See", "m"), (" (https", "s"), ("://docs.example/a_b", "l"), ("?c=d)", "s"), (" now", "m")]
    chat.replies["Where?"] = Reply(tokens)
    visited.ask("Where?")
    link = page.locator(".body a")
    assert link.get_attribute("href") == link.inner_text() == "https://docs.example/a_b?c=d"
    assert (link.get_attribute("target"), link.get_attribute("rel")) == ("_blank", "noopener noreferrer nofollow")
    shown = "(box) => [...box.querySelectorAll('.token')].map((each) => [each.textContent, each.dataset.by])"
    assert link.evaluate(shown) == [["https", "s"], ["://docs.example/a_b", "l"], ["?c=d", "s"]]
    assert page.locator(".body").evaluate("(body) => body.textContent") == "See (https://docs.example/a_b?c=d) now"

    asked = []

    def answer(route: Route) -> None:
        asked.append(route.request.headers)
        route.fulfill(body="<p>there</p>", content_type="text/html")

    visited.context.route("https://docs.example/**", answer)
    with page.expect_popup() as waiting:
        link.click()
    waiting.value.wait_for_selector("p")
    assert waiting.value.url == "https://docs.example/a_b?c=d"
    assert waiting.value.evaluate("window.opener") is None
    assert "referer" not in asked[0]
    assert page.locator(".said").inner_text() == "Where?"


def test_links_are_reached_by_keyboard_and_there_are_none_in_verbatim_text(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    chat.replies["Where?"] = Reply(words("At https://docs.example/ it is."))
    visited.ask("Where?")
    page.focus("[aria-label='Copy this question']")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.href") == "https://docs.example/"
    page.click("#open-settings")
    page.uncheck("#formatted")
    page.keyboard.press("Escape")
    assert page.locator(".body a").count() == 0


def test_half_an_address_is_no_link_yet_and_a_whole_one_stays_the_same_element(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    pieces = ["First", " https://docs.example/one", " and", " https", "://", "docs.example", "/two", "?three"]
    chat.replies["Where?"] = Reply([(piece, "m") for piece in pieces], at_a_time=1, delay=0.1)
    page.evaluate(
        "window.seen = []; new MutationObserver(() => window.seen.push("
        "[...document.querySelectorAll('.running .body a')].map((each) => each.href))"
        ").observe(document.getElementById('turns'), { childList: true, subtree: true })"
    )
    visited.ask("Where?", wait=False)
    visited.until("document.querySelector('.running .body a')")
    page.evaluate("document.querySelector('.body a').dataset.mine = 'yes'")
    page.wait_for_selector(".foot .account")
    while_it_came = {href for hrefs in page.evaluate("window.seen") for href in hrefs}
    assert while_it_came <= {"https://docs.example/one", "https://docs.example/two?three"}
    links = page.locator(".body a").evaluate_all("(links) => links.map((each) => [each.href, each.dataset.mine])")
    assert links == [["https://docs.example/one", "yes"], ["https://docs.example/two?three", None]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_link_is_legible_on_every_mark(scheme: str, browser: Browser, chat: FakeChat) -> None:
    codes = "mslrpu"
    chat.replies["Where?"] = Reply([(f" https://docs.example/{code}", code) for code in codes])
    with visit(browser, chat.address, color_scheme=scheme) as visited:
        visited.open()
        visited.ask("Where?")
        # Paints the colours, as they come in several notations, on a canvas.
        ratios = visited.page.evaluate(
            """() => {
                const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
                const painted = (...colours) => {
                    for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
                    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
                };
                const linear = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
                const light = (colour) => colour.map((value) => linear(value / 255)).reduce((sum, value, at) =>
                    sum + value * [0.2126, 0.7152, 0.0722][at], 0);
                const paper = getComputedStyle(document.documentElement).backgroundColor;
                return [...document.querySelectorAll('.body a .token')].map((token) => {
                    const probe = document.createElement('i');
                    token.append(probe);
                    probe.style.color = 'var(--tint)';
                    const tint = token.matches('.mark-0') ? 'transparent' : getComputedStyle(probe).color;
                    probe.remove();
                    const both = [light(painted(paper, tint)), light(painted(getComputedStyle(token).color))].sort((a, b) => b - a);
                    return (both[0] + 0.05) / (both[1] + 0.05);
                });
            }"""
        )
        assert len(ratios) == len(codes)
        assert min(ratios) >= 4.5, ratios


# Labels and counts


def test_the_label_of_a_token_waits_for_the_pointer_to_rest(chat: FakeChat, browser: Browser) -> None:
    chat.replies["Who?"] = Reply(words("one two three four five six seven eight"))
    with visit(browser, chat.address) as visited:
        visited.page.clock.install(time=0)
        page = visited.open()
        visited.ask("Who?")
        page.clock.pause_at(3_600_000)
        tip = page.locator("#tip")
        for nth in (0, 1, 2, 3, 4):
            page.locator(".body .token").nth(nth).hover()
            page.clock.run_for(100)
            assert tip.is_hidden()
        page.clock.run_for(400)
        assert tip.inner_text().startswith("model · ")
        page.locator(".body .token").nth(5).hover()
        assert tip.is_hidden()
        page.clock.run_for(400)
        assert tip.inner_text().startswith("suffix · ")
        page.hover("#question")
        page.clock.run_for(1_000)
        assert tip.is_hidden()


def test_an_answer_that_failed_before_any_token_counts_none(chat: FakeChat, visited: Visit) -> None:
    visited.expected_errors.append("400")
    page = visited.page
    chat.replies["Bad?"] = Reply([], status=400, refusal="This cannot be answered.")
    visited.ask("Bad?")
    assert "token" not in page.locator(".answer").inner_text()
    assert page.locator(".account").is_hidden()
    page.reload()
    visited.until("document.querySelector('.status.failed')")
    assert "token" not in page.locator(".answer").inner_text()
    chat.replies["Half?"] = Reply(words("Half of it"), error_after="The engine failed.")
    visited.ask("Half?")
    assert "3 tokens" in page.locator(".answer").last.inner_text()


# Colours


@pytest.mark.parametrize("chosen", [None, "light", "dark"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_right_theme_is_there_before_any_module_runs(scheme: str, chosen: str | None, browser: Browser, chat: FakeChat) -> None:
    with visit(browser, chat.address, color_scheme=scheme) as visited:
        page = visited.open()
        if chosen is not None:
            while page.get_attribute("#theme", "aria-label") != f"Theme: {chosen}":
                page.click("#theme")
        page.route("**/main.js", lambda route: route.abort())
        visited.expected_errors.append("main.js")
        visited.context.add_init_script(
            f"window.papers = []; const look = () => {{ if (document.body) window.papers.push({PAPER});"
            " if (window.papers.length < 10) requestAnimationFrame(look); }; look();"
        )
        page.goto(visited.address.rstrip("/") + "/?again")
        visited.until("window.papers.length >= 10")
        assert set(page.evaluate("window.papers")) == {DARK if (chosen or scheme) == "dark" else LIGHT}


def test_every_colour_stands_once() -> None:
    text = (Path(PAGE) / "base.css").read_text(encoding="utf-8")
    names = re.findall(r"^\s*(--[\w-]+):", text, re.MULTILINE)
    assert len(names) == len(set(names))
    assert "prefers-color-scheme" not in text
