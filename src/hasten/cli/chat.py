"""``hasten chat``: a conversation in the terminal, or one message a line when standard input is not one."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from hasten.cli.conversation import Conversation, obey
from hasten.cli.generate import load
from hasten.cli.options import (
    Verb,
    blaming,
    engine_config,
    engine_options,
    sampling_options,
    sampling_params,
    speculation_options,
    speculation_params,
)
from hasten.cli.standard_input import input_lines, typed_text
from hasten.core.config import SpeculationParams
from hasten.core.errors import HastenError, InvalidRequest, PromptTooLong
from hasten.core.results import Completion, StreamEvent

if TYPE_CHECKING:
    from types import FrameType

    from hasten.engine.llm import LLM, EventStream

QUOTES = '"""'


class Typed(NamedTuple):
    """What was typed; a text in triple quotes is a message whatever it begins with."""

    text: str
    quoted: bool = False


@click.command(cls=Verb)
@click.option("--system", metavar="TEXT", default="", help="How the model is told to behave.")
@click.option("--provenance", is_flag=True, default=False, help="Colour each token by who guessed it.")
@sampling_options(without=("n", "logprobs"), max_tokens=1024)
@engine_options
@speculation_options
def chat(system: str, provenance: bool, **options: Any) -> None:
    """Talk with a model. /help lists the commands; Ctrl-C stops an answer, Ctrl-D ends the chat.

    What a model thinks before it answers is dimmed on a terminal, and left out elsewhere. When standard input is not a terminal,
    each of its lines is one message. Lines between \"\"\" and \"\"\" are one message everywhere.
    """
    config = engine_config(options)
    speculation = speculation_params(options)
    with blaming("system"):
        conversation = Conversation(sampling_params(options), typed_text(system, "--system"))
    with closing(load(config)) as llm:
        if not llm.has_chat_template:
            raise InvalidRequest(f"'{llm.name}' has no chat template and cannot chat; 'hasten generate --raw' continues a text.")
        Chat(llm, conversation, provenance, speculation).run()


class Chat:
    """The terminal side: reads lines, streams answers, shows the account of each."""

    def __init__(self, llm: LLM, conversation: Conversation, provenance: bool, speculation: SpeculationParams) -> None:
        from hasten.cli.screen import Provenance, answers, notes

        self.llm = llm
        self.conversation = conversation
        self.speculation = speculation
        self.out = answers()
        self.notes = notes()
        self.painter = Provenance(llm.decode) if provenance else None
        self.interactive = sys.stdin.isatty()

    def run(self) -> None:
        """Until /quit or the end of input. In a terminal a refused line is told and the chat goes on; a script ends."""
        if self.interactive:
            self._note(f"{self.llm.name} {self.llm.precision} · context of {self.llm.context_length} · /help lists the commands")
        for typed in self._lines():
            try:
                self._take(typed)
            except HastenError as problem:
                if not self.interactive:
                    raise
                self.notes.print(f"hasten: {problem}", style="yellow")
            if self.conversation.quitting:
                return

    def _take(self, typed: Typed) -> None:
        text, quoted = typed
        if not text.strip():
            return
        if text.startswith("/") and not text.startswith("//") and not quoted:
            for shown in obey(self.conversation, text):
                self._note(shown)
            return
        self.conversation.ask(text[1:] if text.startswith("//") and not quoted else text)
        self._answer()

    def _answer(self) -> None:
        """Stream the answer to the last question. Ctrl-C ends it after the step that runs, one that reads a part of a long prompt
        included; what came by then is kept."""
        text, thought, completion = "", "", None
        try:
            stream = self.llm.stream_chat(self.conversation.messages(), self.conversation.params, speculation=self.speculation)
        except PromptTooLong as problem:
            self.conversation.take_back()
            raise PromptTooLong(f"{problem} /reset starts a new conversation.") from problem
        except BaseException:
            self.conversation.take_back()
            raise
        try:
            if self.painter is not None:
                self.painter.begin()
            with asked_to_stop() as stopped:
                self._read_prompt(stream, stopped)
                while not stopped.is_set() and (event := next(stream, None)) is not None:
                    for part in event.apart():
                        self._show(part, ends_thought=bool(thought and part.text and not text))
                        text, thought = text + part.text, thought + part.thought
                    completion = event.completion or completion
        finally:
            stream.close()
            self.conversation.answered(text, completion, thought)
        if thought and not text and self.out.is_terminal:
            self.out.print()
        if not text:
            cut = completion is not None and completion.finish_reason == "length"
            whole = "the limit of tokens came before the answer (--max-tokens)" if cut else "the answer is empty"
            self._note(f"{'stopped before the answer began' if completion is None else whole}; your message is taken back")
            return
        self.out.print("" if text.endswith("\n") else "\n", end="")
        self._account(completion)

    def _read_prompt(self, stream: EventStream, stopped: threading.Event) -> None:
        """The steps before the first event. A prompt that takes more than one is said to be read, on a terminal."""
        if stream.step() or stopped.is_set():
            return
        spinner = self.notes.status("reading the conversation") if self.notes.is_terminal else nullcontext()
        with spinner:
            while not (stopped.is_set() or stream.step()):
                pass

    def _show(self, event: StreamEvent, ends_thought: bool) -> None:
        from rich.text import Text

        from hasten.cli.screen import printable, say

        painted = None if self.painter is None else self.painter.paint(event)
        if not self.out.is_terminal:
            say(event.text)
            return
        if ends_thought:
            say("\n\n")
        if painted is None and not event.thinks:
            say(event.text)
        else:
            shown = Text(printable(event.thought)) if painted is None else painted  # a plain string would have signs for emoji
            self.out.print(shown, end="", style="dim" if event.thinks else None)
            self.out.file.flush()

    def _account(self, completion: Completion | None) -> None:
        from hasten.cli.screen import account

        if completion is None:
            self._note("stopped; the conversation is kept")
            return
        self._note(account(completion))
        if self.painter is not None:
            self.notes.print(self.painter.legend())
        if completion.cut_by not in (None, "max_tokens"):
            self._note(f"The conversation fills all {self.llm.context_length} positions; /reset starts a new one.")

    def _note(self, text: str) -> None:
        self.notes.print(text, style="dim")

    def _lines(self) -> Iterator[Typed]:
        """Messages and commands as they are typed. Ctrl-C at the prompt clears the line."""
        if not self.interactive:
            lines = input_lines()
            yield from (_message(line, lines) for line in lines)
            return
        _edit_lines()
        while True:
            try:
                yield _message(input("> "), _more_lines())
            except KeyboardInterrupt:
                self.notes.print()
                self._note("Ctrl-D or /quit ends the chat.")
            except EOFError:
                self.notes.print()
                return


def _message(line: str, more: Iterator[str]) -> Typed:
    """One line, or the lines between two triple quotes, for which ``more`` are read; their end ends it as the quotes do."""
    if not line.startswith(QUOTES):
        return Typed(line)
    lines = [line.removeprefix(QUOTES)]
    while not lines[-1].endswith(QUOTES) and (following := next(more, None)) is not None:
        lines.append(following)
    lines[-1] = lines[-1].removesuffix(QUOTES)
    return Typed("\n".join(lines).strip("\n"), quoted=True)


def _more_lines() -> Iterator[str]:
    """What is typed behind the first line of a message; Ctrl-D ends it."""
    try:
        while True:
            yield input(". ")
    except EOFError:
        print()


def _edit_lines() -> None:
    """Arrow keys and this session's history at the prompt, where Python has them. Nothing typed is written to disk."""
    try:
        import readline
    except ImportError:  # Windows: its console edits lines by itself
        return
    readline.set_auto_history(True)


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that no step of the model is torn; the second one interrupts at once."""
    stopped = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
