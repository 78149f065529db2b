"""The page without a mouse, without eyes, without colours, without room, and without motion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from chromium import Visit, visit

pytest.importorskip("uvicorn", reason="needs the server's packages (pip install 'hasten[serve]')")

from fake_chat_server import FakeChat, Reply, running, words

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RICH = (
    "Here is **all** of it:\n\n```py\nprint(1)\n```\n\n"
    "- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n> said at https://docs.example/ too\n\n### End\nand `code`."
)
STATES = ("empty", "answered", "thought", "settings", "shortcuts", "failed")
FOCUSED = (
    "document.activeElement.id || document.activeElement.getAttribute('aria-label') || document.activeElement.textContent.trim()"
)


@pytest.fixture
def chat() -> Iterator[FakeChat]:
    with running(FakeChat()) as chat:
        chat.replies["All?"] = Reply(words(RICH, codes="mslrp"))
        chat.replies["Think?"] = Reply(words("So."), thought=words(RICH, codes="mslrp"))
        chat.replies["Fail?"] = Reply([], status=400, refusal="This cannot be answered.")
        yield chat


def bring_to(visited: Visit, state: str) -> None:
    visited.expected_errors.append("400")
    if state in ("answered", "settings"):
        visited.ask("All?")
        visited.page.click("text=Who guessed what")
        visited.page.locator(".runs li").first.wait_for()
    if state == "thought":
        visited.ask("Think?")
        visited.page.click(".thought summary")
        visited.page.locator(".thought table").wait_for()
    if state == "failed":
        visited.ask("Fail?")
    if state == "settings":
        visited.page.keyboard.press("Alt+Shift+S")
    if state == "shortcuts":
        visited.page.keyboard.press("Alt+Shift+K")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme: str, state: str, browser: Browser, chat: FakeChat) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    # No transitions: half-faded text has the contrast of neither state.
    with visit(browser, chat.address, color_scheme=scheme, reduced_motion="reduce") as visited:
        page = visited.open()
        bring_to(visited, state)
        page.mouse.move(0, 0)
        found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        told = [(each["id"], each["impact"], [node["target"] for node in each["nodes"]][:4]) for each in found]
        assert told == []


def test_everything_works_by_keyboard(browser: Browser, chat: FakeChat) -> None:
    chat.replies["Go on"] = Reply(words("This goes on."), hold=True)
    with visit(browser, chat.address) as visited:
        page = visited.open()
        page.keyboard.press("Tab")
        assert page.evaluate(FOCUSED) == "Skip to the question field"
        page.keyboard.press("Enter")
        page.keyboard.type("Line one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("line two")
        page.keyboard.press("Enter")
        page.wait_for_selector(".foot .account")
        assert chat.requests[-1]["messages"][0]["content"] == "Line one\nline two"
        page.keyboard.type("Go on")
        page.keyboard.press("Enter")
        visited.until("document.querySelectorAll('.body')[1]?.textContent === 'This goes on.'")
        page.keyboard.press("Escape")
        page.wait_for_selector(".status.stopped")
        chat.replies["Go on"] = Reply(words("Done."))
        page.keyboard.press("Alt+Shift+R")
        visited.until("document.querySelectorAll('.body')[1]?.textContent === 'Done.' && !document.querySelector('.running')")
        page.keyboard.press("Alt+Shift+M")
        assert page.evaluate("document.documentElement.dataset.marks") == "off"
        page.keyboard.press("Alt+Shift+S")
        assert page.locator("#settings").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("#settings").is_visible()
        page.keyboard.press("Alt+Shift+N")
        assert page.evaluate(FOCUSED) == "question"
        assert page.locator("#empty").is_visible()


def test_tab_reaches_every_control_and_shows_where_it_is(browser: Browser, chat: FakeChat) -> None:
    with visit(browser, chat.address, reduced_motion="reduce") as visited:
        page = visited.open()
        visited.ask("All?")
        page.evaluate("document.querySelector('.skip').focus()")
        reached: list[str] = []
        for _ in range(60):
            page.keyboard.press("Tab")
            name = page.evaluate(FOCUSED)
            if page.evaluate("document.activeElement === document.body"):
                break
            reached.append(name)
            seen = page.evaluate(
                "(() => { const style = getComputedStyle(document.activeElement),"
                " box = getComputedStyle(document.activeElement.parentElement);"
                " return style.outlineStyle !== 'none' || box.boxShadow !== 'none'; })()"
            )
            assert seen, f"nothing shows that {name} has the focus"
        wanted = {
            "model",
            "marks",
            "theme",
            "open-settings",
            "open-shortcuts",
            "toggle-drafts",
            "new",
            "All?",
            "Rename All?",
            "question",
        }
        wanted |= {
            "Export All? as JSON",
            "Delete All?",
            "Edit this question",
            "Copy code",
            "https://docs.example/",
            "Copy",
            "Answer again",
            "Who guessed what",
        }
        assert wanted <= set(reached), wanted - set(reached)


def test_focus_goes_into_what_opens_and_back(browser: Browser, chat: FakeChat) -> None:
    with visit(browser, chat.address, size=(390, 844)) as visited:
        page = visited.open()
        page.focus("#toggle-conversations")
        page.keyboard.press("Enter")
        assert page.evaluate(FOCUSED) == "new"
        assert page.get_attribute("#toggle-conversations", "aria-expanded") == "true"
        page.keyboard.press("Escape")
        assert page.evaluate(FOCUSED) == "toggle-conversations"
        assert page.get_attribute("#toggle-conversations", "aria-expanded") == "false"


@pytest.mark.parametrize("width", [390, 1440])
def test_the_speed_is_heard_and_the_button_that_shows_it_gets_the_focus_back(width: int, browser: Browser, chat: FakeChat) -> None:
    with visit(browser, chat.address, size=(width, 844)) as visited:
        page = visited.open()
        strip = page.locator("#speed-strip")
        if width > 1000:  # the panel is there from the beginning, and the button is not
            assert strip.is_hidden()
            page.click("#toggle-drafts")
        assert page.get_by_role("button", name="Speed and drafters", exact=True).count() == 2
        visited.ask("All?")
        seen = page.inner_text("#small-rate")
        assert "tok/s" in seen
        assert "plain" in seen
        assert (strip.get_attribute("aria-controls"), strip.get_attribute("aria-expanded")) == ("drafts", "false")
        named = page.get_by_role("button", name=f"{seen} Speed and drafters", exact=True)
        assert named.get_attribute("id") == "speed-strip"
        named.focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.getElementById('drafts').contains(document.activeElement)")
        assert strip.get_attribute("aria-expanded") == page.get_attribute("#toggle-drafts", "aria-expanded") == "true"
        page.keyboard.press("Escape" if width < 1000 else "Alt+Shift+D")
        assert page.evaluate(FOCUSED) == "speed-strip"
        assert strip.get_attribute("aria-expanded") == page.get_attribute("#toggle-drafts", "aria-expanded") == "false"
        page.focus("#toggle-drafts")
        page.keyboard.press("Enter")
        page.evaluate("document.getElementById('drafts').focus()")
        page.keyboard.press("Escape" if width < 1000 else "Alt+Shift+D")
        assert page.evaluate(FOCUSED) == "toggle-drafts"


def test_a_screen_reader_hears_sentences_and_not_tokens(browser: Browser, chat: FakeChat) -> None:
    sentences = "This is the first sentence of some length. " * 30
    chat.replies["Long?"] = Reply(words(sentences.strip()), at_a_time=1, delay=0.03)
    with visit(browser, chat.address) as visited:
        page = visited.open()
        page.evaluate(
            "window.heard = []; new MutationObserver(() => window.heard.push(document.getElementById('live').textContent))"
            ".observe(document.getElementById('live'), { childList: true, characterData: true, subtree: true })"
        )
        visited.ask("Long?")
        heard: list[str] = page.evaluate("window.heard")
        assert heard[0] == "The answer is coming."
        assert 2 <= len(heard) - 1 <= len(words(sentences)) / 10
        assert all(each.rstrip().endswith(".") for each in heard[1:-1])
        assert "2.50× plain" in heard[-1]
        said = "".join(heard[1:-1]) + heard[-1].split(" — ")[0]
        assert said == sentences.strip()
        assert page.locator("[aria-live], [role=log], [role=status], [role=alert]").count() == 3  # the transcript is none of them


def test_landmarks_and_headings(browser: Browser, chat: FakeChat) -> None:
    with visit(browser, chat.address) as visited:
        page = visited.open()
        visited.ask("All?")
        for landmark in ("banner", "main", "navigation", "complementary"):
            assert page.get_by_role(landmark).count() == 1, landmark  # type: ignore[arg-type]
        assert page.get_by_role("heading", level=1).inner_text() == "All?"
        assert page.get_by_role("article").get_by_role("heading", level=2).all_inner_texts() == ["You", "smollm2-135m"]
        assert page.get_by_role("meter").get_attribute("aria-valuenow") == "50"


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1440])
def test_nothing_is_cut_at_any_width(width: int, browser: Browser, chat: FakeChat) -> None:
    with visit(browser, chat.address, size=(width, 700)) as visited:
        page = visited.open()
        for state in ("empty", "answered"):
            bring_to(visited, state)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            inside = """[...document.querySelectorAll('.bar button, .bar select, .composer, #send')]
                .filter((each) => each.offsetParent)
                .every((each) => { const box = each.getBoundingClientRect(); return box.left >= 0 && box.right <= innerWidth; })"""
            assert page.evaluate(inside)
        assert within_reach(page, "#question")


def within_reach(page: Page, selector: str) -> bool:
    return bool(
        page.evaluate(
            "(selector) => { const each = document.querySelector(selector), box = each.getBoundingClientRect();"
            " return document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2) === each; }",
            selector,
        )
    )


def test_less_motion_is_no_motion(browser: Browser, chat: FakeChat) -> None:
    chat.replies["Wait?"] = Reply([("One", "m")], hold=True)
    for wish, moving in (("reduce", False), ("no-preference", True)):
        with visit(browser, chat.address, reduced_motion=wish) as visited:
            page = visited.open()
            visited.ask("Wait?", wait=False)
            visited.until("document.querySelector('.body')?.textContent === 'One'")
            page.wait_for_timeout(300)
            assert page.evaluate("document.getAnimations().some((each) => each.playState === 'running')") is moving
            page.keyboard.press("Escape")
            page.wait_for_selector(".status.stopped")
