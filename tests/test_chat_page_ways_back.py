"""What can be taken back on the chat page, and the notices that offer it: each its own, and none over what one wants to reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chromium import Visit, second_tab, visit

pytest.importorskip("uvicorn", reason="needs the server's packages (pip install 'hasten[serve]')")

from fake_chat_server import FakeChat, Reply, words

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PARAGRAPH = "A paragraph with enough words to fill a line and the next one as well.\n\n"


def titles(visited: Visit) -> list[str]:
    return visited.page.locator(".conversation bdi").all_inner_texts()


def said(visited: Visit) -> list[str]:
    return visited.page.locator(".said").all_inner_texts()


def offers(visited: Visit) -> list[str]:
    return visited.page.locator(".offer:visible .offer-text").all_inner_texts()


def undo(visited: Visit, nth: int = 0) -> None:
    visited.page.locator(".offer:visible >> text=Undo").nth(nth).click()


def have(visited: Visit, *questions: str) -> None:
    """A conversation for each question."""
    for question in questions:
        if said(visited):
            visited.page.evaluate("document.getElementById('new').click()")
        visited.ask(question)


def delete(visited: Visit, *questions: str) -> None:
    for question in questions:
        visited.page.evaluate("(label) => document.querySelector(label).click()", f"[aria-label='Delete {question}']")


def rewrite(visited: Visit, text: str) -> None:
    """Begin to change the first question."""
    visited.page.hover(".question >> nth=0")
    visited.page.click("[aria-label='Edit this question'] >> nth=0")
    visited.page.fill("#question", text)


# Deleting


def test_every_deleted_conversation_can_be_brought_back(visited: Visit) -> None:
    page = visited.page
    have(visited, "One?", "Two?", "Three?", "Four?", "Five?")
    delete(visited, "One?", "Two?", "Three?", "Four?", "Five?")
    assert titles(visited) == []
    assert offers(visited) == ["Deleted “Three?”.", "Deleted “Four?”.", "Deleted “Five?”."]
    assert page.inner_text("#behind-text") == "2 more behind these."
    undo(visited, 1)
    assert said(visited) == ["Four?"]
    assert offers(visited) == ["Deleted “Two?”.", "Deleted “Three?”.", "Deleted “Five?”."]
    for _ in range(4):
        undo(visited)
    assert sorted(titles(visited)) == ["Five?", "Four?", "One?", "Three?", "Two?"]
    assert offers(visited) == []
    page.reload()
    visited.until("document.querySelectorAll('.conversation').length === 5")


def test_many_offers_are_dismissed_one_by_one_or_at_once_and_the_focus_stays(visited: Visit) -> None:
    page = visited.page
    have(visited, "One?", "Two?", "Three?", "Four?")
    delete(visited, "One?", "Two?", "Three?", "Four?")
    page.focus(".offer:visible [aria-label='Dismiss'] >> nth=-1")
    page.keyboard.press("Enter")
    assert offers(visited) == ["Deleted “One?”.", "Deleted “Two?”.", "Deleted “Three?”."]
    assert page.locator("#behind").is_hidden()
    assert page.evaluate("document.activeElement.id") == "question"
    have(visited, "Five?")
    delete(visited, "Five?")
    page.click("#dismiss-offers")
    assert offers(visited) == []
    assert page.locator("#notices").evaluate("(box) => box.offsetHeight") == 0


def test_a_conversation_deleted_while_it_is_answered_again_comes_back_with_the_old_answer(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    have(visited, "One?")
    chat.replies["One?"] = Reply(words("A worse one."), hold=True)
    page.click("text=Answer again")
    visited.until("document.querySelector('.body').textContent === 'A worse one.'")
    delete(visited, "One?")
    chat.wait_until(lambda: chat.left == 1)
    page.wait_for_timeout(100)
    assert offers(visited) == ["Deleted “One?”."]  # and none to keep the old answer of what is gone
    undo(visited)
    visited.until("document.querySelector('.body')?.textContent.startsWith('A worse')")
    assert titles(visited) == ["One?"]


def test_what_another_tab_has_kept_is_not_offered_any_more(visited: Visit) -> None:
    have(visited, "One?")
    other = second_tab(visited)
    delete(visited, "One?")
    other.page.click("text=Keep it")
    visited.until("document.querySelectorAll('.conversation').length === 1")
    visited.page.wait_for_selector(".offer", state="detached")


def test_on_a_phone_a_way_back_is_in_the_panel_that_is_open(browser: Browser, chat: FakeChat) -> None:
    with visit(browser, chat.address, size=(390, 844)) as visited:
        page = visited.open()
        have(visited, "One?", "Two?", "Three?")
        page.click("#toggle-conversations")
        for question in ("One?", "Two?"):
            page.hover(f".conversation:has-text('{question}')")
            page.click(f"[aria-label='Delete {question}']")
        page.locator(".side .offer >> text=Undo").first.click()
        assert said(visited) == ["One?"]
        assert offers(visited) == ["Deleted “Two?”."]
        undo(visited)
        assert said(visited) == ["Two?"]


# Changing a question


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_words_of_a_changed_question_are_not_lost_with_it(way: str, visited: Visit) -> None:
    page = visited.page
    visited.ask("One?")
    page.fill("#question", "half of the next")
    rewrite(visited, "One, but better?")
    if way == "Escape":
        page.keyboard.press("Escape")
    else:
        page.click("#cancel-edit")
    assert page.input_value("#question") == "half of the next"
    assert offers(visited) == ["The question stays as it was."]
    page.click("#new")
    undo(visited)
    assert said(visited) == ["One?"]
    assert page.input_value("#question") == "One, but better?"
    assert page.locator("#editing").is_visible()
    page.press("#question", "Enter")
    visited.until("document.querySelector('.body').textContent === 'You said: One, but better?'")
    assert page.input_value("#question") == "half of the next"


def test_a_question_that_was_not_changed_is_left_without_a_word(visited: Visit) -> None:
    visited.ask("One?")
    for text in ("One?", ""):
        rewrite(visited, text)
        visited.page.keyboard.press("Escape")
        assert visited.page.locator("#editing").is_hidden()
        assert offers(visited) == []


def test_two_versions_of_a_changed_question_do_not_push_each_other_out(visited: Visit) -> None:
    page = visited.page
    visited.ask("One?")
    rewrite(visited, "First version?")
    page.keyboard.press("Escape")
    rewrite(visited, "Second version?")
    undo(visited)
    assert page.input_value("#question") == "First version?"
    undo(visited)
    assert page.input_value("#question") == "Second version?"
    page.press("#question", "Enter")
    page.wait_for_selector(".turn .foot .account")
    assert [offer for offer in offers(visited) if "stays as it was" in offer] == []


@pytest.mark.parametrize("does", ["answers again", "changes it"])
def test_words_of_a_changed_question_outlive_what_another_tab_does(does: str, visited: Visit) -> None:
    page = visited.page
    visited.ask("One?")
    rewrite(visited, "One, but better?")
    other = second_tab(visited)
    if does == "changes it":
        rewrite(other, "Uno?")
        other.page.press("#question", "Enter")
        visited.until("document.querySelector('.said').textContent === 'Uno?'")
    else:
        other.page.click("text=Answer again")
    other.page.wait_for_selector("#send:not([hidden])")
    visited.until("document.querySelector('.turn:only-child .foot .account')")
    assert page.input_value("#question") == "One, but better?"
    assert page.locator("#editing").is_visible() == (does == "answers again")
    page.press("#question", "Enter")
    page.wait_for_selector(".turn:last-child .foot .account")
    assert said(visited) == (["One, but better?"] if does == "answers again" else ["Uno?", "One, but better?"])


# A question that is too long


def test_a_question_that_is_too_long_goes_along_into_a_new_conversation(chat: FakeChat, visited: Visit) -> None:
    visited.expected_errors.append("400")
    page = visited.page
    visited.ask("One?")
    page.click("#new")
    page.fill("#question", "half of another")
    page.click(".conversation")
    chat.replies["Long?"] = Reply([], status=400, refusal="The prompt is too long.", code="context_length_exceeded")
    visited.ask("Long?")
    page.click(".actions >> text=New conversation")
    assert page.locator("#empty").is_visible()
    assert page.input_value("#question") == "half of another\n\nLong?"
    page.reload()
    visited.until("!document.getElementById('model').disabled")
    assert page.input_value("#question") == "half of another\n\nLong?"
    del chat.replies["Long?"]
    visited.ask("Long?")
    assert [each["content"] for each in chat.requests[-1]["messages"]] == ["Long?"]


# Where notices stand

COVERED = """() => {
    const seen = (selector) => [...document.querySelectorAll(selector)].filter((each) => each.checkVisibility());
    const notices = seen('.toast, #behind, .to-end');
    const wanted = seen('.composer, #question, #send, #stop, #editing');
    const over = (one, other) => one.left < other.right && other.left < one.right
        && one.top < other.bottom && other.top < one.bottom;
    const boxes = notices.map((each) => each.getBoundingClientRect());
    const pairs = boxes.flatMap((box, at) => boxes.slice(at + 1).map((other) => [box, other]));
    return {
        notices: notices.length,
        covered: wanted.filter((each) => boxes.some((box) => over(box, each.getBoundingClientRect()))).map((each) => each.id),
        crossed: pairs.filter(([box, other]) => over(box, other)).length,
        outside: boxes.filter((box) => box.left < 0 || box.right > innerWidth || box.top < 0).length,
    };
}"""


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_notices_cover_neither_the_field_nor_its_button(size: tuple[int, int], browser: Browser, chat: FakeChat) -> None:
    chat.replies["Long?"] = Reply(words(PARAGRAPH * 20), at_a_time=50)
    with visit(browser, chat.address, size=size) as visited:
        page = visited.open()
        have(visited, "One?", "Two?", "Three?", "Four?", "Long?")
        delete(visited, "One?", "Two?", "Three?", "Four?")
        page.evaluate("document.getElementById('transcript').scrollTop = 0")
        page.wait_for_selector("#to-end:not([hidden])")
        seen = page.evaluate(COVERED)
        assert seen == {"notices": 5, "covered": [], "crossed": 0, "outside": 0}
        page.evaluate("document.getElementById('marks').click()")  # a brief notice
        assert page.evaluate(COVERED) == {**seen, "notices": 6}
        rewrite(visited, "lines\n" * 12)
        assert page.evaluate(COVERED) == {**seen, "notices": 6}
        page.evaluate("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; null")
        visited.ask("Full?")  # a notice that stays
        assert "storage is full" in page.inner_text("#toast-text:visible")
        found = page.evaluate(COVERED)
        assert (found["covered"], found["crossed"], found["outside"]) == ([], 0, 0)
        assert page.locator("#notices").evaluate("(box) => box.offsetHeight") > 100


def test_a_brief_notice_moves_nothing(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Long?"] = Reply(words(PARAGRAPH * 20), at_a_time=50)
    visited.ask("Long?")
    tops = "[...document.querySelectorAll('.turn, .actions, .composer')].map((each) => each.getBoundingClientRect().top)"
    before = visited.page.evaluate(tops)
    visited.page.click("#marks")
    assert visited.page.locator("#toast").is_visible()
    assert visited.page.evaluate(tops) == before


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_a_low_window_keeps_its_field(size: tuple[int, int], browser: Browser, chat: FakeChat) -> None:
    with visit(browser, chat.address, size=(size[0], 400)) as visited:
        page = visited.open()
        have(visited, "One?", "Two?", "Three?")
        delete(visited, "One?", "Two?")
        assert offers(visited) == ["Deleted “Two?”."]
        send = page.locator("#send").bounding_box()
        assert send is not None
        assert send["y"] + send["height"] <= 400
        assert page.locator("#transcript").evaluate("(box) => box.clientHeight") > 100
