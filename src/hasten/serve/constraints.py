"""From what a client asks of an answer's form to a grammar."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hasten.core.errors import InvalidRequest
from hasten.engine.grammar import MOST_CHARACTERS, WHITESPACE, Form, Grammars, GrammarState, choice
from hasten.engine.llm import LLM
from hasten.engine.schemas import complaint, eased
from hasten.serve.errors import invalid
from hasten.serve.tools import CLOSE, OPEN, Toolset
from hasten.serve.wire import ResponseFormat, StructuredOutputs, ToolFunction

_grammars: weakref.WeakKeyDictionary[LLM, Grammars] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def constraint_of(
    llm: LLM,
    tenant: str,
    format: ResponseFormat | None,
    structured: StructuredOutputs | None,
    tools: Toolset | None = None,
    format_name: str = "response_format",
) -> Callable[[], GrammarState] | None:
    """What makes the constraint of each answer, None where there is none. Not for the event loop: compiling may take a second.
    Of a schema that is not asked for with ``strict``, what cannot be held is left out. ``format_name``: what the client calls
    ``format``.

    Raises ApiError or InvalidRequest (400) when forms contradict each other or cannot be used.
    """
    words, own = _of_format(format), _of_structured(structured)
    if own is not None and (words is not None or (tools is not None and tools.forced)):
        raise invalid(
            "structured_outputs excludes response_format and a forced tool_choice; give one of them.", "structured_outputs"
        )
    form = own or _of_tools(tools, words)
    if form is None:
        return None
    grammars = grammars_of(llm)
    forced = tools is not None and tools.forced
    try:
        return grammars.compile(form, tenant)
    except InvalidRequest:
        if own is not None:
            raise
    try:
        if len(form.text) <= MOST_CHARACTERS:
            form = _of_tools(_eased_tools(tools), None if forced else _eased_format(words, format_name))
            assert form is not None
        return grammars.compile(form, tenant)
    except InvalidRequest:
        whose = "The parameters of the tools that may be called are" if forced else f"The schema of {format_name} is"
        said = f"{whose} more than an answer can be held to; send a smaller schema{', or fewer tools' if forced else ''}."
        raise invalid(said, "tools" if forced else format_name) from None


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
    return Form("json", json.dumps(format.json_schema.schema_), lenient=not format.json_schema.strict)


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
        rules += f"\nwords: {_json_of(json.loads(words.text), words.lenient)}"
    if tools.format == "llama3":
        return Form("lark", f"start: call{other}\n{rules}")
    more = ' ("\\n" one)*' if tools.several else ""
    return Form("lark", f'start: one{more}{other}\none: "{OPEN}\\n" call "\\n{CLOSE}"\n{rules}')


def _call_of(function: ToolFunction, key: str, forced: bool) -> str:
    """A call of one function; where it is forced, with arguments of its schema, which is a root of its own: what it refers to is
    looked for there. Arguments are an object, also where the schema allows other values: a call with those would not be read."""
    marks = ["{", '"name"', ":", json.dumps(function.name), ",", json.dumps(key), ":"]
    schema = _json_of(_called_with(function) if forced else {"type": "object"}, lenient=not function.strict)
    return " blank? ".join([*map(json.dumps, marks), schema, '"}"'])


def _called_with(function: ToolFunction) -> dict[str, Any]:
    return {**(function.parameters or {}), "type": "object"}


def _json_of(schema: dict[str, Any], lenient: bool) -> str:
    """What a schema allows, as a part of a larger form."""
    return f"%json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': WHITESPACE, 'lenient': lenient}})}"


def _eased_format(words: Form | None, name: str) -> Form | None:
    if words is None:
        return None
    return replace(words, text=json.dumps(_eased(json.loads(words.text), not words.lenient, f"The schema of {name}", name)))


def _eased_tools(tools: Toolset | None) -> Toolset | None:
    if tools is None or not tools.forced:
        return tools
    functions = []
    for function in tools.callable:
        schema = {name: value for name, value in _called_with(function).items() if name != "x-guidance"}
        schema = _eased(schema, bool(function.strict), f"The schema of the tool {function.name!r}", "tools")
        functions.append(function.model_copy(update={"parameters": schema}))
    return replace(tools, functions=tuple(functions))


def _eased(schema: dict[str, Any], strict: bool, whose: str, param: str) -> dict[str, Any]:
    """What of a schema can be held. Raises ApiError (400) where something cannot that is ``strict`` or cannot be left out."""
    found = complaint(schema, lenient=not strict)
    if found is None:
        return schema
    less, left = eased(schema)
    if strict:
        named = "".join(f"{name}: " for name in left if name not in found)
        raise invalid(f"{whose} cannot be held with strict ({named}{found}); take that out, or leave strict out.", param)
    found = complaint(less, lenient=True)
    if found is not None:
        raise invalid(f"{whose} cannot be held ({found}); correct it.", param)
    return less
