"""Prompts as users give them: text, standard input, or a file of JSON lines. All of it is checked before a model is loaded.

A line holds one of ``prompt`` (text), ``messages`` (a conversation) or ``turns`` (Spec-Bench; the first is asked). It may hold
an id (``id``, ``question_id``, ``task_id``), and any field of SamplingParams, which then wins over the command line.
Known columns of evaluation sets are passed over; any other key is an error that names the line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from hasten.cli.options import blaming, misuse
from hasten.cli.standard_input import typed_text, whole_input
from hasten.core.errors import ConfigError, InvalidRequest
from hasten.core.registry import nearest
from hasten.core.types import SamplingParams

CONTENTS = ("prompt", "messages", "turns")
IDS = ("id", "question_id", "task_id")
CALLED_OTHERWISE = {"text": "prompt", "question": "prompt", "input": "prompt", "content": "prompt", "chat": "messages"}
PASSED_OVER = ("category", "reference", "entry_point", "canonical_solution", "test")
SAMPLING_FIELDS = tuple(field.name for field in fields(SamplingParams))

PROMPT = ("text", "prompt")  # the parameters that give one on the command line

Message = dict[str, Any]


class ChatModel(Protocol):
    """What is asked of an LLM here."""

    @property
    def has_chat_template(self) -> bool: ...

    def render_chat(self, messages: list[Message]) -> list[int]: ...

    def check(self, prompt: str | list[int], params: SamplingParams) -> None: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """One thing to answer: ``text``, or ``messages`` where a conversation was given. ``id`` is the user's own, if any; ``own`` are
    the names of the sampling fields that its line holds; ``line`` says where in a file it stood."""

    params: SamplingParams
    text: str | None = None
    messages: list[Message] | None = None
    id: str | int | None = None
    own: tuple[str, ...] = ()
    line: str = ""

    def told(self, system: str) -> Prompt:
        """The same behind a system message, where it has none of its own."""
        messages = self.messages or [{"role": "user", "content": self.text}]
        if messages[0].get("role") == "system":
            return self
        return replace(self, text=None, messages=[{"role": "system", "content": system}, *messages])

    def for_model(self, llm: ChatModel, raw: bool) -> str | list[int]:
        """What LLM.generate takes. Text becomes a user's message when the model has a chat template, unless ``raw``."""
        if self.messages is not None:
            return llm.render_chat(self.messages)
        text = self.text or ""
        return text if raw or not llm.has_chat_template else llm.render_chat([{"role": "user", "content": text}])


def for_batch(items: list[Prompt], llm: ChatModel, raw: bool) -> list[str | list[int]]:
    """What LLM.generate takes for each. Raises the InvalidRequest of the first that cannot be served, with its line and id."""
    out = []
    for item in items:
        try:
            out.append(item.for_model(llm, raw))
            llm.check(out[-1], item.params)
        except InvalidRequest as problem:
            named = "" if item.id is None else f" (id {item.id})"
            raise type(problem)(f"{item.line}{named}: {problem}" if item.line else str(problem)) from problem
    return out


def collect(prompt: str | None, file: str | None, params: SamplingParams, raw: bool) -> list[Prompt]:
    """The prompts that the options name; standard input as one prompt when they name none. Raises InvalidRequest or Misuse."""
    if prompt is not None and file is not None:
        raise misuse("Give a prompt or --prompts, not both.", *PROMPT, "prompts")
    if file is not None:
        return _from_file(file, params, raw)
    with blaming(*PROMPT):
        text = _standard_input(raw) if prompt is None else typed_text(prompt, "The prompt on the command line")
        if not text.strip():
            raise InvalidRequest("The prompt is empty; give TEXT, --prompts FILE, or text on standard input.")
    return [Prompt(params, text=text)]


def parse_line(line: str, params: SamplingParams) -> Prompt:
    """Read one JSON line. Raises InvalidRequest without the line's number, which the caller knows."""
    row = _object(line)
    known = [*CONTENTS, *IDS, *PASSED_OVER, *SAMPLING_FIELDS]
    for name in row:
        if name not in known:
            hint = CALLED_OTHERWISE.get(name)
            raise InvalidRequest(f"there is no key {name!r}" + (f"; did you mean '{hint}'?" if hint else nearest(name, known)))
    given = [name for name in CONTENTS if name in row]
    if len(given) != 1:
        raise InvalidRequest(f"exactly one of {', '.join(CONTENTS)} is needed, not {len(given)}.")
    identity = next((row[name] for name in IDS if name in row), None)
    if identity is not None and (isinstance(identity, bool) or not isinstance(identity, str | int)):
        raise InvalidRequest(f"an id must be a string or a whole number, not {identity!r}.")
    own = tuple(name for name in SAMPLING_FIELDS if name in row)
    chosen = replace(params, **_overrides(row))
    if given[0] == "messages":
        return Prompt(chosen, messages=_messages(row["messages"]), id=identity, own=own)
    text = row["turns"][0] if given[0] == "turns" and isinstance(row["turns"], list) and row["turns"] else row.get("prompt")
    if not isinstance(text, str) or not text.strip():
        wanted = "text" if given[0] == "prompt" else "a list of texts"
        raise InvalidRequest(f"'{given[0]}' must be {wanted} and not empty.")
    return Prompt(chosen, text=text, id=identity, own=own)


def alike(file: str, instead: str) -> list[Prompt]:
    """The prompts of a file whose answers are all sampled alike. Raises InvalidRequest where it cannot be read, ConfigError where a
    line says how its answer is to be sampled; ``instead`` are the words on what says so for all."""
    items = collect(None, file, SamplingParams(), False)
    for item in items:
        if item.own:
            raise ConfigError(f"{item.line} sets {', '.join(item.own)}, and all answers are sampled alike here; {instead}.")
    return items


def _from_file(name: str, params: SamplingParams, raw: bool) -> list[Prompt]:
    """Every line of the file ('-': standard input); blank lines are passed over."""
    content = whole_input() if name == "-" else read_text(name, "prompts")
    out = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = parse_line(line, params)
            if raw and item.messages is not None:
                raise InvalidRequest("messages need the chat template, which --raw leaves out; give a prompt, or no --raw.")
            out.append(replace(item, line=f"{name}, line {number}"))
        except InvalidRequest as problem:
            raise InvalidRequest(f"{name}, line {number}: {problem}") from problem
    if not out:
        raise InvalidRequest(f"The prompts file '{name}' holds no prompt; write one JSON object a line.")
    return out


def _standard_input(raw: bool) -> str:
    if sys.stdin.isatty():
        print("Type the prompt, then Ctrl-D on a line of its own.", file=sys.stderr)
    text = whole_input()
    return text if raw else text.removesuffix("\n")


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise InvalidRequest(f"not a JSON object ({problem}).") from problem
    if not isinstance(row, dict):
        raise InvalidRequest(f'not a JSON object but {type(row).__name__}; write {{"prompt": "..."}}.')
    return row


def _overrides(row: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields of a row, in the types SamplingParams wants; its own checks refuse the rest."""
    out = {name: row[name] for name in SAMPLING_FIELDS if name in row}
    for name in ("stop", "stop_token_ids"):
        if name in out and not isinstance(out[name], str):
            if not isinstance(out[name], list):
                raise InvalidRequest(f"{name} must be a list, not {out[name]!r}.")
            out[name] = tuple(out[name])
    if "logit_bias" in out:
        bias = out["logit_bias"]
        if not isinstance(bias, dict) or not all(token.isdecimal() for token in bias):
            raise InvalidRequest("logit_bias must be an object from token ids to numbers.")
        out["logit_bias"] = {int(token): value for token, value in bias.items()}
    return out


def _messages(value: object) -> list[Message]:
    """The conversation as it stands, checked by whoever will render it."""
    from hasten.model.chat import checked_messages

    if not isinstance(value, list):
        raise InvalidRequest("'messages' must be a list of objects with role and content.")
    checked_messages(value)
    return value


def read_text(name: str, kind: str = "text") -> str:
    """A file of the user's, which errors call a ``kind`` file. Raises InvalidRequest where it cannot be read or is not UTF-8."""
    try:
        with open(name, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as problem:
        raise InvalidRequest(f"The {kind} file '{name}' cannot be read: {problem.strerror}.") from problem
    except UnicodeDecodeError as problem:
        raise InvalidRequest(f"The {kind} file '{name}' is not UTF-8 text; save it as UTF-8.") from problem
