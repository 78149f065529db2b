"""The chat page in a real browser, against a server whose answers the test writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from chromium import Visit, visit

pytest.importorskip("uvicorn", reason="needs the server's packages (pip install 'hasten[serve]')")
pytest.importorskip("starlette", reason="needs the server's packages (pip install 'hasten[serve]')")

from fake_chat_server import LEGEND, FakeChat, Reply, running, words

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SENTENCES = "Light is scattered by air. Short waves are scattered most. So the sky is blue, and the evening is red."


def answer_text(page: Page) -> str:
    return str(page.locator(".turn").last.locator(".body").evaluate("(body) => body.textContent"))


def tokens_shown(page: Page) -> list[list[str]]:
    """(text, code) of every token of the last answer, in order."""
    gather = "(body) => [...body.querySelectorAll('.token')].map((token) => [token.textContent, token.dataset.by])"
    found: list[list[str]] = page.locator(".turn").last.locator(".body").evaluate(gather)
    return found


def verbatim(page: Page) -> None:
    page.click("#open-settings")
    page.uncheck("#formatted")
    page.keyboard.press("Escape")


# Sending, streaming, stopping


def test_an_answer_streams_in_and_is_accounted_for(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Why?"] = Reply(words(SENTENCES), at_a_time=1, delay=0.15)  # slow enough to be looked at on the way
    page = visited.page
    visited.ask("Why?", wait=False)
    visited.until("document.querySelector('.body')?.textContent.includes('scattered by')")
    early = answer_text(page)
    assert page.locator("#stop").is_visible()
    page.wait_for_selector(".foot .account")
    assert SENTENCES.startswith(early)
    assert early != SENTENCES
    assert answer_text(page) == SENTENCES
    assert page.locator(".said").inner_text() == "Why?"
    account = " ".join(page.locator(".account").inner_text().split())
    assert account == "20 tokens · 50.0 a second · 2.50× plain · 15 of 30 guesses right · exact"
    sent = chat.requests[-1]
    assert sent == {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "Why?"}],
        "stream": True,
        "temperature": 0.7,
        "stream_options": {"include_usage": True},
        "provenance": True,
    }


def test_the_next_question_carries_the_conversation(chat: FakeChat, visited: Visit) -> None:
    visited.ask("One?")
    visited.ask("Two?")
    assert chat.requests[-1]["messages"] == [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "You said: One?"},
        {"role": "user", "content": "Two?"},
    ]


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_stream_and_keeps_what_came(how: str, chat: FakeChat, visited: Visit) -> None:
    chat.replies["Go on"] = Reply(words(SENTENCES), hold=True)
    page = visited.page
    visited.ask("Go on", wait=False)
    visited.until("document.querySelector('.body')?.textContent.endsWith('red.')")
    assert chat.left == 0
    if how == "button":
        page.click("#stop")
    else:
        page.keyboard.press("Escape")
    page.wait_for_selector(".status.stopped")
    chat.wait_until(lambda: chat.left == 1)
    assert answer_text(page) == SENTENCES
    visited.ask("And now?")
    assert chat.requests[-1]["messages"][1] == {"role": "assistant", "content": SENTENCES}


def test_answer_again_replaces_the_last_answer(chat: FakeChat, visited: Visit) -> None:
    visited.ask("One?")
    visited.ask("Two?")
    chat.replies["Two?"] = Reply(words("Another answer."))
    page = visited.page
    assert page.locator("button:visible", has_text="Answer again").count() == 1
    page.click(".turn:last-child >> text=Answer again")
    visited.until("document.querySelector('.turn:last-child .body').textContent === 'Another answer.'")
    page.wait_for_selector("#send:not([hidden])")
    assert page.locator(".turn").count() == 2
    assert [each["content"] for each in chat.requests[-1]["messages"]] == ["One?", "You said: One?", "Two?"]


def test_a_changed_question_replaces_all_that_follows(chat: FakeChat, visited: Visit) -> None:
    for question in ("One?", "Two?", "Three?"):
        visited.ask(question)
    page = visited.page
    page.hover(".turn:nth-child(2) .question")
    page.click(".turn:nth-child(2) [aria-label='Edit this question']")
    assert page.input_value("#question") == "Two?"
    page.click("#cancel-edit")
    assert page.input_value("#question") == ""
    assert page.locator(".turn").count() == 3
    page.hover(".turn:nth-child(2) .question")
    page.click(".turn:nth-child(2) [aria-label='Edit this question']")
    visited.ask("Deux?")
    assert page.locator(".said").all_inner_texts() == ["One?", "Deux?"]
    assert [each["content"] for each in chat.requests[-1]["messages"]] == ["One?", "You said: One?", "Deux?"]


def test_copy_gives_the_text_as_the_model_wrote_it(chat: FakeChat, browser: Browser) -> None:
    text = "A **bold** word:\n\n```py\nprint(1)\n```"
    chat.replies["Code?"] = Reply(words(text))
    with visit(browser, chat.address, permissions=["clipboard-read", "clipboard-write"]) as visited:
        page = visited.open()
        visited.ask("Code?")
        page.click(".actions >> text=Copy")
        visited.until("document.getElementById('toast-text').textContent === 'Answer copied.'")
        assert page.evaluate("navigator.clipboard.readText()") == text
        page.click("[aria-label='Copy code']")
        visited.until("document.getElementById('toast-text').textContent === 'Code copied.'")
        assert page.evaluate("navigator.clipboard.readText()") == "print(1)\n"


# Who guessed


def test_every_token_wears_the_code_that_the_api_gave_it(chat: FakeChat, visited: Visit) -> None:
    tokens = words("Some **bold** text\nand `code` and more of it, said twice and said twice.", codes="mslrplsm")
    tokens[3:4] = [("", "s"), tokens[3]]  # a token whose character is completed by the next one
    chat.replies["Who?"] = Reply(tokens, at_a_time=2)
    verbatim(visited.page)
    visited.ask("Who?")
    assert tokens_shown(visited.page) == [[piece, code] for piece, code in tokens if piece]


def test_marks_differ_in_colour_and_in_line(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Who?"] = Reply([(f" {name}", code) for code, name in LEGEND.items()])
    page = visited.page
    visited.ask("Who?")
    looks = """(body) => Object.fromEntries([...body.querySelectorAll('.token')].map((token) => {
        const style = getComputedStyle(token);
        return [token.dataset.by, [style.backgroundImage, style.textDecorationStyle + style.textDecorationThickness]];
    }))"""
    shown: dict[str, list[str]] = page.locator(".body").evaluate(looks)
    assert set(shown) == set(LEGEND)
    assert shown.pop("m")[0] == "none"
    assert len({colour for colour, _ in shown.values()}) == len(shown)
    assert len({line for _, line in shown.values()}) == len(shown)
    assert (
        len({colour for colour, _ in page.locator(".drafter-list").evaluate(looks.replace("dataset.by", "className")).values()})
        == 6
    )
    page.click("#marks")
    assert page.get_attribute("#marks", "aria-pressed") == "false"
    hidden: dict[str, list[str]] = page.locator(".body").evaluate(looks)
    assert {colour for colour, _ in hidden.values()} == {"none"}


def test_the_panel_names_drafters_shares_and_reasons(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Who?"] = Reply(words(SENTENCES, codes="mssl"))
    visited.ask("Who?")
    gather = "(rows) => rows.map((row) => [row.querySelector('.drafter-name').textContent, row.innerText])"
    rows = dict(visited.page.locator("#drafter-list > li").evaluate_all(gather))
    assert set(rows) == {"model", "suffix", "lm", "recycling"}
    assert "50 %" in rows["suffix"]
    assert "10 of 20 guesses right." in rows["suffix"]
    assert "It has not cost more here than it may" in rows["suffix"]
    assert "25 %" in rows["lm"]
    assert "off" in rows["recycling"]
    assert "Expected to be right 0.12 of the time it does not pay" in rows["recycling"]
    assert visited.page.locator("#rate").inner_text() == "50.0"
    assert visited.page.get_attribute("#meter", "aria-valuetext") == "50.0 tokens per second, 2.50 times plain decoding"
    assert visited.page.locator("#rate-note").inner_text() == "2.50× plain decoding (20.0 here)"
    assert "Exact" in visited.page.locator("#promise").inner_text()


def test_who_guessed_what_is_there_as_a_list_and_under_the_pointer(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Who?"] = Reply([("One", "m"), (" two", "s"), (" three", "s"), (" four", "l")])
    page = visited.page
    visited.ask("Who?")
    page.click("text=Who guessed what")
    page.locator(".runs li").first.wait_for()
    rows = page.locator(".runs li").evaluate_all("(rows) => rows.map((row) => [...row.children].map((cell) => cell.textContent))")
    assert rows == [["model", "One"], ["suffix", " two three"], ["lm", " four"]]
    page.hover(".body .token[data-by='l']")
    page.wait_for_selector("#tip:not([hidden])")
    assert page.locator("#tip").inner_text() == "lm · Guessed by a smaller model."


def test_tokens_of_a_drafter_that_the_page_does_not_know_are_marked_too(chat: FakeChat, visited: Visit) -> None:
    event = {"choices": [{"index": 0, "delta": {"content": "ab"}}], "hasten": {"provenance": "mz", "pieces": ["a", "b"]}}
    event["hasten"]["legend"] = {"m": "model", "z": "oracle"}  # type: ignore[call-overload,index]
    chat.replies["Who?"] = Reply([], raw=[f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()])
    visited.ask("Who?")
    names = visited.page.locator(".drafter-name").all_inner_texts()
    assert names == ["model", "oracle"]
    assert "mark-8" in str(visited.page.locator(".body .token").last.get_attribute("class"))


# Keeping


def test_a_reload_keeps_the_conversation(chat: FakeChat, visited: Visit) -> None:
    tokens = words("Kept **here** only.", codes="mslr")
    chat.replies["Keep?"] = Reply(tokens)
    page = visited.page
    visited.ask("Keep?")
    before = (answer_text(page), tokens_shown(page), page.locator(".account").inner_text())
    asked = len(chat.requests)
    visited.open()
    assert (answer_text(page), tokens_shown(page), page.locator(".account").inner_text()) == before
    assert page.locator(".said").inner_text() == "Keep?"
    assert page.locator("#rate").inner_text() == "50.0"
    assert len(chat.requests) == asked


def test_an_answer_cut_by_a_reload_keeps_what_came(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Go on"] = Reply(words(SENTENCES), hold=True)
    page = visited.page
    visited.ask("Go on", wait=False)
    visited.until("document.querySelector('.body')?.textContent.endsWith('red.')")
    visited.open()
    assert answer_text(page) == SENTENCES
    assert page.locator(".status").inner_text() == "Stopped here."
    chat.wait_until(lambda: chat.left == 1)


def test_conversations_can_be_opened_renamed_deleted_and_brought_back(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    visited.ask("First?")
    page.click("#new")
    assert page.locator("#empty").is_visible()
    visited.ask("Second?")
    titles = page.locator(".conversation bdi")
    assert titles.all_inner_texts() == ["Second?", "First?"]
    page.click(".conversation >> text=First?")
    assert page.locator(".said").inner_text() == "First?"
    visited.rename("First?")
    page.keyboard.type("A better name")
    page.keyboard.press("Enter")
    assert titles.all_inner_texts() == ["Second?", "A better name"]
    assert page.title() == "A better name · Hasten"
    page.hover("li:has-text('A better name')")
    page.click("[aria-label='Delete A better name']")
    assert titles.all_inner_texts() == ["Second?"]
    assert page.locator(".said").inner_text() == "Second?"
    page.click("text=Undo")
    assert page.locator(".said").inner_text() == "First?"
    page.hover("li:has-text('Second?')")
    page.click("[aria-label='Delete Second?']")
    visited.open()
    assert titles.all_inner_texts() == ["A better name"]


def test_export_holds_the_messages_and_the_owner_of_every_token(chat: FakeChat, visited: Visit) -> None:
    chat.replies["Out?"] = Reply([("One", "m"), (" two", "s")])
    page = visited.page
    visited.ask("Out?")
    page.hover("li:has-text('Out?')")
    with page.expect_download() as waiting:
        page.click("[aria-label='Export Out? as JSON']")
    assert waiting.value.suggested_filename == "Out.json"
    exported = json.loads(waiting.value.path().read_text(encoding="utf-8"))
    question, answer = exported["messages"]
    assert question == {"role": "user", "content": "Out?"}
    assert answer["content"] == "One two"
    assert answer["pieces"] == ["One", " two"]
    assert answer["provenance"] == ["m", "s"]
    assert answer["hasten"]["exact"] is True


def test_what_cannot_be_read_from_storage_is_told_and_left_alone(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    visited.ask("Good?")
    broken = [
        "{",
        "null",
        '{"id": "x"}',
        '{"id":"y","title":"","system":"","created":1,"updated":1,"turns":[{"question":1,"answer":null}]}',
    ]
    for at, text in enumerate(broken):
        page.evaluate("([name, text]) => localStorage.setItem(name, text)", [f"hasten.conversation.broken{at}", text])
    page.evaluate("localStorage.setItem('hasten.settings', '[1, 2')")
    visited.open()
    assert page.locator(".conversation").all_inner_texts() == ["Good?"]
    assert page.locator("#toast-text").inner_text() == "4 saved conversations could not be read."
    assert page.evaluate("localStorage.getItem('hasten.conversation.broken0')") == "{"


def test_a_full_storage_is_told_and_the_chat_goes_on(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    page.evaluate(
        "for (let size = 4e6; size >= 1; "
        "size = Math.floor(size / 2)) { try { localStorage.setItem('fill' + size, 'x'.repeat(size)); } catch {} }"
    )
    page.evaluate("try { for (let at = 0; ; at += 1) localStorage.setItem('f' + at, ''); } catch {}")
    visited.ask("Full?")
    assert answer_text(page) == "You said: Full?"
    assert "storage is full" in page.locator("#toast-text").inner_text()


# Settings


def test_who_sets_nothing_asks_at_a_moderate_temperature(chat: FakeChat, visited: Visit) -> None:
    visited.ask("Sing?")
    assert chat.requests[-1]["temperature"] == 0.7
    assert not {"max_tokens", "seed"} & chat.requests[-1].keys()


def test_settings_reach_the_request_and_wrong_ones_do_not(chat: FakeChat, visited: Visit) -> None:
    page = visited.page
    page.keyboard.press("Alt+Shift+S")
    page.fill("#system", "Answer in rhymes.")
    page.fill("#temperature", "0.4")
    page.fill("#max-tokens", "64")
    page.fill("#seed", "-3")
    assert page.get_attribute("#seed", "aria-invalid") == "true"
    page.keyboard.press("Escape")
    page.select_option("#model", "qwen2.5-coder-1.5b")
    visited.ask("Sing?")
    sent = chat.requests[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Answer in rhymes."}
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("qwen2.5-coder-1.5b", 0.4, 64)
    assert "seed" not in sent
    visited.open()
    assert page.input_value("#temperature") == "0.4"
    assert page.input_value("#model") == "qwen2.5-coder-1.5b"
    page.click("#new")
    page.click("#open-settings")
    page.fill("#system", "")
    page.fill("#temperature", "")
    page.fill("#max-tokens", "")
    page.fill("#seed", "7")
    page.keyboard.press("Escape")
    visited.ask("Again?")
    assert [each["role"] for each in chat.requests[-1]["messages"]] == ["user"]
    assert chat.requests[-1]["seed"] == 7
    assert "temperature" not in chat.requests[-1]


def test_the_key_is_asked_for_sent_and_kept_for_this_tab_only(browser: Browser, chat: FakeChat) -> None:
    chat.key = "sk-secret"
    with visit(browser, chat.address) as visited:
        visited.expected_errors.append("401")
        page = visited.page
        page.goto(chat.address)
        page.wait_for_selector("#settings[open]")
        assert page.locator("#key-error").inner_text() == "This server wants an API key."
        page.keyboard.type("sk-secret")
        page.keyboard.press("Escape")
        visited.until("!document.getElementById('model').disabled")
        visited.ask("May I?")
        assert answer_text(page) == "You said: May I?"
        assert chat.keys[-1] == "Bearer sk-secret"
        assert page.evaluate("sessionStorage.getItem('hasten.key')") == "sk-secret"
        assert "sk-secret" not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
        other = visited.context.new_page()
        other.goto(chat.address)
        other.wait_for_selector("#settings[open]")  # a new tab has no key


def test_themes_follow_the_system_until_one_is_chosen(browser: Browser, chat: FakeChat) -> None:
    with visit(browser, chat.address, color_scheme="dark") as visited:
        page = visited.open()
        paper = "getComputedStyle(document.documentElement).backgroundColor"
        dark = page.evaluate(paper)
        page.emulate_media(color_scheme="light")
        light = page.evaluate(paper)
        assert dark != light
        page.click("#theme")
        page.click("#theme")
        assert page.get_attribute("#theme", "aria-label") == "Theme: dark"
        assert page.evaluate(paper) == dark
        visited.open()
        assert page.evaluate(paper) == dark


# What goes wrong


def raw_event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


SOME = raw_event({"choices": [{"index": 0, "delta": {"content": "Some text"}}]})
FAILURES = {
    "refused": (
        Reply([], status=400, refusal="The prompt has 9000 tokens and 8192 fit."),
        "The prompt has 9000 tokens and 8192 fit.",
    ),
    "busy": (Reply([], status=429, refusal="Too many requests are waiting."), "Too many requests are waiting. Try again in 3 s."),
    "error in the stream": (Reply(words("Some text"), error_after="The engine failed."), "The engine failed."),
    "cut": (Reply([], raw=[SOME]), "The connection ended before the answer was complete."),
    "no JSON": (Reply([], raw=[SOME, b"data: {]\n\n"]), "The connection broke before the answer was complete"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_is_told_and_the_question_can_be_asked_again(kind: str, chat: FakeChat, visited: Visit) -> None:
    reply, message = FAILURES[kind]
    visited.expected_errors.append("Failed to load resource")
    chat.replies["Risk?"] = reply
    page = visited.page
    visited.ask("Risk?")
    assert page.locator(".status.failed").inner_text().startswith(message)
    if reply.status == 200:
        assert answer_text(page) == "Some text"
    chat.replies["Risk?"] = Reply(words("All is well."))
    page.click("text=Answer again")
    visited.until("document.querySelector('.body').textContent === 'All is well.'")
    assert page.locator(".status.failed").count() == 0


def test_a_server_that_is_gone_is_told(browser: Browser) -> None:
    with running(FakeChat()) as chat, visit(browser, chat.address) as visited:
        visited.expected_errors.append("ERR_CONNECTION_REFUSED")
        page = visited.open()
        page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
        visited.ask("Anyone?")
        assert page.locator(".status.failed").inner_text() == "The server cannot be reached. Is hasten serve still running?"


# Hostile answers

HOSTILE = {
    "script": "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'><svg onload='window.pwned=1'>",
    "links": "[click](javascript:window.pwned=1) <a href='javascript:window.pwned=1'>here</a> https://evil.example/x.png ![i](https://evil.example/i.png)",
    "in code": '```html"><img src=x onerror=alert(1)>\n</code></pre><script>window.pwned = 1</script>\n```\nafter',
    "long line": "x" * 20_000,
    "long line of code": "```\n" + "y" * 20_000 + "\n```",
    "right to left": "safe \u202egnp.exe \u2066 and \u202d more \u200f\n\nשלום עולם and then English.",
    "control characters": "null \x00 bell \x07 escape \x1b[31mred\x1b[0m c1 \x9b31m",
    "stacked accents": "a" + "\u0300" * 2_000 + " b",
    "half a pair": "broken \ud83d half \udc00 end",
    "other separators": "one\u2028two\u2029three\rfour\x0bfive\x0csix",
    "deep markup": "> " * 500
    + "deep\n"
    + "\n".join(" " * (2 * depth) + "- item" for depth in range(200))
    + "\n"
    + "**_" * 500
    + "x",
    "prototype": "__proto__ constructor toString ${1+1} {{7*7}} %s",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("formatted", [True, False], ids=["formatted", "verbatim"])
def test_hostile_text_is_shown_as_text_and_does_no_harm(kind: str, formatted: bool, chat: FakeChat, visited: Visit) -> None:
    text = HOSTILE[kind]
    cut = [text[at : at + 7] for at in range(0, len(text), 7)]
    question = f"Show {kind}"
    chat.replies[question] = Reply([(piece, "mslr"[at % 4]) for at, piece in enumerate(cut)], at_a_time=200)
    page = visited.page
    if not formatted:
        verbatim(page)
    visited.ask(question)
    if not formatted:
        assert answer_text(page) == text
    assert page.evaluate("window.pwned") is None
    allowed = "p, span, a, strong, em, code, pre, ul, ol, li, blockquote, h3, hr, table, tbody, tr, th, td, div, button, svg, use"
    assert (
        page.locator(".body").evaluate(
            "(body, allowed) => [...body.querySelectorAll(`:not(${allowed})`)].length", f":is({allowed})"
        )
        == 0
    )
    assert page.locator(".body :is(img, script, iframe, object, form, style, link)").count() == 0
    led = page.locator(".body a").evaluate_all("(links) => links.map((each) => [each.getAttribute('href'), each.textContent])")
    addresses = ["https://evil.example/x.png", "https://evil.example/i.png"] if kind == "links" and formatted else []
    assert led == [[address, address] for address in addresses]
    handlers = "(body) => [...body.querySelectorAll('*')].flatMap((each) => each.getAttributeNames())"
    handlers += ".filter((name) => /^on|^style|^src/.test(name))"
    assert page.locator(".body").evaluate(handlers) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.getElementById('transcript').scrollWidth <= document.getElementById('transcript').clientWidth")
