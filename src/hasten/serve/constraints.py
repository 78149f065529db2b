"""From what a client asks of an answer's form to a grammar."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable
from typing import Any

from hasten.engine.grammar import WHITESPACE, Form, Grammars, GrammarState, choice
from hasten.engine.llm import LLM
from hasten.serve.errors import invalid
from hasten.serve.tools import CLOSE, OPEN, Toolset
from hasten.serve.wire import ResponseFormat, StructuredOutputs, ToolFunction

_grammars: weakref.WeakKeyDictionary[LLM, Grammars] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def constraint_of(
    llm: LLM, format: ResponseFormat | None, structured: StructuredOutputs | None, tools: Toolset | None = None
) -> Callable[[], GrammarState] | None:
    """What makes the constraint of each answer, None where there is none. Not for the event loop: compiling may take a second.

    Raises ApiError or InvalidRequest (400) when forms contradict each other or cannot be used.
    """
    words, own = _of_format(format), _of_structured(structured)
    if own is not None and (words is not None or (tools is not None and tools.forced)):
        raise invalid(
            "structured_outputs excludes response_format and a forced tool_choice; give one of them.", "structured_outputs"
        )
    form = own or _of_tools(tools, words)
    return None if form is None else grammars_of(llm).compile(form)


def grammars_of(llm: LLM) -> Grammars:
    """The compiler of a model, made when it is first needed."""
    with _lock:
        found = _grammars.get(llm)
        if found is None:
            found = _grammars[llm] = Grammars(llm.engine.tokenizer, llm.engine.vocabulary)
        return found


def _of_format(format: ResponseFormat | None) -> Form | None:
    if format is None:
        return None
    if format.type != "json_schema" and format.json_schema is not None:
        raise invalid(
            f"response_format of type {format.type} takes no json_schema; send the type json_schema.", "response_format.json_schema"
        )
    if format.type == "text":
        return None
    if format.type == "json_object":
        return Form("json", '{"type": "object"}')
    if format.json_schema is None:
        raise invalid("response_format of type json_schema needs a json_schema.", "response_format.json_schema")
    return Form("json", json.dumps(format.json_schema.schema_))


def _of_structured(structured: StructuredOutputs | None) -> Form | None:
    if structured is None:
        return None
    given: list[Form] = []
    if structured.json_ is not None:
        given.append(Form("json", json.dumps(structured.json_)))
    if structured.regex is not None:
        given.append(Form("regex", structured.regex))
    if structured.choice is not None:
        given.append(choice(structured.choice))
    if structured.grammar is not None:
        given.append(Form("lark", structured.grammar))
    if len(given) != 1:
        raise invalid("structured_outputs takes exactly one of json, regex, choice and grammar.", "structured_outputs")
    return given[0]


def _of_tools(tools: Toolset | None, words: Form | None) -> Form | None:
    """The form of an answer that may be calls, or has to be: the format's own frame around one of the functions and its arguments.
    ``words``: the JSON that an answer is which is no call; where a call is forced there is none."""
    if tools is None or not tools.reads or not (tools.forced or words):
        return words
    key = "arguments" if tools.format == "hermes" else "parameters"
    calls = "\n  | ".join(_call_of(function, key, tools.forced) for function in tools.callable)
    rules = f"call: {calls}\nblank: /{WHITESPACE}/"
    other = ""
    if words is not None and not tools.forced:
        other = " | words"
        rules += f"\nwords: {_json_of(json.loads(words.text))}"
    if tools.format == "llama3":
        return Form("lark", f"start: call{other}\n{rules}")
    more = ' ("\\n" one)*' if tools.several else ""
    return Form("lark", f'start: one{more}{other}\none: "{OPEN}\\n" call "\\n{CLOSE}"\n{rules}')


def _call_of(function: ToolFunction, key: str, forced: bool) -> str:
    """A call of one function; where it is forced, with arguments of its schema, which is a root of its own: what it refers to is
    looked for there. Arguments are an object, also where the schema allows other values: a call with those would not be read."""
    marks = ["{", '"name"', ":", json.dumps(function.name), ",", json.dumps(key), ":"]
    schema = {**((forced and function.parameters) or {}), "type": "object"}
    return " blank? ".join([*map(json.dumps, marks), _json_of(schema), '"}"'])


def _json_of(schema: dict[str, Any]) -> str:
    """What a schema allows, as a part of a larger form."""
    return f"%json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': WHITESPACE}})}"
