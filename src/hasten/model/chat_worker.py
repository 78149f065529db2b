"""The process that renders chat templates. Run by its path; imports nothing of Hasten.

A template is code from a stranger. Jinja's sandbox keeps it from Python's inside, but cannot bound its time and memory: a
template can nest loops, double strings, or compare and print lists that share parts. So it is rendered here, where the
system bounds memory and a parent process ends what takes too long.

Protocol, on standard input and output: a frame is four bytes of length (big endian) and that many bytes of JSON. The parent
sends {"source": ..., "names": {...}}, and {"marks": {...}} where the template's own control tokens are to be told from those in
messages; the answer is {"text": ...} or {"error": kind, "message": ...}. End of input ends it.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Mapping
from datetime import datetime
from types import CodeType
from typing import Any, BinaryIO, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAXIMUM_OUTPUT = 4 << 20  # characters
MAXIMUM_MEMORY = 1 << 30  # bytes of address space
ORPHAN_SECONDS = 30
NO_FILE = "/dev/null/template"  # a name under which no file can be


class Refusal(jinja2.TemplateError):
    """The template itself says that the messages are wrong."""


class OutputTooLong(Exception):
    """The template writes more than MAXIMUM_OUTPUT."""


class Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, except that a forbidden attribute is an error even where it would print as nothing."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"the attribute {attribute!r} is forbidden")

    def _compile(self, source: str, filename: str) -> CodeType:
        """To show the line of a mistake (a break outside loops), Python opens the file that its code is said to come from."""
        return compile(source, NO_FILE, "exec")


class PlainNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore, behind which Python keeps its inside."""

    def __init__(*args: Any, **attributes: Any) -> None:
        values = dict(*args[1:], **attributes)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"the attribute {name!r} is forbidden")


class Generation(Extension):
    """``{% generation %}`` marks the assistant's part for training; here its contents are simply rendered."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's interface)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def environment() -> Environment:
    """What chat templates expect to find (as Hugging Face defines it)."""
    made = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation], optimized=False)
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    made.globals["dict"] = lambda *args, **named: dict(*args, **named)
    made.globals["namespace"] = PlainNamespace
    return made


def _raise_exception(message: Any) -> NoReturn:
    raise Refusal(str(message))


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(template: jinja2.Template, names: dict[str, Any]) -> str:
    """The text of one chat. Raises OutputTooLong, Refusal, or whatever the template does wrong."""
    parts: list[str] = []
    size = 0
    for part in template.generate(names):
        size += len(part)
        if size > MAXIMUM_OUTPUT:
            raise OutputTooLong
        parts.append(part)
    return "".join(parts)


def compiled(source: str, marks: Mapping[str, str]) -> jinja2.Template:
    """The template, writing a mark wherever its source spells one of the keys of ``marks``."""
    made = environment()
    if not marks:
        return made.from_string(source)
    tree = made.parse(source)
    # Longer ones first, as a tokenizer looks for them.
    spelled = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))
    for node in tree.find_all((nodes.Const, nodes.TemplateData)):
        name = "data" if isinstance(node, nodes.TemplateData) else "value"
        text = getattr(node, name)
        if isinstance(text, str):
            setattr(node, name, spelled.sub(lambda found: marks[found[0]], text))
    return made.from_string(tree)


def answer(
    cache: dict[Any, jinja2.Template], source: str, names: dict[str, Any], marks: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Render one request; every failure becomes a kind and a message."""
    kind, key = "template", (source, *(marks or {}).items())
    try:
        if key not in cache:
            cache.clear()
            cache[key] = compiled(source, marks or {})
        kind = "messages"
        return {"text": render(cache[key], names)}
    except Refusal as problem:
        return {"error": "refused", "message": str(problem)}
    except OutputTooLong:
        return {"error": "size", "message": ""}
    except MemoryError:
        return {"error": "memory", "message": ""}
    except (SecurityError, jinja2.TemplateSyntaxError) as problem:
        return {"error": "template", "message": str(problem)}
    except Exception as problem:
        return {"error": kind, "message": f"{type(problem).__name__}: {problem}"}


def _bound_process() -> None:
    """Bound memory, and forbid files and processes, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the parent's time limit remains
        return
    bounds = {"RLIMIT_AS": MAXIMUM_MEMORY, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, bound in bounds.items():
        try:
            resource.setrlimit(getattr(resource, name), (bound, bound))
        except (AttributeError, ValueError, OSError):
            continue  # this system does not have this bound


def _die_after(seconds: int) -> None:
    """End this process after so long, whatever it does then: a loop must not outlive a parent that is gone. 0 calls it off."""
    import signal

    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    _bound_process()
    cache: dict[Any, jinja2.Template] = {}
    while len(head := requests.read(4)) == 4:
        request = json.loads(requests.read(struct.unpack(">I", head)[0]))
        _die_after(ORPHAN_SECONDS)
        answered = answer(cache, request["source"], request["names"], request.get("marks"))
        _die_after(0)
        data = json.dumps({key: text[: MAXIMUM_OUTPUT + 1] for key, text in answered.items()}).encode()
        answers.write(struct.pack(">I", len(data)) + data)
        answers.flush()
        if answered.get("error") == "memory":
            return  # what filled it may still be held


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
