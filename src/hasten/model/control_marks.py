"""Marks: what stands for control tokens between a chat template and the tokenizer.

A template makes one text of a conversation, in which its own ``<|im_end|>`` and one in a user's message look the same. So the
template is made to write something else: before it is compiled, each control token that its source spells becomes a mark, a row
of signs that nobody outside knows. Behind it the tokenizer reads marks as control tokens and everything else as text. What
clients send is never searched, so no trick of theirs (two fields that meet, a changed case, a cut) makes a token.

Signs have no case and ``repr`` prints them as they are. JSON in ASCII and URLs do not: there they are found escaped.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote, unquote

from hasten.core.errors import InvalidRequest

__all__ = ["Marks", "escaped", "new_secret", "replaced"]

SIGNS = range(0x2800, 0x2900)  # of marks: Braille
SIGN, SIGN_CODE, SIGN_URL = f"{chr(SIGNS[0])}-{chr(SIGNS[-1])}", r"\\++u28[0-9a-f]{2}", "%e2%a[0-3]%[89ab][0-9a-f]"  # expressions
OTHERS = (*range(0x2500, 0x2800), *range(0xE000, 0xF900))  # which stand for single characters: drawing before private use
ESCAPES = re.compile(r"\\u(?:2[5-8]|e[0-9a-f]|f[0-8])[0-9a-f]{2}|%e[2ef](?:%[89ab][0-9a-f]){2}", re.IGNORECASE)  # of all these
OWN_ROLES = ("system", "developer", "assistant")
OWN_TEXTS = ("content", "reasoning_content")
SECRET_LENGTH = 13  # of SIGNS: 104 bits
NUMBER_LENGTH = 3


def replaced(text: str, table: Mapping[str, str]) -> str:
    """``text`` with the values of ``table`` for its keys; of several at one place the longest, as a tokenizer looks for them."""
    if not table:
        return text
    keys = "|".join(map(re.escape, sorted(table, key=len, reverse=True)))
    return re.sub(keys, lambda found: table[found[0]], text)


def new_secret(template: str = "") -> str:
    """What marks begin with: random signs, and none that this template writes itself."""
    free = [chr(code) for code in SIGNS if chr(code) not in template]
    return "".join(secrets.choice(free or [chr(code) for code in SIGNS]) for _ in range(SECRET_LENGTH))


@dataclass(frozen=True)
class Marks:
    """The marks of one template, none by default. ``written`` are the control tokens that it spells out, by spelling.

    ``composed`` are those that it puts together from parts (``'<|' + role + '|>'``): there is no literal to mark, so they are
    found in what was rendered, and a character that each of them needs is kept from the template in clients' strings.
    ``lent`` are spellings of ``written`` that also make tokens in what operators and models say: ``OWN_TEXTS`` of ``OWN_ROLES``.
    """

    written: Mapping[str, str] = field(default_factory=dict)
    composed: Mapping[str, str] = field(default_factory=dict)
    lent: frozenset[str] = frozenset()
    secret: str = field(default_factory=new_secret)

    def mark(self, place: int) -> str:
        """The mark with this number."""
        return self.secret + "".join(chr(SIGNS[digit]) for digit in place.to_bytes(NUMBER_LENGTH, "big"))

    @cached_property
    def kept(self) -> frozenset[str]:
        """The characters without which no composed token can be."""
        return frozenset(character for spelled in self.composed if (character := _needed(spelled)))

    def applied(self, names: dict[str, Any], given: str, template: str) -> tuple[dict[str, Any], dict[str, str]]:
        """What the template is shown for a client's ``names``, which are ``given`` as JSON, and what single characters in that
        mean. The same object where nothing in it changes. Raises InvalidRequest where no character is left to stand for another.

        Characters of composed tokens and of the secret have others in their places, so those in the result are the template's.
        """
        if not self.written and not self.composed:
            return names, {}
        held = _escapes(given) | _escapes(json.dumps(template))
        wanted = {character for character in self.kept if escaped(character) in given}
        wanted |= {sign for sign in self.secret if not _forms(sign).isdisjoint(held)}
        others = (chr(code) for code in OTHERS if _forms(chr(code)).isdisjoint(held)) if wanted else iter("")
        table = dict(zip(sorted(wanted), others, strict=False))
        if len(table) < len(wanted):
            raise InvalidRequest("The messages use every drawing and private-use character of Unicode; leave some of them out.")
        shown, exchanged = names, str.maketrans(table)
        if table:
            shown = _translated(names, exchanged)
            held = _escapes(json.dumps(shown)) | _escapes(json.dumps(template))  # what is spelled escaped: it stays so
        meant = {sign: "" for sign in self.secret if _forms(sign).isdisjoint(held)}
        meant |= {other: character for character, other in table.items()}
        return self._with_lent(shown, exchanged), meant

    def _with_lent(self, names: dict[str, Any], exchanged: Mapping[int, str]) -> dict[str, Any]:
        """``names`` with marks for what is lent, which is spelled there as ``exchanged`` has it."""
        # Those that are not lent stay, with what is spelled in their middle.
        spelled = {text: text.translate(exchanged) for text in (*self.written, *self.composed)}
        table = {shown: self.written[text] if text in self.lent else shown for text, shown in spelled.items()}

        def told(message: dict[str, Any]) -> dict[str, Any]:
            if message["role"] not in OWN_ROLES:
                return message
            texts = {name: text for name in OWN_TEXTS if isinstance(text := message.get(name), str)}
            lent = {name: replaced(text, table) for name, text in texts.items()}
            return message if lent == texts else message | lent

        if not self.lent:
            return names
        before = names["messages"]
        after = [told(message) for message in before]
        same = all(one is other for one, other in zip(before, after, strict=True))
        return names if same else names | {"messages": after}

    def finished(self, text: str, meant: Mapping[str, str]) -> str:
        """A rendered text with composed tokens marked and the client's own characters back in place. Of marks that the template
        cut, nothing of the secret remains."""
        return self._plain(replaced(text, self.composed), meant, keep=True)

    def restored(self, text: str, meant: Mapping[str, str]) -> str:
        """``text`` with spellings for marks: for people to read."""
        return self._plain(text, meant, keep=False)

    def _plain(self, text: str, single: Mapping[str, str], keep: bool) -> str:
        """``text`` without what stands for something else, also where that is escaped, as often as it may be. A mark may be kept
        where its spelling would be a token: as it is, and where the escape leaves spellings alone."""
        marks = {mark: spelled for tokens in (self.written, self.composed) for spelled, mark in tokens.items()}
        meant = marks | dict(single)

        def told(found: re.Match[str]) -> str:
            slashes, codes, url = found["slashes"], found["codes"], found["url"]
            if codes:
                shown = "".join(chr(int(code, 16)) for code in re.split(r"\\+[uU]", codes))
                own = len(slashes) & -len(slashes)  # each escaping doubles them, so those of the client's are twice as many or more
                said = meant.get(shown, "")
                for _ in range(own.bit_length()):
                    said = escaped(said)
                return slashes[own:] + (shown if keep and shown in marks and said == marks[shown] else said)
            if url:
                said = quote(meant.get(unquote(url), ""))
                return said if url.isupper() else said.lower()
            return found[0] if keep and found[0] in marks else meant.get(found[0], "")

        if not meant:
            return text
        codes = [f"{ord(sign):04x}" for sign in single]
        secret = r"\\++u".join(f"{ord(sign):04x}" for sign in self.secret)
        # Nothing is looked for in the middle of backslashes: a row of them would take the square of its length.
        forms = (
            rf"{self.secret}[{SIGN}]{{{NUMBER_LENGTH}}}|[{self.secret}{''.join(single)}]"
            rf"|(?i:(?<!\\)(?P<slashes>\\++)u(?P<codes>{'|'.join([secret + SIGN_CODE * NUMBER_LENGTH, *codes])}))"
            rf"|(?i:(?P<url>{'|'.join([quote(self.secret) + SIGN_URL * NUMBER_LENGTH, *map(quote, single)])}))"
        )
        return re.sub(forms, told, text)


def escaped(text: str) -> str:
    """How JSON in ASCII writes a text, without its quotation marks."""
    return json.dumps(text)[1:-1]


def _escapes(text: str) -> set[str]:
    """What is escaped in a text, in lower case."""
    return {found[0].lower() for found in ESCAPES.finditer(text)}


def _forms(character: str) -> set[str]:
    return {escaped(character), quote(character).lower()}


def _needed(spelled: str) -> str:
    """A character of a token that words seldom have and nothing escapes: one from its middle (``|``) before its first (``<``); none
    of a word."""
    signs = [character for character in spelled[1:-1] + spelled[0] if not character.isalnum() and character not in "_- "]
    return next((character for character in signs if character not in "/\\\"'&"), signs[0] if signs else "")


def _translated(value: Any, table: Mapping[int, str]) -> Any:
    """A copy of a plain JSON value with the characters of its texts and keys exchanged."""
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, Mapping):
        return {key.translate(table): _translated(item, table) for key, item in value.items()}
    return [_translated(item, table) for item in value] if isinstance(value, list) else value
