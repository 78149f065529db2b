"""Text from outside: UTF-8 whatever the locale says, and bytes that are none are refused in one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from hasten.core.errors import InvalidRequest


def whole_input() -> str:
    """All of standard input. Raises InvalidRequest where it is not UTF-8."""
    return _text(sys.stdin.buffer.read(), "Standard input")


def input_lines() -> Iterator[str]:
    """The lines of standard input as they come, without their ends. Raises InvalidRequest at the first that is not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        yield _text(line, f"Line {number} of standard input").removesuffix("\n")


def typed_text(text: str, what: str) -> str:
    """An argument of the command line, whose bytes that are no text Python keeps as surrogates. Raises InvalidRequest for those."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return _text(os.fsencode(text), what)
    return text


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as problem:
        byte = f"byte {problem.start + 1} is {data[problem.start]:#04x}"
        raise InvalidRequest(f"{what} is not UTF-8 text ({byte}); convert it, for example with iconv.") from problem
