"""What lies around the conversation: the list, the settings and the notices keep what is typed into them and lose no click."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chromium import Visit

pytest.importorskip("uvicorn", reason="needs the server's packages (pip install 'hasten[serve]')")

from fake_chat_server import FakeChat, Reply, event, words

# The list of conversations


def test_a_click_elsewhere_ends_renaming_and_counts(visited: Visit) -> None:
    page = visited.page
    visited.ask("One?")
    page.click("#new")
    visited.ask("Two?")
    visited.rename("Two?")
    page.keyboard.type("Better")
    page.click(".conversation:has-text('One?')")
    assert page.locator(".said").all_inner_texts() == ["One?"]
    assert page.locator(".conversation bdi").all_inner_texts() == ["Better", "One?"]
    visited.rename("Better")
    page.click("#question")
    page.keyboard.type("What is typed next")
    assert page.input_value("#question") == "What is typed next"
    for key in ("Enter", "Escape"):
        visited.rename("Better")
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.textContent") == "Better"


def test_a_click_outlives_a_list_that_is_drawn_anew(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Two?"] = Reply(words("Two."), hold=True)
    page = visited.page
    visited.ask("One?")
    page.click("#new")
    visited.ask("Two?", wait=False)
    visited.until("document.querySelector('.body')?.textContent === 'Two.'")
    page.hover(".conversation:has-text('One?')")
    page.mouse.down()
    page.keyboard.press("Escape")
    page.wait_for_selector(".status.stopped")
    page.mouse.up()
    assert page.locator(".said").all_inner_texts() == ["One?"]


def test_a_long_name_is_kept_whole(visited: Visit, tmp_path: Path) -> None:
    page = visited.page
    visited.ask("A" * 80)
    visited.rename("AAA")
    assert page.input_value(".rename") == "A" * 80
    page.keyboard.press("Enter")
    with page.expect_download() as waiting:
        page.click("[aria-label^='Export']")
    waiting.value.save_as(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["title"] == "A" * 80
    visited.rename("AAA")
    page.fill(".rename", "N" * 100)
    page.keyboard.press("Enter")
    visited.rename("NNN")
    page.click("#question")
    (saved,) = page.evaluate(
        "Object.entries(localStorage).filter(([name]) => name.includes('conversation')).map(([, text]) => text)"
    )
    assert json.loads(saved)["title"] == "N" * 100
    assert page.inner_text(".conversation bdi") == "N" * 60 + "…"


# Settings


def test_the_settings_close_by_a_click_beside_them_only(visited: Visit) -> None:
    page = visited.page
    page.click("#open-settings")
    page.fill("#system", "Be brief, whatever you are asked.")
    drawer, field = page.locator("#settings").bounding_box(), page.locator("#system").bounding_box()
    assert drawer is not None
    assert field is not None
    page.mouse.click(drawer["x"] + 8, drawer["y"] + 300)
    page.mouse.move(field["x"] + 60, field["y"] + 15)
    page.mouse.down()
    page.mouse.move(drawer["x"] - 60, field["y"] + 15, steps=4)
    page.mouse.up()
    assert page.locator("#settings").is_visible()
    page.mouse.click(drawer["x"] - 60, 300)
    assert page.locator("#settings").is_hidden()


def test_a_wrong_number_is_told_as_long_as_it_stands(visited: Visit) -> None:
    page = visited.page
    page.click("#open-settings")
    page.fill("#temperature", "9")
    page.fill("#max-tokens", "5")
    assert page.inner_text("#range-error:visible") == "Temperature is from 0 to 2; 0.7 stays."
    page.fill("#seed", "-1")
    assert page.inner_text("#range-error").endswith(
        "0.7 stays. Seed is a whole number from 0 to 9007199254740991; it stays with the server's choice."
    )
    page.fill("#temperature", "1")
    page.fill("#seed", "")
    assert page.locator("#range-error").is_hidden()


def test_another_tab_changes_no_number_that_is_being_typed(visited: Visit) -> None:
    page = visited.page
    page.click("#open-settings")
    page.fill("#temperature", "9")
    page.focus("#max-tokens")
    other = visited.context.new_page()
    other.goto(visited.address)
    other.click("#marks")
    visited.until("document.documentElement.dataset.marks === 'off'")
    assert not page.is_checked("#marks-setting")
    assert page.input_value("#temperature") == "9"
    assert page.locator("#range-error").is_visible()
    other.click("#open-settings")
    other.fill("#temperature", "0.2")
    visited.until("document.getElementById('temperature').value === '0.2'")
    assert page.locator("#range-error").is_hidden()
    assert page.get_attribute("#temperature", "aria-invalid") == "false"


# Notices


def test_notices_are_in_reach_while_a_dialog_is_open(visited: Visit) -> None:
    page = visited.page
    visited.ask("One?")
    page.hover(".conversation-list li")
    page.click("[aria-label^='Delete']")
    visited.ask("Two?")
    page.evaluate("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; null")
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    assert "storage is full" in page.inner_text("#toast-text:visible")
    page.click("#toast-close")
    assert page.locator("#toast").is_hidden()
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+Shift+K")
    page.click(".offer .link")
    assert page.locator("#shortcuts").is_hidden()
    assert page.locator(".said").all_inner_texts() == ["One?"]


# Who guessed


def test_a_letter_that_another_drafter_gets_later_leaves_earlier_answers_as_they_were(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    chat.replies["One?"] = Reply([("One", "s")])
    visited.ask("One?")
    told = {"provenance": "s", "pieces": ["Two"], "legend": {"m": "model", "s": "sketch"}}
    chat.replies["Two?"] = Reply([], raw=[event({"choices": [{"delta": {"content": "Two"}}], "hasten": told}), b"data: [DONE]\n\n"])
    visited.ask("Two?")
    for _ in range(2):
        for nth, name, mark in ((1, "suffix", "mark-1"), (2, "sketch", "mark-8")):
            token = page.locator(f".turn:nth-child({nth}) .token[data-by=s]").first
            token.hover()
            page.wait_for_selector("#tip:not([hidden])")
            assert page.inner_text("#tip").startswith(f"{name} · ")
            assert mark in str(token.get_attribute("class"))
            page.click(f".turn:nth-child({nth}) summary")
            assert page.inner_text(f".turn:nth-child({nth}) .run-who") == name
        assert page.locator(".drafter-name").all_inner_texts() == ["model", "sketch"]
        page.reload()
        visited.until("!document.getElementById('model').disabled")
