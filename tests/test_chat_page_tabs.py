"""What the page keeps when there are two tabs, no storage, a reload or a step back: no words are lost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from chromium import Visit, second_tab, visit

pytest.importorskip("uvicorn", reason="needs the server's packages (pip install 'hasten[serve]')")

from fake_chat_server import FakeChat, Reply, words

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def titles(visited: Visit) -> list[str]:
    return visited.page.locator(".conversation bdi").all_inner_texts()


def said(visited: Visit) -> list[str]:
    return visited.page.locator(".said").all_inner_texts()


def stored(visited: Visit) -> list[Any]:
    found = "Object.entries(localStorage).filter(([name]) => name.startsWith('hasten.conversation.')).map(([, text]) => text)"
    return [json.loads(text) for text in visited.page.evaluate(found)]


def delete(visited: Visit, title: str) -> None:
    visited.page.hover(f"li:has-text('{title}')")
    visited.page.click(f"[aria-label='Delete {title}']")


# Two tabs


def test_what_one_tab_says_the_other_shows(visited: Visit) -> None:
    visited.ask("One?")
    other = second_tab(visited)
    other.ask("Two?")
    visited.until("document.querySelectorAll('.said').length === 2 && document.querySelector('.turn:last-child .account')")
    visited.ask("Three?")
    other.until("document.querySelectorAll('.said').length === 3")
    assert said(other) == ["One?", "Two?", "Three?"]
    assert len(stored(visited)) == 1


def test_a_conversation_deleted_in_one_tab_does_not_come_back_from_the_other(visited: Visit) -> None:
    visited.ask("One?")
    other = second_tab(visited)
    delete(visited, "One?")
    other.until("document.querySelectorAll('.conversation').length === 0")
    assert other.page.locator("#empty").is_visible()
    assert stored(other) == []
    assert "deleted in another tab" in other.page.inner_text(".offer")
    other.page.click("text=Keep it")
    visited.until("document.querySelectorAll('.conversation').length === 1")
    assert said(other) == ["One?"]


def test_one_deleted_while_another_tab_answers_in_it_stays_deleted(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Go on"] = Reply(words("It goes on."), hold=True)
    visited.ask("Go on", wait=False)
    visited.until("document.querySelector('.body')?.textContent === 'It goes on.'")
    other = second_tab(visited)
    delete(other, "Go on")
    chat.wait_until(lambda: chat.left == 1)
    visited.page.wait_for_selector("#empty:not([hidden])")
    assert stored(visited) == []


def test_two_tabs_that_both_go_on_keep_both(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Here?"] = Reply(words("Said here."), hold=True)
    visited.ask("First?")
    other = second_tab(visited)
    visited.ask("Here?", wait=False)
    visited.until("document.querySelector('.turn:last-child .body')?.textContent === 'Said here.'")
    # The other tab writes as if it had not heard of that yet.
    name, text = visited.page.evaluate("Object.entries(localStorage).find(([name]) => name.startsWith('hasten.conversation.'))")
    conversation = json.loads(text)
    conversation["turns"] = [conversation["turns"][0], {"question": "There?", "answer": None}]
    other.page.evaluate("([name, text]) => localStorage.setItem(name, text)", [name, json.dumps(conversation)])
    visited.until("document.querySelectorAll('.conversation').length === 2")
    visited.page.keyboard.press("Escape")
    visited.page.wait_for_selector(".status.stopped")
    questions = sorted([turn["question"] for turn in each["turns"]] for each in stored(visited))
    assert questions == [["First?", "Here?"], ["First?", "There?"]]
    assert sorted(titles(visited)) == ["Copy of First?", "First?"]
    assert said(visited) == ["First?", "Here?"]


def test_a_name_given_in_one_tab_and_an_answer_in_the_other_are_both_kept(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Go on"] = Reply(words("It goes on."), hold=True)
    visited.ask("Go on", wait=False)
    visited.until("document.querySelector('.body')?.textContent === 'It goes on.'")
    other = second_tab(visited)
    other.rename("Go on")
    other.page.keyboard.type("Better")
    other.page.keyboard.press("Enter")
    visited.until("document.querySelector('.conversation bdi').textContent === 'Better'")
    visited.page.keyboard.press("Escape")
    visited.page.wait_for_selector(".status.stopped")
    (kept,) = stored(visited)
    assert (kept["title"], kept["turns"][0]["answer"]["tokens"]["text"]) == ("Better", "It goes on.")


@pytest.mark.parametrize("way_back", ["Undo", "Keep the old answer"])
def test_a_way_back_goes_once_another_tab_has_said_more(way_back: str, visited: Visit) -> None:
    page = visited.page
    visited.ask("One?")
    if way_back == "Undo":
        page.hover(".question")
        page.click("[aria-label='Edit this question']")
        visited.ask("Changed?")
    else:
        page.click("text=Answer again")
        page.wait_for_selector("#send:not([hidden])")
    assert page.inner_text(".offer .link") == way_back
    other = second_tab(visited)
    other.rename("")
    other.page.keyboard.type("Better")
    other.page.keyboard.press("Enter")
    visited.until("document.querySelector('.conversation bdi').textContent === 'Better'")
    assert page.inner_text(".offer .link") == way_back  # a name takes nothing away
    page.click("#new")
    other.ask("From the other tab?")
    page.wait_for_selector(".offer", state="detached")
    page.click(".conversation")
    assert said(visited)[-1] == "From the other tab?"


def test_settings_of_one_tab_do_not_revert_those_of_another(chat: FakeChat, visited: Visit) -> None:
    other = second_tab(visited)
    visited.page.click("#open-settings")
    visited.page.fill("#temperature", "0.2")
    visited.page.keyboard.press("Escape")
    other.page.click("#marks")
    visited.until("document.documentElement.dataset.marks === 'off'")
    other.page.click("#open-settings")
    assert other.page.input_value("#temperature") == "0.2"
    other.page.keyboard.press("Escape")
    other.ask("Sing?")
    assert chat.requests[-1]["temperature"] == 0.2
    kept = json.loads(visited.page.evaluate("localStorage.getItem('hasten.settings')"))
    assert (kept["temperature"], kept["marks"]) == ("0.2", False)


def test_an_answer_whose_tab_died_can_be_asked_for_again(chat: FakeChat, browser: Browser) -> None:
    chat.replies["Go on"] = Reply(words("It goes on."), hold=True)
    with visit(browser, chat.address) as visited:
        visited.context.clock.install()
        dying = visited.open()
        visited.ask("Go on", wait=False)
        visited.until("document.querySelector('.body')?.textContent === 'It goes on.'")
        visited.page = second_tab(visited).page
        dying.evaluate("document.querySelector('.conversation-tools [aria-label^=Rename]').click()")
        dying.keyboard.type("Going on")
        dying.keyboard.press("Enter")
        visited.until("document.querySelector('.status.elsewhere')?.textContent === 'This answer is coming in another tab.'")
        dying.close(run_before_unload=False)
        assert visited.page.locator(".foot").inner_text() == ""
        visited.page.clock.fast_forward(10_100)
        visited.until("document.querySelector('.status.elsewhere').textContent.includes('no more of it has come')")
        chat.replies["Go on"] = Reply(words("It went on."))
        visited.page.click("text=Answer again")
        visited.until("document.querySelector('.foot .account') && document.querySelector('.body').textContent === 'It went on.'")
        assert len(stored(visited)) == 1


@pytest.mark.parametrize("end", ["reload", "close", "crash"])
@pytest.mark.parametrize("came", ["", "A worse one."])
def test_the_old_answer_is_back_where_the_page_goes_while_a_new_one_comes(
    came: str, end: str, chat: FakeChat, visited: Visit
) -> None:
    page = visited.page
    visited.ask("One?")
    chat.replies["One?"] = Reply(words(came) if came else [], hold=True)
    page.click("text=Answer again")
    visited.until(f"document.querySelector('.body').textContent === {came!r}")
    chat.wait_until(lambda: len(chat.requests) == 2)
    page.wait_for_timeout(50)
    if end == "reload":
        page.reload()
        visited.until("!document.getElementById('model').disabled")
    else:
        page.close(run_before_unload=end == "close")
        visited.page = second_tab(visited).page
    assert visited.page.locator(".body").all_inner_texts() == ["You said: One?"]
    assert visited.page.locator(".status:visible").count() == 0
    visited.ask("Two?")
    (kept,) = stored(visited)
    assert [turn["answer"]["state"] for turn in kept["turns"]] == ["done", "done"]
    assert kept["turns"][0]["answer"]["tokens"]["text"] == "You said: One?"


# No storage


def test_the_page_works_where_the_browser_blocks_site_data(browser: Browser, chat: FakeChat) -> None:
    chat.key = "sk-secret"
    with visit(browser, chat.address) as visited:
        visited.expected_errors.append("401")
        visited.context.add_init_script(
            "for (const name of ['localStorage', 'sessionStorage'])"
            " Object.defineProperty(window, name, { get() { throw new DOMException('denied', 'SecurityError'); } });"
        )
        page = visited.page
        page.goto(chat.address)
        page.wait_for_selector("#settings[open]")
        page.keyboard.type("sk-secret")
        page.keyboard.press("Escape")
        visited.until("!document.getElementById('model').disabled")
        visited.ask("One?")
        visited.ask("Two?")
        assert said(visited) == ["One?", "Two?"]
        assert chat.keys[-1] == "Bearer sk-secret"
        assert "storage is full or closed" in page.inner_text("#toast-text")


def test_a_full_storage_is_told_once(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    page.evaluate("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; null")
    visited.ask("Full?")
    assert "storage is full" in page.inner_text("#toast-text")
    page.click("#toast-close")
    visited.ask("Still full?")
    assert not page.locator("#toast").is_visible()


# What stands in the question field


def test_half_a_question_stays_with_its_conversation(visited: Visit) -> None:
    page = visited.page
    visited.ask("First?")
    page.fill("#question", "half of the second")
    page.click("#new")
    assert page.input_value("#question") == ""
    page.fill("#question", "half of another")
    page.click(".conversation >> text=First?")
    assert page.input_value("#question") == "half of the second"
    page.reload()
    visited.until("!document.getElementById('model').disabled")
    assert page.input_value("#question") == "half of the second"
    page.click("#new")
    assert page.input_value("#question") == "half of another"
    page.click(".example >> nth=0")
    page.wait_for_selector(".foot .account")
    assert page.input_value("#question") == "half of another"


def test_changing_an_earlier_question_gives_the_half_written_one_back(visited: Visit) -> None:
    page = visited.page
    visited.ask("First?")
    page.fill("#question", "half of the second")
    page.hover(".question")
    page.click("[aria-label='Edit this question']")
    page.fill("#question", "First, better?")
    page.click("#new")
    page.click(".conversation >> text=First?")
    assert page.locator("#editing").is_visible()
    assert page.input_value("#question") == "First, better?"
    page.click("#cancel-edit")
    assert page.input_value("#question") == "half of the second"
    assert page.evaluate("document.activeElement.id") == "question"
    page.click("[aria-label='Edit this question']")
    page.fill("#question", "First, better?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".foot .account")
    assert said(visited) == ["First, better?"]
    assert page.input_value("#question") == "half of the second"


# The address


def test_a_conversation_has_an_address(visited: Visit) -> None:
    page = visited.page
    visited.ask("First?")
    first = page.url
    page.click("#new")
    visited.ask("Second?")
    second = page.url
    assert first != second
    page.click(".conversation >> text=First?")
    assert page.url == first
    page.reload()
    visited.until("!document.getElementById('model').disabled")
    assert said(visited) == ["First?"]
    page.go_back()
    visited.until("document.querySelector('.said').textContent === 'Second?'")
    assert page.url == second
    page.go_back()
    visited.until("document.querySelector('.said')?.textContent === 'First?'")
    page.focus(".skip")
    page.keyboard.press("Enter")
    assert page.url == first
    assert page.evaluate("document.activeElement.id") == "question"
