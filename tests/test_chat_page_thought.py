"""What a model thinks before it answers, on the chat page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from chromium import Visit, visit

pytest.importorskip("uvicorn", reason="needs the server's packages (pip install 'hasten[serve]')")
pytest.importorskip("starlette", reason="needs the server's packages (pip install 'hasten[serve]')")

from fake_chat_server import FakeChat, Reply, words

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

THOUGHT = "First I add **two** and two.\n\nThat is `four`, I think."
ANSWER = "Four."


def thinks(chat: FakeChat, **options: float) -> None:
    chat.replies["Sum?"] = Reply(words(ANSWER), thought=words(THOUGHT), at_a_time=1, **options)  # type: ignore[arg-type]


def answer_text(page: Page) -> str:
    return page.locator(".answer > .body").last.inner_text()


def test_a_thought_is_open_while_it_comes_and_folds_away(chat: FakeChat, visited: Visit) -> None:
    thinks(chat, delay=0.15)
    page = visited.page
    visited.ask("Sum?", wait=False)
    visited.until("document.querySelector('details.thought.thinking')?.open")
    assert page.locator(".thought summary").inner_text() == "Thinking"
    assert page.locator(".status").is_hidden()
    page.wait_for_selector(".foot .account", state="attached")
    details = page.locator("details.thought")
    assert details.evaluate("(details) => details.open") is False
    assert page.locator(".thought summary").inner_text() == "Thought"
    assert answer_text(page) == ANSWER
    assert "13 tokens" in page.locator(".account").inner_text()
    page.focus(".thought summary")
    page.keyboard.press("Enter")
    assert details.locator("strong").inner_text() == "two"
    marked = "(body) => [...body.querySelectorAll('.token')].map((token) => token.dataset.by).join('')"
    assert details.locator(".body").evaluate(marked).startswith("mssl")
    page.locator(".foot summary").click()
    page.locator(".runs li").first.wait_for()
    runs = page.locator(".runs .run-text").all_text_contents()
    assert "".join(runs) == THOUGHT + ANSWER


def test_who_opens_a_thought_keeps_it_open_and_who_closes_it_keeps_it_closed(chat: FakeChat, visited: Visit) -> None:
    thinks(chat, delay=0.2)
    page = visited.page
    visited.ask("Sum?", wait=False)
    visited.until("document.querySelector('details.thought.thinking')?.open")
    page.click(".thought summary")
    visited.until("document.querySelector('.answer > .body').textContent.startsWith('Four')")
    assert page.evaluate("document.querySelector('.thought').open") is False
    page.click(".thought summary")
    page.wait_for_selector(".foot .account", state="attached")
    assert page.evaluate("document.querySelector('.thought').open") is True


def test_a_thought_is_kept_and_exported_and_not_sent_back(chat: FakeChat, visited: Visit) -> None:
    thinks(chat)
    page = visited.page
    visited.ask("Sum?")
    visited.ask("More?")
    assert chat.requests[-1]["messages"][1] == {"role": "assistant", "content": ANSWER}
    page.reload()
    visited.until("!document.getElementById('model').disabled")
    assert page.locator("details.thought").count() == 1
    page.click(".thought summary")
    visited.until("document.querySelector('.thought .body').innerText.startsWith('First I add two and two.')")
    page.hover(".conversation-list li")
    with page.expect_download() as waiting:
        page.click("[aria-label='Export Sum? as JSON']")
    exported = json.loads(waiting.value.path().read_text(encoding="utf-8"))["messages"][1]
    assert (exported["reasoning_content"], exported["content"]) == (THOUGHT, ANSWER)
    assert "".join(exported["pieces"]) == THOUGHT + ANSWER
    assert len(exported["provenance"]) == len(exported["pieces"])


def test_an_answer_that_was_stopped_in_its_thought_is_no_answer(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Sum?"] = Reply([], thought=words(THOUGHT), hold=True)
    page = visited.page
    visited.ask("Sum?", wait=False)
    visited.until("document.querySelector('details.thought.thinking')?.open")
    page.keyboard.press("Escape")
    page.wait_for_selector(".status.stopped")
    assert page.evaluate("document.querySelector('.thought').open") is False
    visited.ask("More?")
    assert [message["content"] for message in chat.requests[-1]["messages"]] == ["More?"]


def test_a_screen_reader_hears_that_a_model_thinks_and_not_what(chat: FakeChat, visited: Visit) -> None:
    thinks(chat, delay=0.1)
    page = visited.page
    page.evaluate(
        "window.heard = []; new MutationObserver(() => window.heard.push(document.getElementById('live').textContent))"
        ".observe(document.getElementById('live'), { childList: true, characterData: true, subtree: true })"
    )
    visited.ask("Sum?")
    heard: list[str] = page.evaluate("window.heard")
    assert heard[:2] == ["The answer is coming.", "The model is thinking."]
    assert heard[2].startswith("Four. — ")
    assert len(heard) == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_thought_is_softer_than_the_answer_in_both_themes(browser: Browser, chat: FakeChat, scheme: str) -> None:
    chat.replies["Sum?"] = Reply(words(ANSWER), thought=words(THOUGHT * 4), at_a_time=1, delay=0.01)
    with visit(browser, chat.address, color_scheme=scheme) as visited:
        page = visited.open()
        visited.ask("Sum?")
        page.click(".thought summary")
        colours = [
            page.locator(of).evaluate("(each) => getComputedStyle(each).color") for of in (".thought .body", ".answer > .body")
        ]
        assert len(set(colours)) == 2
        cursor = "getComputedStyle(document.querySelector('.thought .body p:last-child'), '::after').content"
        assert page.evaluate(cursor) == "none"
