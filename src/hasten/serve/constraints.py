"""From what a client asks of an answer's form to a grammar."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable

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
    forms = [form for form in (_of_format(format), _of_structured(structured), _of_tools(tools)) if form is not None]
    if not forms:
        return None
    if len(forms) > 1:
        raise invalid("response_format, structured_outputs and a forced tool_choice exclude each other; give one of them.")
    return grammars_of(llm).compile(forms[0])


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


def _of_tools(tools: Toolset | None) -> Form | None:
    """A forced call: the format's own frame around one of the functions and arguments of its schema."""
    if tools is None or not tools.forced:
        return None
    key = "arguments" if tools.format == "hermes" else "parameters"
    calls = "\n  | ".join(_call_of(function, key) for function in tools.callable)
    rules = f"call: {calls}\nblank: /{WHITESPACE}/"
    if tools.format == "llama3":
        return Form("lark", f"start: call\n{rules}")
    more = ' ("\\n" one)*' if tools.several else ""
    return Form("lark", f'start: one{more}\none: "{OPEN}\\n" call "\\n{CLOSE}"\n{rules}')


def _call_of(function: ToolFunction, key: str) -> str:
    """A call of one function. Its schema is a root of its own: what it refers to is looked for there."""
    marks = ["{", '"name"', ":", json.dumps(function.name), ",", json.dumps(key), ":"]
    schema = {**(function.parameters or {"type": "object"}), "x-guidance": {"whitespace_pattern": WHITESPACE}}
    return " blank? ".join([*map(json.dumps, marks), f"%json {json.dumps(schema)}", '"}"'])
