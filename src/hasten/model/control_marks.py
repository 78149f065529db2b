"""Marks: what stands for control tokens between a chat template and the tokenizer.

A template makes one text of a conversation, in which its own ``<|im_end|>`` and one in a user's message look the same. So the
template is made to write something else: before it is compiled, each control token that its source spells becomes a mark of
private-use characters that nobody outside knows. Behind it the tokenizer reads marks as control tokens and everything else as
text. What clients send is never searched, so no trick of theirs (two fields that meet, a changed case, a cut) makes a token.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hasten.core.errors import InvalidRequest

__all__ = ["Marks", "replaced"]

PRIVATE = range(0xE000, 0xF900)  # of the Basic Multilingual Plane
OWN_ROLES = ("system", "developer", "assistant")
SECRET_LENGTH = 8  # characters of PRIVATE: 101 bits


def replaced(text: str, table: Mapping[str, str]) -> str:
    """``text`` with the values of ``table`` for its keys; of several at one place the longest, as a tokenizer looks for them."""
    if not table:
        return text
    keys = "|".join(map(re.escape, sorted(table, key=len, reverse=True)))
    return re.sub(keys, lambda found: table[found[0]], text)


def _new_secret() -> str:
    return "".join(chr(secrets.choice(PRIVATE)) for _ in range(SECRET_LENGTH))


@dataclass(frozen=True)
class Marks:
    """The marks of one template, none by default. ``written`` are the control tokens that it spells out, by spelling.

    ``composed`` are those that it puts together from parts (``'<|' + role + '|>'``): there is no literal to mark, so they are
    found in what was rendered, and a character that each of them needs is kept from the template in clients' strings.
    ``lent`` are spellings of ``written`` that also make tokens in what operators and models say: contents of ``OWN_ROLES``.
    """

    written: Mapping[str, str] = field(default_factory=dict)
    composed: Mapping[str, str] = field(default_factory=dict)
    lent: frozenset[str] = frozenset()
    secret: str = field(default_factory=_new_secret)

    def mark(self, place: int) -> str:
        """The mark with this number."""
        high, low = divmod(place, len(PRIVATE))
        return self.secret + chr(PRIVATE[high]) + chr(PRIVATE[low])

    @cached_property
    def kept(self) -> frozenset[str]:
        """The characters without which no composed token can be."""
        return frozenset(character for spelled in self.composed if (character := _needed(spelled)))

    def applied(self, names: dict[str, Any], template: str) -> tuple[dict[str, Any], dict[str, str]]:
        """What the template is shown for a client's ``names``, and which characters stand for which others in it. The same object
        where nothing in it changes. Raises InvalidRequest where no character is left to stand for another."""
        if self.lent:
            names = self._with_lent(names)
        if not self.kept:
            return names, {}
        used = set(template).union(*self.written.values(), *self.composed.values())
        _collect(names, used)
        free = (chr(code) for code in PRIVATE if chr(code) not in used)
        wanted = sorted(self.kept & used)
        table = dict(zip(wanted, free, strict=False))
        if len(table) < len(wanted):
            raise InvalidRequest("The messages use every private-use character of Unicode; leave some of them out.")
        return _translated(names, str.maketrans(table)), {other: character for character, other in table.items()}

    def _with_lent(self, names: dict[str, Any]) -> dict[str, Any]:
        # Those that are not lent stay, with what is spelled in their middle.
        table = {spelled: spelled for spelled in (*self.written, *self.composed)} | {name: self.written[name] for name in self.lent}

        def told(message: dict[str, Any]) -> dict[str, Any]:
            if message["role"] not in OWN_ROLES or not isinstance(message["content"], str):
                return message
            text = replaced(message["content"], table)
            return message if text == message["content"] else message | {"content": text}

        before = names["messages"]
        after = [told(message) for message in before]
        same = all(one is other for one, other in zip(before, after, strict=True))
        return names if same else names | {"messages": after}

    def finished(self, text: str, exchanged: Mapping[str, str]) -> str:
        """A rendered text with composed tokens marked and the client's own characters back in place."""
        return _back(replaced(text, self.composed), exchanged)

    def restored(self, text: str, exchanged: Mapping[str, str] | None = None) -> str:
        """``text`` with spellings for marks, also where they are escaped: for people to read."""
        for spelled, mark in (*self.written.items(), *self.composed.items()):
            text = text.replace(mark, spelled).replace(escaped(mark), spelled)
        return _back(text, exchanged or {}).replace(self.secret, "").replace(escaped(self.secret), "")


def escaped(text: str) -> str:
    """How JSON and Python's ``repr`` write private-use characters."""
    return "".join(f"\\u{ord(character):04x}" for character in text)


def _back(text: str, exchanged: Mapping[str, str]) -> str:
    for other, character in exchanged.items():
        text = text.replace(other, character)
    return text


def _needed(spelled: str) -> str:
    """A character of a token that words seldom have: one from its middle (``|``) before its first (``<``); none of a word."""
    signs = [character for character in spelled[1:-1] + spelled[0] if not character.isalnum() and character not in "_- "]
    return next((character for character in signs if character != "/"), signs[0] if signs else "")


def _collect(value: Any, used: set[str]) -> None:
    """Add all characters of a plain JSON value to ``used``."""
    if isinstance(value, str):
        used.update(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            used.update(key)
            _collect(item, used)
    elif isinstance(value, list):
        for item in value:
            _collect(item, used)


def _translated(value: Any, table: Mapping[int, str]) -> Any:
    """A copy of a plain JSON value with the characters of its texts and keys exchanged."""
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, Mapping):
        return {key.translate(table): _translated(item, table) for key, item in value.items()}
    return [_translated(item, table) for item in value] if isinstance(value, list) else value
