"""`hasten chat`: a conversation by script, its commands, and what Ctrl-C does in a real terminal."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_fakes import CommandLine, FakeLLM, driver
from hasten.cli.conversation import COMMANDS, Conversation, obey
from hasten.cli.screen import CONTROLS, DRAFTER_STYLES, Provenance
from hasten.core.errors import InvalidRequest
from hasten.core.results import StreamEvent
from hasten.core.types import SamplingParams

REPLY = FakeLLM.reply
TELLS_WHAT_WAS_ASKED = "import atexit\natexit.register(lambda: print('ASKED', FakeLLM.made[0].asked))"


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    return CommandLine(monkeypatch, capsys, tmp_path)


def test_a_script_is_one_message_a_line(command_line: CommandLine) -> None:
    command_line.llm.reply = "Yes."
    done = command_line("chat", "--system", "Be brief.", stdin="first\n\n//second\n")
    assert done.status == 0
    assert done.out == "Yes.\nYes.\n"
    llm = command_line.made
    assert llm.asked == [
        "<system>Be brief.<user>first",
        "<system>Be brief.<user>first<assistant>Yes.<user>/second",
    ]
    assert llm.params[0].max_tokens == 1024
    assert llm.closed
    assert done.err.count("1.60x plain") == 2
    assert "\x1b" not in done.out + done.err


def test_lines_between_quotes_are_one_message_of_a_script(command_line: CommandLine) -> None:
    command_line.llm.reply = "Yes."
    script = '"""\n/quit\n\nline two\n"""\n"""in one line"""\nplain\n"""never\nended\n'
    done = command_line("chat", stdin=script)
    assert done.status == 0
    asked = command_line.made.asked[-1].replace("<assistant>Yes.", "").split("<user>")[1:]
    assert asked == ["/quit\n\nline two", "in one line", "plain", "never\nended"]
    assert done.out == "Yes.\n" * 4


def test_a_script_is_utf_8_whatever_the_locale(command_line: CommandLine) -> None:
    done = command_line("chat", stdin="grün\n".encode() + b"h\xff\n")
    assert command_line.made.asked == ["<user>grün"]
    assert done.status == 1
    assert "Line 2 of standard input is not UTF-8 text (byte 2 is 0xff)" in done.err


def test_commands(command_line: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    script = f"/temperature 0.5\n/seed 7\n/system New.\nhello\n/stats\n/save {file}\n/reset\nagain\n/quit\nnever\n"
    done = command_line("chat", stdin=script)
    assert done.status == 0
    llm = command_line.made
    assert llm.asked == ["<system>New.<user>hello", "<system>New.<user>again"]
    assert llm.params[0] == SamplingParams(max_tokens=1024, temperature=0.5, seed=7)
    saved = json.loads(file.read_text())
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    for part in ("The seed is 7", "1 answer, 16 tokens, 40.0 tok/s", "1.60x", "suffix: 8 of 12", "forgotten"):
        assert part in done.err
    assert command_line("generate", "--prompts", str(file)).status == 0


def test_no_context_is_in_use_after_a_reset(command_line: CommandLine) -> None:
    done = command_line("chat", stdin="hello\n/stats\n/reset\n/stats\n")
    assert done.err.count("1 answer, 16 tokens") == 2
    assert done.err.count("positions of context in use") == 1


def test_an_empty_answer_takes_the_question_back(command_line: CommandLine) -> None:
    command_line.llm.reply = ""
    done = command_line("chat", stdin="hello\nagain\n/stats\n")
    assert command_line.made.asked == ["<user>hello", "<user>again"]
    assert done.err.count("the answer is empty; your message is taken back") == 2
    assert "tok/s" not in done.err
    assert "No answer yet." in done.err
    assert done.out == ""


def test_help_names_every_command(command_line: CommandLine) -> None:
    done = command_line("chat", stdin="/HELP\n/stats\n")
    for name in COMMANDS:
        assert f"/{name}" in done.err
    assert "No answer yet." in done.err


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("/hlep", "did you mean '/help'?"),
        ("/clear", "did you mean '/reset'?"),
        ("/bye", "did you mean '/quit'?"),
        ("/", "no command '/'"),
        ("/temperature hot", "'hot'"),
        ("/temperature -1", "temperature"),
        ("/temperature nan", "temperature"),
        ("/seed 1.5", "a whole number"),
        ("/seed -1", "seed"),
        ("/save", "name of a file"),
        ("/save /dev/null/x", "cannot be written"),
    ],
)
def test_a_wrong_command_is_one_sentence(command_line: CommandLine, line: str, part: str) -> None:
    done = command_line("chat", stdin=f"{line}\nnever reached\n")
    assert done.status == 1
    assert part in done.err
    assert done.err.startswith("hasten: ")
    assert done.err.count("\n") == 1
    assert command_line.made.asked == []


def test_a_seed_says_what_it_needs_to_matter() -> None:
    for params, told in (
        (SamplingParams(), "/temperature is above 0"),
        (SamplingParams(temperature=1.0, top_p=0.0), "--top-p is above 0"),
        (SamplingParams(temperature=1.0), "The seed is 7."),
    ):
        assert told in list(obey(Conversation(params), "/seed 7"))[-1]


def test_save_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("kept")
    with pytest.raises(InvalidRequest, match="exists already"):
        obey(Conversation(SamplingParams()), f"/save {path}")
    assert path.read_text() == "kept"


@given(st.text(max_size=20))
def test_any_slash_line_is_obeyed_or_refused(text: str) -> None:
    if text.startswith("save"):
        return
    conversation = Conversation(SamplingParams())
    try:
        shown = obey(conversation, f"/{text}")
    except InvalidRequest:
        assert conversation == Conversation(SamplingParams())
    else:
        assert all(isinstance(line, str) for line in shown)


def test_a_full_context_offers_reset(command_line: CommandLine) -> None:
    done = command_line("chat", stdin="short\n" + "word " * 100 + "\n")
    assert done.status == 1
    assert "/reset" in done.err
    assert done.out == REPLY + "\n"


@pytest.mark.parametrize(
    ("bound", "said", "reset"),
    [
        ("max_tokens", "cut at the length limit", False),
        ("cache_tokens", "cut: the cache is full (raise --cache-tokens)", True),
        ("context_length", "cut: the context is full (raise --context-length)", True),
        ("model", "cut: the model's context is full", True),
    ],
)
def test_what_cut_an_answer_is_named(command_line: CommandLine, bound: str, said: str, reset: bool) -> None:
    command_line.llm.cut_by = bound
    done = command_line("chat", "--max-tokens", "4", stdin="short\n")
    assert said in done.err
    assert ("The conversation fills all 64 positions; /reset" in done.err) is reset
    assert said in command_line("generate", "short", "--max-tokens", "4").err


def test_a_model_without_template_cannot_chat(command_line: CommandLine) -> None:
    command_line.llm.template = False
    done = command_line("chat", stdin="hello\n")
    assert done.status == 1
    assert "--raw" in done.err
    assert command_line.made.closed


def test_provenance_counts_in_a_script(command_line: CommandLine) -> None:
    done = command_line("chat", "--provenance", stdin="x\n")
    assert "model 25 %" in done.err
    assert done.out == REPLY + "\n"


def test_each_character_has_the_style_of_its_token() -> None:
    pieces = ["ab", " c", "\ufffd", "é", "xyz"]  # the third token is half a character, which the fourth completes

    def decode(tokens: list[int]) -> str:
        text = "".join(pieces[token] for token in tokens)
        return text.replace("\ufffdé", "é")

    painter = Provenance(decode)
    events = [("ab c", [0, 1, 2], ["model", "lm", "lm"]), ("éx", [3, 4], ["suffix", "lm"]), ("yz", [], [])]
    painted = [painter.paint(StreamEvent(0, text, tokens, sources)) for text, tokens, sources in events]
    assert "".join(text.plain for text in painted) == "ab céxyz"
    styles = [[span.style for span in text.spans] for text in painted]
    lm, suffix = DRAFTER_STYLES[:2]
    assert styles == [[lm, lm], [suffix, lm], [lm, lm]]
    assert painter.legend().plain == "model 20 % · lm 60 % · suffix 20 %"


def test_a_script_gets_answers_without_thoughts(command_line: CommandLine) -> None:
    command_line.llm.reply, command_line.llm.thought = "Yes.", "Is it? It is."
    done = command_line("chat", "--provenance", stdin="first\n")
    assert done.out == "Yes.\n"
    assert "suffix 80 %" in done.err
    command_line.llm.reply = ""
    assert "the answer is empty" in command_line("chat", stdin="first\n").err


def test_a_thought_is_kept_with_the_answer() -> None:
    conversation = Conversation(SamplingParams())
    conversation.ask("x")
    conversation.answered("", None, "hm")
    assert conversation.turns == []
    conversation.ask("x")
    conversation.answered("y", None, "hm")
    assert conversation.messages()[1] == {"role": "assistant", "content": "y", "reasoning_content": "hm"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("provenance", [False, True])
def test_a_thought_is_dimmed_on_a_terminal(provenance: bool) -> None:
    settings = "FakeLLM.thought = 'It :up:\\x1b[2J so.'; FakeLLM.reply = 'Yes.'"
    with chat_in_a_terminal(settings, *(["--provenance"] if provenance else [])) as (process, shown):
        shown.wait_for("> ")
        shown.type("hello\n")
        shown.wait_for("Yes.")
        shown.wait_for("> ")
        shown.type("\x04")
        assert process.wait(timeout=20) == 0
    thought, answer = shown.all.split("\x1b[2m" if not provenance else "\x1b[2;", 1)[1].split("\r\n\r\n", 1)
    plain = re.sub("\x1b\\[[0-9;]*m", "", thought)
    assert plain.endswith("It :up:[2J so.")
    assert answer.startswith("Yes.")
    assert "Yes." in re.sub("\x1b\\[[0-9;]*m", "", answer)


def test_styles_differ_without_colour() -> None:
    assert len({style.partition(" ")[2] for style in DRAFTER_STYLES}) == len(DRAFTER_STYLES)
    assert all(style.partition(" ")[2] for style in DRAFTER_STYLES)


def test_control_characters_do_not_reach_a_screen() -> None:
    assert "\x1b[2Ja\x07\tb\n\x9b5m\r\x7f".translate(CONTROLS) == "[2Ja\tb\n5m"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_in_a_terminal_keeps_the_conversation() -> None:
    reply = "FakeLLM.delay_s = 0.06; FakeLLM.reply = 'The sky' + ' is blue' * 40 + ', as Rayleigh found.'"
    settings = f"{reply}\n{TELLS_WHAT_WAS_ASKED}"
    with chat_in_a_terminal(settings) as (process, shown):
        shown.wait_for("> ")
        shown.type("hello\n")
        shown.wait_for("The sky")
        process.send_signal(signal.SIGINT)
        shown.wait_for("the conversation is kept")
        shown.wait_for("> ")
        # A signal between the prompt and its wait for keys is only noticed with the next one.
        shown.wait_for("ends the chat", nudge=lambda: process.send_signal(signal.SIGINT))
        shown.wait_for("> ")
        shown.type("/nonsense\n")
        shown.wait_for("no command")
        shown.wait_for("> ")
        shown.type('"""one\ntwo"""\n')
        shown.wait_for("Rayleigh found.")
        shown.wait_for("> ")
        shown.type("\x04")
        assert process.wait(timeout=20) == 0
        shown.wait_for("ASKED")
        asked = shown.wait_for("]").replace("\r\n", "")
    assert re.search(r"<user>hello<assistant>The sky.*<user>one\\ntwo", asked)
    assert "Traceback" not in shown.all


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_while_a_long_prompt_is_read() -> None:
    with chat_in_a_terminal("FakeLLM.delay_s = 0.06; FakeLLM.prompt_steps = 10**6") as (process, shown):
        shown.wait_for("> ")
        shown.type("a long text\n")
        shown.wait_for("reading the conversation")
        process.send_signal(signal.SIGINT)
        shown.wait_for("stopped before the answer began")
        shown.wait_for("> ")
        shown.type("\x04")
        assert process.wait(timeout=20) == 0
    assert "Traceback" not in shown.all


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_d_ends_a_message_of_several_lines_and_not_the_chat() -> None:
    with chat_in_a_terminal(TELLS_WHAT_WAS_ASKED) as (process, shown):
        shown.wait_for("> ")
        shown.type('"""one\n')
        shown.wait_for(". ")
        shown.type("two\n")
        shown.wait_for(". ")
        shown.type("\x04")
        shown.wait_for("Rayleigh found.")
        shown.wait_for("> ")
        shown.type("\x04")
        assert process.wait(timeout=20) == 0
        assert r"<user>one\ntwo" in shown.wait_for("]")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("first", ["// a comment", "/etc/passwd is what?", "/quit"])
def test_a_quoted_message_is_no_command(first: str) -> None:
    with chat_in_a_terminal(TELLS_WHAT_WAS_ASKED) as (process, shown):
        shown.wait_for("> ")
        shown.type(f'"""{first}\n')
        shown.wait_for(". ")
        shown.type('int main();"""\n')
        shown.wait_for("Rayleigh found.")
        shown.wait_for("> ")
        shown.type("\x04")
        assert process.wait(timeout=20) == 0
        assert rf"<user>{first}\nint main();" in shown.wait_for("]")


@contextmanager
def chat_in_a_terminal(settings: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """``hasten chat`` with the fake model as ``settings`` (Python) make it, at the other end of a pseudo-terminal."""
    import pty

    terminal, inside = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [*driver(settings), "chat", *arguments], stdin=inside, stdout=inside, stderr=inside, env=environment, start_new_session=True
    )
    os.close(inside)
    try:
        yield process, Terminal(terminal)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


class Terminal:
    """The far end of a pseudo-terminal."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.all = ""
        self.seen = 0

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait_for(self, text: str, nudge: Callable[[], None] = lambda: None) -> str:
        """What came up to and with ``text``, from where the last wait ended; ``nudge`` is called while nothing comes."""
        end = time.monotonic() + 20
        while text not in self.all[self.seen :]:
            assert time.monotonic() < end, f"no {text!r} in {self.all[self.seen :]!r}"
            if not select.select([self.descriptor], [], [], 0.3)[0]:
                nudge()
                continue
            try:
                self.all += os.read(self.descriptor, 4096).decode(errors="replace")
            except OSError:
                assert text in self.all[self.seen :], f"ended without {text!r}: {self.all!r}"
        start, self.seen = self.seen, self.all.index(text, self.seen) + len(text)
        return self.all[start : self.seen]
