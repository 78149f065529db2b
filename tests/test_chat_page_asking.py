"""Asking, reading along, and what to do when an answer is not what was hoped for."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from chromium import Visit, visit

pytest.importorskip("uvicorn", reason="needs the server's packages (pip install 'hasten[serve]')")

from fake_chat_server import FakeChat, Reply, event, words

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PARAGRAPH = "A paragraph with enough words to fill a line and the next one as well.\n\n"
LONG = PARAGRAPH * 60
LEFT = "((each) => each.scrollHeight - each.scrollTop - each.clientHeight)(document.getElementById('transcript'))"
FOCUSED = "document.activeElement.id || document.activeElement.className || document.activeElement.localName"


def said(visited: Visit) -> list[str]:
    return visited.page.locator(".said").all_inner_texts()


def answers(visited: Visit) -> list[str]:
    return visited.page.locator(".body").all_inner_texts()


def change(visited: Visit, nth: int, question: str) -> None:
    page = visited.page
    page.hover(f".turn:nth-child({nth}) .question")
    page.click(f".turn:nth-child({nth}) [aria-label='Edit this question']")
    visited.ask(question)


# Reading along


@pytest.mark.parametrize("step", ["wheel", "key"])
def test_the_smallest_step_up_leaves_the_end_of_a_growing_answer(step: str, chat: FakeChat, visited: Visit) -> None:
    chat.replies["Long?"] = Reply(words(LONG + PARAGRAPH * 300), at_a_time=3, delay=0.01)
    page = visited.page
    visited.ask("Long?", wait=False)
    visited.until("document.getElementById('transcript').scrollTop > 300")
    if step == "wheel":
        page.mouse.move(700, 400)
        page.mouse.wheel(0, -40)
    else:
        page.focus("#transcript")
        page.keyboard.press("ArrowUp")
    page.wait_for_selector("#to-end:not([hidden])")
    visited.until(f"{LEFT} > 500")  # it grows, and the reader stays
    page.click("#to-end")
    visited.until(f"{LEFT} < 2")
    page.fill("#question", "lines\n" * 8)  # a higher field leaves less room for the transcript
    visited.until(f"{LEFT} < 2")
    assert page.locator("#to-end").is_hidden()
    page.keyboard.press("Escape")


def test_a_question_draws_its_own_turn_and_leaves_the_others(visited: Visit) -> None:
    page = visited.page
    visited.ask("One?")
    page.evaluate("document.querySelector('.turn').dataset.mine = 'yes'")
    visited.ask("Two?")
    page.click(".turn:last-child >> text=Answer again")
    page.wait_for_selector("#send:not([hidden])")
    assert page.get_attribute(".turn:first-child", "data-mine") == "yes"
    assert page.locator("button:visible", has_text="Answer again").count() == 1


# Ways back


def test_an_answer_again_that_fails_leaves_the_old_one(chat: FakeChat, visited: Visit) -> None:
    visited.expected_errors.append("Failed to load resource")
    page = visited.page
    visited.ask("One?")
    chat.replies["One?"] = Reply([], status=500, refusal="The engine failed.")
    page.click("text=Answer again")
    visited.until("document.getElementById('toast-text').textContent === 'The engine failed. The old answer is kept.'")
    assert answers(visited) == ["You said: One?"]
    page.reload()
    page.wait_for_selector(".turn")
    assert answers(visited) == ["You said: One?"]


def test_the_old_answer_can_be_had_back(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    visited.ask("One?")
    chat.replies["One?"] = Reply(words("A worse one."))
    page.click("text=Answer again")
    visited.until("document.querySelector('.body').textContent === 'A worse one.'")
    page.click("text=Keep the old answer")
    assert answers(visited) == ["You said: One?"]


@pytest.mark.parametrize("hold", [False, True], ids=["complete", "still coming"])
def test_a_changed_question_can_be_undone(hold: bool, chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    for question in ("One?", "Two?", "Three?"):
        visited.ask(question)
    chat.replies["Uno?"] = Reply(words("Hm."), hold=hold)
    page.hover(".turn:nth-child(1) .question")
    page.click(".turn:nth-child(1) [aria-label='Edit this question']")
    visited.ask("Uno?", wait=False)
    visited.until("document.querySelector('.body').textContent === 'Hm.'")
    page.click("#marks")  # its notice does not take the place of the offer
    page.click("text=Undo")
    visited.until("!document.getElementById('send').hidden")
    assert said(visited) == ["One?", "Two?", "Three?"]
    page.reload()
    page.wait_for_selector(".turn")
    assert answers(visited) == ["You said: One?", "You said: Two?", "You said: Three?"]


# Failures


def test_a_question_that_failed_is_not_sent_again_with_the_next(chat: FakeChat, visited: Visit) -> None:
    visited.expected_errors.append("Failed to load resource")
    chat.replies["Bad?"] = Reply([], status=400, refusal="No.")
    visited.ask("One?")
    visited.ask("Bad?")
    visited.ask("Two?")
    assert [each["content"] for each in chat.requests[-1]["messages"]] == ["One?", "You said: One?", "Two?"]


def test_a_mistake_of_the_page_ends_the_answer(chat: FakeChat, visited: Visit) -> None:
    visited.expected_errors.append("pieces.join")
    told = {"choices": [{"delta": {"content": "x"}}], "hasten": {"provenance": "m", "pieces": {"length": 1}}}
    chat.replies["One?"] = Reply([], raw=[event(told)])
    visited.ask("One?")
    assert visited.page.inner_text(".status.failed") == "Something on this page broke; please report it."
    assert any("pieces.join" in error for error in visited.errors)
    del chat.replies["One?"]
    visited.page.click("text=Answer again")
    visited.until("document.querySelector('.body').textContent === 'You said: One?'")


def test_a_conversation_that_became_too_long_can_go_on(chat: FakeChat, visited: Visit) -> None:
    visited.expected_errors.append("Failed to load resource")
    page = visited.page
    for question in ("One?", "Two?"):
        visited.ask(question)
    chat.replies["Three?"] = Reply([], status=400, refusal="The prompt has 9 tokens and 8 fit.", code="context_length_exceeded")
    visited.ask("Three?")
    del chat.replies["Three?"]
    page.click("text=Ask without the oldest turns")
    visited.until("document.querySelector('.turn:last-child .body').textContent === 'You said: Three?'")
    page.wait_for_selector("#send:not([hidden])")
    assert [each["content"] for each in chat.requests[-1]["messages"]] == ["Two?", "You said: Two?", "Three?"]
    page.reload()
    visited.until("!document.getElementById('model').disabled")
    visited.ask("Four?")
    assert chat.requests[-1]["messages"][0]["content"] == "Two?"
    change(visited, 1, "Uno?")
    assert [each["content"] for each in chat.requests[-1]["messages"]] == ["Uno?"]


def test_failed_turns_are_no_older_turns_to_leave_out(chat: FakeChat, visited: Visit) -> None:
    visited.expected_errors.append("Failed to load resource")
    page = visited.page
    chat.replies["Bad?"] = Reply([], status=400, refusal="No.")
    chat.replies["Long?"] = Reply([], status=400, refusal="The prompt is too long.", code="context_length_exceeded")
    for question in ("One?", "Bad?", "Bad?", "Long?"):
        visited.ask(question)
    page.click("text=Ask without the oldest turns")
    chat.wait_until(lambda: [each["content"] for each in chat.requests[-1]["messages"]] == ["Long?"])
    page.wait_for_selector("#send:not([hidden])")
    asked = len(chat.requests)
    page.click("text=Ask without the oldest turns")
    assert page.inner_text("#toast-text:visible") == "No older turn is sent with this question; it is too long by itself."
    assert len(chat.requests) == asked


def test_another_model_of_a_restarted_server_is_offered(chat: FakeChat, visited: Visit) -> None:
    visited.expected_errors.append("404")
    chat.replies["One?"] = Reply([], status=404, refusal="There is no such model.")
    chat.models = ["llama-1b"]
    visited.ask("One?")
    visited.until("document.getElementById('model').value === 'llama-1b'")
    del chat.replies["One?"]
    visited.page.click("text=Answer again")
    visited.until("document.querySelector('.body').textContent === 'You said: One?'")
    assert chat.requests[-1]["model"] == "llama-1b"
    chat.models = ["qwen-1b", "llama-1b"]
    visited.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    visited.until("document.getElementById('model').options.length === 2")


def test_a_key_that_cannot_be_sent_and_then_the_right_one(chat: FakeChat, visited: Visit) -> None:
    visited.expected_errors.append("401")
    chat.key = "sk-secret"
    page = visited.page
    visited.ask("May I?")
    page.fill("#key", "“sk-secret”")
    page.keyboard.press("Tab")
    visited.until("document.getElementById('key-error').textContent.includes('a character that no key can have')")
    page.fill("#key", "sk-secret")
    page.keyboard.press("Tab")
    page.wait_for_selector("#key-error", state="hidden")
    page.keyboard.press("Escape")
    page.click("text=Ask again")
    visited.until("document.querySelector('.body').textContent === 'You said: May I?'")


def test_who_left_the_conversation_meanwhile_can_ask_again_too(chat: FakeChat, visited: Visit) -> None:
    visited.expected_errors.append("401")
    chat.key = "sk-secret"
    page = visited.page
    visited.ask("May I?")
    page.fill("#key", "sk-secret")
    page.keyboard.press("Tab")
    page.wait_for_selector("text=Ask again")
    page.keyboard.press("Escape")
    page.click("#new")
    page.click("text=Ask again")
    visited.until("document.querySelector('.body')?.textContent === 'You said: May I?'")


def test_a_long_wait_is_explained(chat: FakeChat, browser: Browser) -> None:
    chat.replies["Slow?"] = Reply([], hold=True)
    with visit(browser, chat.address) as visited:
        visited.page.clock.install()
        page = visited.open()
        visited.ask("Slow?", wait=False)
        page.wait_for_selector(".status.waiting")
        assert page.inner_text(".status.waiting").startswith("Reading what you wrote")
        page.clock.fast_forward(3_100)
        visited.until("document.querySelector('.status').textContent.includes('the model may be loading')")
        page.keyboard.press("Escape")


def test_a_long_wait_is_explained_to_who_comes_back_to_it(chat: FakeChat, browser: Browser) -> None:
    chat.replies["Slow?"] = Reply([], hold=True)
    with visit(browser, chat.address) as visited:
        visited.page.clock.install()
        page = visited.open()
        visited.ask("One?")
        page.click("#new")
        visited.ask("Slow?", wait=False)
        page.click(".conversation >> text=One?")
        page.clock.fast_forward(2_000)
        page.click(".conversation >> text=Slow?")
        assert page.inner_text(".status.waiting").startswith("Reading what you wrote")
        page.clock.fast_forward(1_100)
        visited.until("document.querySelector('.status').textContent.includes('the model may be loading')")
        page.click(".conversation >> text=One?")
        page.click(".conversation >> text=Slow?")
        assert "the model may be loading" in page.inner_text(".status.waiting")
        page.keyboard.press("Escape")


# While an answer comes


def test_what_has_to_wait_for_an_answer_says_so(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Slow?"] = Reply(words("Slowly."), hold=True)
    page = visited.page
    visited.ask("One?")
    visited.ask("Slow?", wait=False)
    visited.until("document.querySelector('.turn:last-child .body').textContent === 'Slowly.'")
    page.hover(".turn:nth-child(1) .question")
    page.click(".turn:nth-child(1) [aria-label='Edit this question']")
    for _ in range(2):
        assert page.inner_text("#toast-text:visible") == "An answer is coming here: wait for it, or stop it."
        page.click("#toast-close")
        page.keyboard.press("Alt+Shift+R")
    page.keyboard.press("Escape")


def test_a_question_being_changed_outlives_an_answer_again(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    visited.ask("One?")
    visited.ask("Two?")
    page.hover(".turn:nth-child(1) .question")
    page.click(".turn:nth-child(1) [aria-label='Edit this question']")
    page.fill("#question", "One, better?")
    page.click(".turn:last-child >> text=Answer again")
    page.wait_for_selector("#send:not([hidden])")
    assert page.input_value("#question") == "One, better?"
    page.press("#question", "Enter")
    visited.until("document.querySelector('.body').textContent === 'You said: One, better?'")
    assert said(visited) == ["One, better?"]


# Several answers at once


def test_each_conversation_has_its_own_answer(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Slow?"] = Reply(words("It takes its time."), hold=True)
    page = visited.page
    visited.ask("Slow?", wait=False)
    visited.until("document.querySelector('.body')?.textContent === 'It takes its time.'")
    page.click("#new")
    assert page.locator("#send").is_visible()
    page.keyboard.press("Escape")
    visited.ask("Quick?")
    assert answers(visited) == ["You said: Quick?"]
    assert chat.left == 0
    page.click(".conversation >> text=Slow?")
    assert page.locator("#stop").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector(".status.stopped")
    assert answers(visited) == ["It takes its time."]


# Speed


def test_a_stopped_answer_keeps_what_was_measured(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Go on"] = Reply(words("one two three four five six seven"), delay=0.02, hold=True)
    page = visited.page
    visited.ask("Go on", wait=False)
    visited.until("document.querySelector('.body')?.textContent.endsWith('seven')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".status.stopped")
    rate = page.inner_text("#rate")
    assert float(rate) > 0
    assert f"{rate} a second" in page.inner_text(".account")
    assert page.inner_text("#rate-note") == "Plain decoding has not been measured here yet."
    page.reload()
    page.wait_for_selector(".turn")
    assert page.inner_text("#rate") == rate
    assert "suffix" in page.locator(".drafter-name").all_inner_texts()


def test_numbers_of_another_model_name_it(visited: Visit) -> None:
    visited.ask("One?")
    visited.page.select_option("#model", "qwen2.5-coder-1.5b")
    assert visited.page.inner_text("#rate-note") == "With smollm2-135m. 2.50× plain decoding (20.0 here)"


# Keyboard and focus


def test_the_focus_is_never_lost(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    page.focus(".example >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_selector(".foot .account")
    assert page.evaluate(FOCUSED) == "question"
    page.focus("text=Answer again")
    page.keyboard.press("Enter")
    page.wait_for_selector("#send:not([hidden])")
    assert page.evaluate(FOCUSED) == "question"
    page.focus(".conversation-tools [aria-label^='Delete']")
    page.keyboard.press("Enter")
    assert page.evaluate(FOCUSED) in ("new", "question")


def test_a_panel_over_the_rest_holds_the_focus(browser: Browser, chat: FakeChat) -> None:
    with visit(browser, chat.address, size=(390, 844)) as visited:
        page = visited.open()
        page.click("#toggle-conversations")
        for _ in range(12):
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.closest('.bar, .main')") is None
        page.keyboard.press("Escape")
        assert page.evaluate(FOCUSED) == "toggle-conversations"


def test_a_name_being_typed_outlives_the_end_of_an_answer(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Go on"] = Reply(words("one two three"), hold=True)
    page = visited.page
    visited.ask("First?")
    page.click("#new")
    visited.ask("Go on", wait=False)
    visited.rename("First?")
    page.keyboard.type("Half a")
    page.evaluate("document.getElementById('stop').click()")
    page.wait_for_selector(".status.stopped")
    page.keyboard.type(" name")
    page.keyboard.press("Enter")
    assert "Half a name" in page.locator(".conversation bdi").all_inner_texts()


def test_shortcuts_do_nothing_behind_a_dialog(visited: Visit) -> None:
    visited.ask("One?")
    visited.page.keyboard.press("Alt+Shift+S")
    visited.page.keyboard.press("Alt+Shift+N")
    assert visited.page.locator("#settings").is_visible()
    assert said(visited) == ["One?"]


@pytest.mark.parametrize("key", [{"isComposing": True}, {"keyCode": 229}], ids=["composing", "safari"])
def test_an_input_method_keeps_its_keys(key: dict[str, Any], chat: FakeChat, visited: Visit) -> None:
    chat.replies["Go on"] = Reply(words("one"), hold=True)
    press = """([key, event]) => document.getElementById('question').dispatchEvent(
        new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true, ...event }))"""
    page = visited.page
    page.fill("#question", "日本")
    page.evaluate(press, ["Enter", key])
    assert said(visited) == []
    visited.ask("Go on", wait=False)
    page.evaluate(press, ["Escape", key])
    assert page.locator("#stop").is_visible()
    page.keyboard.press("Escape")


def test_enter_makes_a_line_where_there_is_no_shift(browser: Browser, chat: FakeChat) -> None:
    with visit(browser, chat.address, size=(390, 500), has_touch=True, is_mobile=True) as visited:
        page = visited.open()
        page.tap("#question")
        page.keyboard.type("one")
        page.keyboard.press("Enter")
        page.keyboard.type("two")
        assert page.input_value("#question") == "one\ntwo"
        page.fill("#question", "line\n" * 30)
        assert page.locator("#question").evaluate("(field) => field.offsetHeight <= 0.4 * innerHeight + 1")
        page.tap("#send")
        page.wait_for_selector(".foot .account")


# Settings and paper


def test_a_setting_out_of_range_keeps_the_last_valid_one(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    page.click("#open-settings")
    page.fill("#temperature", "5")
    assert page.inner_text("#range-error") == "Temperature is from 0 to 2; 0.7 stays."
    page.keyboard.press("Escape")
    visited.ask("One?")
    assert chat.requests[-1]["temperature"] == 0.7
    page.click("#open-settings")
    assert page.input_value("#temperature") == "0.7"
    assert page.locator("#range-error").is_hidden()


def test_on_paper_nothing_is_cut_and_the_colours_are_light(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    page.emulate_media(color_scheme="dark")
    question = "Long?\n" * 60
    chat.replies[question.strip()] = Reply(words("Here:\n\n```\n" + "code " * 200 + "\n" * 120 + "```\n"), at_a_time=500)
    visited.ask(question.strip())
    page.wait_for_selector(".foot .actions")
    page.emulate_media(media="print", color_scheme="dark")
    for box in (".said", ".code pre"):
        assert page.eval_on_selector(box, "e => e.scrollHeight <= e.clientHeight + 1 && e.scrollWidth <= e.clientWidth + 1"), box
    for button in (".actions", ".tools", ".dock"):
        assert page.locator(button).first.is_hidden(), button
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert min(map(int, re.findall(r"\d+", paper)[:3])) > 200, paper


def test_words_whose_connection_broke_are_kept_and_go_on_with_the_conversation(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    visited.expected_errors.append("429")
    chat.replies["Tell"] = Reply(words("Once upon a time"), error_after="The engine failed.")
    visited.ask("Tell")
    page.wait_for_selector(".status.failed")
    chat.replies["Tell"] = Reply([], status=429, refusal="Too many requests are waiting.")
    page.click(".actions >> text=Answer again")
    visited.until("document.body.innerText.includes('Too many requests')")
    visited.until("document.querySelector('.answer').innerText.includes('Once upon a time')")
    chat.replies["Go on"] = Reply(words("So it went."))
    visited.ask("Go on")
    chat.wait_until(lambda: chat.requests[-1]["messages"][-1]["content"] == "Go on")
    assert [message["content"] for message in chat.requests[-1]["messages"]] == ["Tell", "Once upon a time", "Go on"]


def test_an_answer_without_words_has_nothing_to_copy(chat: FakeChat, visited: Visit) -> None:
    visited.expected_errors.append("429")
    chat.replies["Busy?"] = Reply([], status=429, refusal="Too many requests are waiting.")
    visited.ask("Busy?")
    visited.page.wait_for_selector(".actions")
    assert visited.page.locator(".actions >> text=Copy").count() == 0


def test_a_page_without_a_clipboard_copies_all_the_same(chat: FakeChat, visited: Visit) -> None:
    """Over plain HTTP browsers have none."""
    page = visited.page
    chat.replies["What?"] = Reply(words("This and that."))
    visited.ask("What?")
    page.wait_for_selector(".actions")
    page.evaluate(
        "() => { Object.defineProperty(navigator, 'clipboard', {value: undefined}); "
        "document.addEventListener('copy', () => { window.copied = document.activeElement.value; }); }"
    )
    page.click(".actions >> text=Copy")
    visited.until("window.copied === 'This and that.'")
    visited.until("document.body.innerText.includes('Answer copied')")
    assert page.evaluate("document.activeElement.closest('.actions') !== null"), "the focus is where it was"


@pytest.mark.parametrize(
    ("bound", "said"), [("max_tokens", "Most tokens"), ("cache_tokens", "begin a new one"), (None, "the limit")]
)
def test_what_cut_an_answer_is_named(chat: FakeChat, visited: Visit, bound: str | None, said: str) -> None:
    last = {
        "id": "x", "object": "chat.completion.chunk", "model": "smollm2-135m", "hasten": {"exact": True, "cut_by": bound},
        "choices": [{"index": 0, "delta": {"content": "Some"}, "finish_reason": "length"}],
    }  # fmt: skip
    chat.replies["Long?"] = Reply([], raw=[f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode()])
    visited.ask("Long?")
    visited.until(f"document.querySelector('.status').textContent.includes({said!r})")


def test_a_conversation_prints_whole(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Long?"] = Reply(words(LONG), at_a_time=100)
    visited.ask("Long?")
    pages = re.findall(rb"/Type\s*/Page\b[^s]", visited.page.pdf())
    assert len(pages) > 1
