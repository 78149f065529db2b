"""The state of a chat and its slash commands, apart from the terminal that shows it and the model that answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from hasten.core.errors import InvalidRequest
from hasten.core.registry import nearest
from hasten.core.results import Completion, DraftCount, Usage
from hasten.core.types import SamplingParams

Message = dict[str, str]
Number = TypeVar("Number", int, float)


@dataclass(slots=True)
class Totals:
    """What the answers of a chat add up to. Speeds are weighted by tokens."""

    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0
    plain_seconds: float = 0.0
    by_drafter: dict[str, DraftCount] = field(default_factory=dict)
    last: Usage | None = None

    def add(self, completion: Completion) -> None:
        produced = completion.usage.completion_tokens
        self.answers += 1
        self.tokens += produced
        self.seconds += completion.timing.decode_s
        self.last = completion.usage
        if completion.speed.plain_tokens_per_second and completion.speed.tokens_per_second:
            self.plain_seconds += completion.timing.decode_s * (completion.speed.speedup or 1.0)
        for name, count in completion.speculation.by_drafter.items():
            total = self.by_drafter.setdefault(name, DraftCount())
            total.drafted += count.drafted
            total.accepted += count.accepted


@dataclass(slots=True)
class Conversation:
    """Messages so far, how the next answer is sampled, and an account. ``quitting`` ends the chat."""

    params: SamplingParams
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    quitting: bool = False

    def messages(self) -> list[Message]:
        """The conversation as the model is to read it."""
        head: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns]

    def ask(self, text: str) -> None:
        self.turns.append({"role": "user", "content": text})

    def take_back(self) -> None:
        """Forget the question that could not be answered."""
        self.turns.pop()

    def answered(self, text: str, completion: Completion | None, thought: str = "") -> None:
        """Keep an answer and what was thought first; ``completion`` is None when it was stopped half-way. To an empty one the
        question is taken back."""
        if not text:
            self.take_back()
            return
        self.turns.append({"role": "assistant", "content": text} | ({"reasoning_content": thought} if thought else {}))
        if completion is not None:
            self.totals.add(completion)


class SlashCommand(NamedTuple):
    """``argument`` is shown in /help; ``act`` gets what follows the name and returns the lines to show."""

    argument: str
    help: str
    act: Callable[[Conversation, str], Iterator[str]]


def obey(conversation: Conversation, line: str) -> list[str]:
    """Run a line that starts with '/', and return what to show. Raises InvalidRequest when it is none of the commands."""
    name, _, argument = line[1:].partition(" ")
    command = COMMANDS.get(name.lower())
    if command is None:
        usual = USUAL_ELSEWHERE.get(name.lower())
        close = f"; did you mean '/{usual}'?" if usual else nearest(f"/{name}", [f"/{known}" for known in COMMANDS])
        raise InvalidRequest(f"There is no command '/{name}'{close} Type '//' to begin a message with a slash.")
    return list(command.act(conversation, argument.strip()))


def _help(conversation: Conversation, argument: str) -> Iterator[str]:
    for name, command in COMMANDS.items():
        yield f"{f'/{name} {command.argument}'.rstrip():18} {command.help}"
    yield 'Lines between """ and """ are one message. Ctrl-C stops an answer, Ctrl-D ends the chat.'


def _reset(conversation: Conversation, argument: str) -> Iterator[str]:
    conversation.turns.clear()
    conversation.totals.last = None
    yield "The conversation is forgotten." + (" The system message stays." if conversation.system else "")


def _system(conversation: Conversation, argument: str) -> Iterator[str]:
    conversation.system = argument
    yield "The model now has this system message." if argument else "There is no system message now."


def _seed(conversation: Conversation, argument: str) -> Iterator[str]:
    conversation.params = replace(conversation.params, seed=_number("/seed", argument, int, "a whole number"))
    yield f"The seed is {conversation.params.seed}."
    if conversation.params.greedy:
        yield f"It matters once {'--top-p' if conversation.params.temperature else '/temperature'} is above 0."


def _temperature(conversation: Conversation, argument: str) -> Iterator[str]:
    value = _number("/temperature", argument, float, "a number from 0 to 100")
    conversation.params = replace(conversation.params, temperature=value)
    yield f"The temperature is {value:g}" + (": always the likeliest token." if conversation.params.greedy else ".")


def _stats(conversation: Conversation, argument: str) -> Iterator[str]:
    totals = conversation.totals
    if not totals.answers:
        yield "No answer yet."
        return
    yield f"{totals.answers} answer{'' if totals.answers == 1 else 's'}, {totals.tokens} tokens" + (
        f", {totals.tokens / totals.seconds:.1f} tok/s" if totals.seconds > 0 else ""
    )
    if totals.plain_seconds > 0 and totals.seconds > 0:
        yield f"{totals.plain_seconds / totals.seconds:.2f}x the speed of plain decoding"
    if totals.last is not None:
        yield f"{totals.last.prompt_tokens + totals.last.completion_tokens} positions of context in use"
    for name, count in sorted(totals.by_drafter.items()):
        yield f"{name}: {count.accepted} of {count.drafted} guesses right"


def _save(conversation: Conversation, argument: str) -> Iterator[str]:
    if not argument:
        raise InvalidRequest("/save needs the name of a file to write.")
    path = Path(argument).expanduser()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps({"messages": conversation.messages()}, ensure_ascii=False) + "\n")
    except FileExistsError as problem:
        raise InvalidRequest(f"{path} exists already; choose another name.") from problem
    except OSError as problem:
        raise InvalidRequest(f"{path} cannot be written: {problem.strerror}.") from problem
    yield f"Saved to {path}."


def _quit(conversation: Conversation, argument: str) -> Iterator[str]:
    conversation.quitting = True
    yield from ()


def _number(name: str, text: str, kind: Callable[[str], Number], wanted: str) -> Number:
    try:
        return kind(text)
    except ValueError as problem:
        raise InvalidRequest(f"{name} takes {wanted}, not '{text}'.") from problem


# Commands of other programs for the same things.
USUAL_ELSEWHERE = {"clear": "reset", "new": "reset", "bye": "quit", "exit": "quit", "?": "help"}

COMMANDS = {
    "help": SlashCommand("", "this list", _help),
    "reset": SlashCommand("", "forget the conversation", _reset),
    "system": SlashCommand("TEXT", "tell the model how to behave; no text removes it", _system),
    "seed": SlashCommand("N", "make sampled answers repeatable", _seed),
    "temperature": SlashCommand("T", "0 is the likeliest token, higher is freer", _temperature),
    "stats": SlashCommand("", "speed and guesses of this chat", _stats),
    "save": SlashCommand("FILE", "write the conversation as JSON", _save),
    "quit": SlashCommand("", "end the chat", _quit),
}
