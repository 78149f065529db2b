"""Functions that a model may call: shown through its template, and its calls read from what it writes.

Only formats that a template itself announces are read: Hermes' (``<tool_call>{...}</tool_call>``, also Qwen's) and Llama 3's (the
whole answer is one JSON object). Of Hermes' the tags may be missing, with or without a code fence in their place, where the answer
begins with the call: Qwen2.5-Coder answers so. A model whose template knows no tools is not given any.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from hasten.core.results import StreamEvent
from hasten.engine.text import overlap
from hasten.serve.account import provenance
from hasten.serve.body import plain_json
from hasten.serve.errors import invalid, unsupported
from hasten.serve.provenance import Legend
from hasten.serve.wire import ChatRequest, NamedTool, ToolFunction

Format = Literal["hermes", "llama3"]
OPEN, CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
FENCE = "```"
NAMED = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"')
GIVEN = re.compile(r'\s*,\s*"(?:arguments|parameters)"\s*:\s*')
UNTAGGED = ('{"name":"', FENCE + 'json{"name":"', FENCE + '{"name":"')  # how a call without its tags begins, blanks left out


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call as the client gets it; ``arguments`` is JSON text. Where the answer ended inside the call it is not ``whole``, and
    they are what there is of them, as the model wrote it."""

    id: str
    name: str
    arguments: str
    whole: bool = True

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


Part: TypeAlias = str | ToolCall  # of an answer: words or a call


@dataclass(frozen=True, slots=True)
class Toolset:
    """The functions of one request. ``forced``: the answer has to be a call; ``only``: of this function. ``several``: more than
    one call is wanted. ``reads`` is off where calls are not wanted."""

    format: Format
    functions: tuple[ToolFunction, ...]
    forced: bool = False
    only: str | None = None
    several: bool = True
    reads: bool = True

    @property
    def shown(self) -> list[dict[str, Any]] | None:
        """What the template gets."""
        return [_shown(function) for function in self.functions] if self.reads else None

    @property
    def stop(self) -> tuple[str, ...]:
        """What ends an answer that may hold one call only: the end of its first. A forced call ends by its grammar."""
        return (CLOSE,) if self.reads and not (self.several or self.forced) and self.format == "hermes" else ()

    @property
    def callable(self) -> list[ToolFunction]:
        return [function for function in self.functions if self.only in (None, function.name)]


def toolset_of(wire: ChatRequest, template: str | None) -> Toolset | None:
    """The request's tools, None where there are none. Raises ApiError (400) when this model cannot have any."""
    if not wire.tools:
        if wire.tool_choice not in (None, "none", "auto"):
            raise invalid("tool_choice needs tools to choose from.", "tool_choice")
        return None
    names = [tool.function.name for tool in wire.tools]
    if len(set(names)) != len(names):
        raise invalid("Two tools have the same name; give each its own.", "tools")
    choice = wire.tool_choice or "auto"
    found = format_of(template)
    if found is None:
        raise unsupported("tools", "is not supported by this model: its chat template knows no tools in a form that is read here")
    only = choice.function.name if isinstance(choice, NamedTool) else None
    if only is not None and only not in names:
        raise invalid(f"tool_choice names the function {only!r}, which is not among the tools.", "tool_choice")
    return Toolset(
        found,
        tuple(tool.function for tool in wire.tools),
        forced=choice == "required" or only is not None,
        only=only,
        several=wire.parallel_tool_calls is not False and only is None,
        reads=choice != "none",
    )


def format_of(template: str | None) -> Format | None:
    """How a model of this template writes calls; None where it is not known to write any."""
    if template is None or "tools" not in template:
        return None
    if OPEN in template:
        return "hermes"
    if '"parameters"' in template and "tool_calls" in template:
        return "llama3"
    return None


class ToolReader:
    """Takes one answer's text piece by piece and tells its calls from its words. What may still become a call is held back."""

    def __init__(self, tools: Toolset) -> None:
        self._tools = tools
        self._held = ""
        self._calls = 0
        self._begins = True  # nothing but calls so far
        self._blanks: str | None = None  # behind a call, until words follow them; None among words
        self._object = _ObjectEnd()  # of the call without tags that may have begun

    def feed(self, text: str) -> list[Part]:
        """What is certain now, in its order."""
        self._held += text
        if self._tools.format == "llama3":
            self._begins = self._begins and _may_begin_object(self._held)
            return [] if self._begins else _told([self._taken()])
        parts: list[Part] = []
        closed = True
        while closed:  # a call without tags may follow one with them, whether or not both come at once
            parts += self._untagged(whole=False)
            if self._begins and _may_begin_untagged(self._held):
                break
            more, closed = self._tagged()
            self._begins = self._begins and not any(isinstance(part, str) and part.strip() for part in more)
            parts += more
        return _told(parts)

    def _tagged(self) -> tuple[list[Part], bool]:
        """What is before the next tags and between them, as far as it is certain, and whether they are closed."""
        begin = self._held.find(OPEN)
        if begin < 0:
            begin = len(self._held) - overlap(self._held, OPEN)
        parts: list[Part] = [self._between(self._held[:begin])]
        self._held = self._held[begin:]
        end = self._held.find(CLOSE)
        if not self._held.startswith(OPEN) or end < 0:
            return parts, False
        found = self._call(self._held[len(OPEN) : end])
        if found is None:
            parts.append(self._between(self._held[: end + len(CLOSE)]))
        elif self._tools.several or not self._calls:
            parts.append(self._counted(found))
        self._held = self._held[end + len(CLOSE) :]
        return parts, True

    def take(self, event: StreamEvent) -> list[Part]:
        """What one event makes certain; all that is left, where it is the answer's last."""
        parts = self.feed(event.text)
        return parts if event.finish_reason is None else _told([*parts, *self.finish()])

    def finish(self) -> list[Part]:
        """The rest, when no more text comes. A call that never closed is told as far as it came, and not at all where its function
        is not known: as words it would show the model, in its next turn, a call without an end."""
        llama3 = self._tools.format == "llama3"
        calls = [] if llama3 else self._untagged(whole=True)
        held = self._taken()
        text, tag = (held.strip(), PYTHON_TAG) if llama3 else (held, OPEN)
        tagged = text.startswith(tag)
        if not tagged and not (self._begins and text.strip()):
            return _told([*calls, self._between(held)])
        inner = text.removeprefix(tag) if tagged or llama3 else text[max(text.find("{"), 0) :]
        found = self._last(inner, tagged)
        if found is not None:
            return _told([*calls, *([found] if self._tools.several or not self._calls else [])])
        if tagged and (not inner.strip() or _is_open(inner)):
            return _told(calls)
        return _told([*calls, self._between(inner.replace(OPEN, "") if tagged and not llama3 else held)])

    def _last(self, text: str, tagged: bool) -> ToolCall | None:
        """The call that the end of an answer is, or breaks off in; None where it names none of the functions. What has no tag may
        be another object with a name: only arguments make it a call."""
        found = self._call(text[: len(text) - overlap(text, CLOSE)] if tagged else text)
        named = NAMED.match(text)
        if found is not None or named is None or not self._is_callable(named[1]) or not _is_open(text):
            return found
        given = GIVEN.match(text, named.end())
        arguments = text[given.end() :] if given is not None else ""
        if (given is None and not tagged) or not "{".startswith(arguments[:1]):
            return None
        return ToolCall(_call_id(), named[1], arguments[: _ObjectEnd().find(arguments, 0)], whole=False)

    def _taken(self) -> str:
        """What was held, which is not any more."""
        held, self._held = self._held, ""
        return held

    def _untagged(self, whole: bool) -> list[ToolCall]:
        """Take the calls without tags that the answer begins with; ``whole``: no more text comes. What is no call stays held, and
        is no beginning any more."""
        calls: list[ToolCall] = []
        while self._begins and _may_begin_untagged(self._held) and (begin := self._held.find("{")) >= 0:
            end = self._object.find(self._held, begin)
            if end is None:
                return calls  # not all of it is there
            fenced = self._held.lstrip().startswith(FENCE)
            rest = self._held[end:].lstrip() if fenced else self._held[end:]
            if fenced and not whole and len(rest) < len(FENCE):
                return calls
            found = self._call(self._held[begin:end], frozenset({"name", "arguments"}))
            if found is None:
                self._begins = False
                return calls
            if self._tools.several or not self._calls:
                calls.append(self._counted(found))
            self._held = rest.removeprefix(FENCE) if fenced else rest
            self._object = _ObjectEnd()
        return calls

    def _call(self, text: str, fields: frozenset[str] | None = None) -> ToolCall | None:
        """A call of one of the tools, or None: what is no such call, or has not exactly these ``fields``, stays text."""
        try:
            value = plain_json(text)
        except ValueError:
            return None
        if not isinstance(value, dict) or (fields is not None and value.keys() != fields):
            return None
        name = value.get("name")
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(name, str) or not self._is_callable(name) or not isinstance(arguments, dict):
            return None
        return ToolCall(_call_id(), name, json.dumps(arguments, ensure_ascii=False))

    def _is_callable(self, name: str) -> bool:
        return any(function.name == name for function in self._tools.callable)

    def _counted(self, call: ToolCall) -> ToolCall:
        self._calls += 1
        self._blanks = ""
        return call

    def _between(self, words: str) -> str:
        """``words`` without the blanks that part one call from the next, or from the end; those before words are content."""
        if self._blanks is None:
            return words
        words = self._blanks + words
        self._blanks = None if words.strip() else words
        return words if words.strip() else ""


class _ObjectEnd:
    """Finds where a JSON object ends whose text comes in pieces; looks at each character once."""

    def __init__(self) -> None:
        self._read = 0
        self._depth = 0
        self._quoted = self._escaped = False

    def find(self, text: str, begin: int) -> int | None:
        """The place behind the brace that closes the one at ``begin``; None where it has not come. ``text`` begins with that of the
        last call."""
        at = max(self._read, begin)
        while at < len(text) and (at == begin or self._depth):
            self._take(text[at])
            at += 1
        self._read = at
        return at if at > begin and not self._depth else None

    def _take(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._quoted:
            self._escaped = character == "\\"
            self._quoted = character != '"'
        elif character == '"':
            self._quoted = True
        else:
            self._depth += (character == "{") - (character == "}")


def _is_open(text: str) -> bool:
    """Whether ``text`` begins a JSON object and ends inside it."""
    begin = len(text) - len(text.lstrip())
    return text.startswith("{", begin) and _ObjectEnd().find(text, begin) is None


def _call_id() -> str:
    return "call_" + secrets.token_hex(12)


def read_whole(text: str, tools: Toolset | None) -> list[Part]:
    """The words and calls of a whole answer, in their order."""
    if tools is None or not tools.reads:
        return _told([text])
    reader = ToolReader(tools)
    return _told([*reader.feed(text), *reader.finish()])


def told_apart(parts: Iterable[Part]) -> tuple[str, list[ToolCall]]:
    """(words, calls), each in their order."""
    found = list(parts)
    return "".join(part for part in found if isinstance(part, str)), [part for part in found if isinstance(part, ToolCall)]


def reader_of(tools: Toolset | None) -> ToolReader | None:
    """A reader of one streamed answer, None where no calls are to be read."""
    return ToolReader(tools) if tools is not None and tools.reads else None


def parts_of(event: StreamEvent, reader: ToolReader | None, legend: Legend | None) -> Iterator[tuple[Part, dict[str, Any]]]:
    """What one event of a stream, of a thought or of words, makes certain; where a ``legend`` is given, beside its first words, if
    need be beside none, who guessed its tokens."""
    text = event.thought if event.thinks else event.text
    parts: list[Part] = reader.take(event) if reader is not None and not event.thinks else [text] if text else []
    own: dict[str, Any] = {}
    if legend is not None and event.tokens:
        own = {"hasten": provenance(event.provenance, event.pieces, legend)}
        if not any(isinstance(part, str) for part in parts):
            parts = ["", *parts]
    for part in parts:
        yield part, own if isinstance(part, str) else {}
        own = {} if isinstance(part, str) else own


def _shown(function: ToolFunction) -> dict[str, Any]:
    inner = {
        "name": function.name,
        "description": function.description or "",
        "parameters": function.parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": inner}


def _told(parts: Iterable[Part]) -> list[Part]:
    """The same with neighbouring words as one, and none that are empty."""
    out: list[Part] = []
    for part in parts:
        if isinstance(part, str) and out and isinstance(out[-1], str):
            out[-1] += part
        elif part:
            out.append(part)
    return out


def _may_begin_object(text: str) -> bool:
    """Whether ``text`` is the beginning of a Llama 3 call, or may become one."""
    begins = text.lstrip()
    return begins.startswith("{") or PYTHON_TAG.startswith(begins[: len(PYTHON_TAG)])


def _may_begin_untagged(text: str) -> bool:
    """Whether ``text`` is the beginning of a call without tags, or may become one."""
    begins = "".join(text[:200].split())
    return any(begins.startswith(mark) or mark.startswith(begins) for mark in UNTAGGED)
