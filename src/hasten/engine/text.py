"""The text of one answer while its tokens arrive: whole characters only, and nothing at or after a stop string.

Tokens are bytes, so a character may end in a later token; a stop string may, too. What could still become part of either is
held back. The pieces, joined, are the decoding of all tokens up to the first place where a stop string begins. What a model thinks
before it answers is told apart, and stop strings are not looked for in it. No torch.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from typing import Protocol

__all__ = ["TextStream", "ThoughtReader", "Vocabulary", "overlap"]


class Vocabulary(Protocol):
    """What streaming needs of a tokenizer (``hasten.model.tokenizer.Tokenizer`` has it)."""

    @property
    def special_ids(self) -> Collection[int]: ...

    @property
    def strips_space(self) -> bool: ...

    def token_bytes(self, token: int) -> bytes: ...


class ThoughtReader(Protocol):
    """What tells an answer's thought from its words (``hasten.engine.thought.Thought`` does)."""

    @property
    def inside(self) -> bool: ...

    def is_mark(self, token: int) -> bool: ...

    def take(self, text: str, mark: bool = False) -> tuple[str, str]: ...

    def finish(self) -> tuple[str, str]: ...


class TextStream:
    """Decodes one answer. ``stopped`` says whether a stop string was found and ``stop_string`` which, ``consumed`` how many tokens
    were taken up to and including the one that completed it: those are the answer's usage. Tokens pushed after that are ignored.

    ``continues`` keeps the leading space of an answer that goes on after other text (see ``Tokenizer.decode``).
    ``thoughts`` reads what the model thinks first: ``thought`` is what the last call has brought of it, beside the text of the
    answer that was returned, and ``thought_tokens`` how many tokens it took so far, marks included.
    When one token completes several stop strings, the text ends where the earliest of them begins.
    The work of a token is in proportion to its text and the text held back, times the number of stop strings.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stop: Sequence[str] = (),
        continues: bool = False,
        thoughts: ThoughtReader | None = None,
    ) -> None:
        self.stopped = False
        self.stop_string: str | None = None
        self.consumed = 0
        self.thought = ""
        self.thought_tokens = 0
        self._thoughts = thoughts
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matchers = [_Matcher(text) for text in stop]
        self._held = ""
        self._drops_space = vocabulary.strips_space and not continues

    def push(self, token: int) -> tuple[str, bool]:
        """Take one token: (text that is final now, whether a stop string has been found)."""
        if self.stopped:
            return "", True
        self.consumed += 1
        if self._thoughts is not None:
            return self._release(self._words_of(token, self._thoughts)), self.stopped
        if token in self._vocabulary.special_ids:
            return "", False
        return self._release(self._decoded(self._vocabulary.token_bytes(token))), self.stopped

    def finish(self) -> str:
        """The text still held back when no more tokens come; a character that never ended becomes U+FFFD."""
        self.thought = ""
        if self.stopped:
            return ""
        words = self._decoded(b"", final=True)
        if self._thoughts is not None:
            parts = (self._thoughts.take(words), self._thoughts.finish())
            self.thought, words = ("".join(part) for part in zip(*parts, strict=True))
        text = self._release(words) + self._held
        self._held = ""
        return text

    def _decoded(self, data: bytes, final: bool = False) -> str:
        text = self._decoder.decode(data, final)
        if self._drops_space and text:
            self._drops_space = False
            text = text.removeprefix(" ")
        return text

    def _words_of(self, token: int, thoughts: ThoughtReader) -> str:
        """What a token brings of the answer; what it brings of the thought is ``thought``."""
        inside, mark = thoughts.inside, thoughts.is_mark(token)
        silent = mark or token in self._vocabulary.special_ids
        text = self._decoded(b"" if silent else self._vocabulary.token_bytes(token), final=mark)
        self.thought, words = thoughts.take(text, mark)
        if self.thought or ((inside or thoughts.inside) and not words):
            self.thought_tokens = self.consumed
        return words

    def _release(self, text: str) -> str:
        """Add decoded text to what is held, and let go of what no stop string can reach any more."""
        begins = [(found, matcher.string) for matcher in self._matchers if (found := matcher.feed(text)) is not None]
        whole = self._held + text
        if begins:
            first, self.stop_string = min(begins, key=lambda found: found[0])
            self.stopped = True
            self._held = ""
            return whole[: len(whole) - len(text) + first]
        keep = len(whole) - max((matcher.matched for matcher in self._matchers), default=0)
        self._held = whole[keep:]
        return whole[:keep]


class _Matcher:
    """Finds one string in text that comes in pieces (Knuth, Morris and Pratt 1977). ``matched`` is the length of the longest
    beginning of the string that ends where the text ends."""

    def __init__(self, string: str) -> None:
        self.string = string
        self.matched = 0
        self._borders = [0] * len(string)  # longest proper border of each beginning
        border = 0
        for at in range(1, len(string)):
            while border and string[at] != string[border]:
                border = self._borders[border - 1]
            border += string[at] == string[border]
            self._borders[at] = border

    def feed(self, text: str) -> int | None:
        """Where the string first begins, counted from the start of ``text`` (negative: in an earlier piece), or None."""
        string, borders, matched = self.string, self._borders, self.matched
        for at, character in enumerate(text):
            while matched and character != string[matched]:
                matched = borders[matched - 1]
            matched += character == string[matched]
            if matched == len(string):
                return at + 1 - matched
        self.matched = matched
        return None


def overlap(text: str, mark: str) -> int:
    """The length of the longest end of ``text`` that begins ``mark`` and is not all of it."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
