"""Texts of more tokens than a model can take: given up as soon as that is seen, or read piece by piece.

A text that is read at once takes some two hundred bytes a token while that lasts, and nobody can break it off: megabytes of digits
become gigabytes and many seconds. Within ``bounded`` no more than a piece, or what fits, is read at once. What fits is
read whole: its tokens are those that it always has.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from hasten.core.errors import PromptTooLong

__all__ = ["TooManyTokens", "bounded", "read_within_bounds"]

PIECE = 64 << 10  # characters
SEARCHED = 4096  # characters before the end of a piece, for a place to cut
WINDOW = 64  # characters on each side of a cut by which it is judged
CANDIDATES = 4  # of each kind of border
SLACK = 64  # tokens by which a cut may make a text longer: it may go through a long token
BORDERS = (re.compile(r"(?<=\n)(?=\S)"), re.compile(r"(?<=\S)(?= \S)"))

Read = Callable[[str], list[int]]


class TooManyTokens(PromptTooLong):
    """A text was given up. ``count``: how many tokens it has at least."""

    def __init__(self, count: int, most: int) -> None:
        super().__init__(f"The text has more than {count - 1} tokens where {most} are allowed; shorten it.")
        self.count = count


@dataclass(frozen=True, slots=True)
class _Bound:
    most: int
    refuse: bool
    between: Callable[[], None]


_bound: ContextVar[_Bound | None] = ContextVar("_bound", default=None)


@contextmanager
def bounded(most: int, refuse: bool = True, between: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Texts that a tokenizer encodes meanwhile in this thread are long from ``most`` tokens on. Such a one raises TooManyTokens, or
    unless ``refuse`` is encoded piece by piece. ``between`` is called before each piece, and may raise to end the work."""
    before = _bound.set(_Bound(most, refuse, between))
    try:
        yield
    finally:
        _bound.reset(before)


def read_within_bounds(text: str, read: Read) -> list[int]:
    """What ``read`` makes of a text, within the bounds that hold now. Raises TooManyTokens.

    In pieces a text has the tokens that it has as a whole, wherever a place is found at which the tokenizer itself cuts."""
    bound = _bound.get()
    if bound is None or len(text) <= PIECE:
        return read(text)
    found: list[int] = []
    known: dict[int, int] = {}  # one object for all places of a token: four times less memory
    count = 0
    for cuts, piece in enumerate(_pieces(text, read), 1):
        bound.between()
        tokens = read(piece)
        found.extend(map(known.setdefault, tokens, tokens))
        count = len(found) - cuts * SLACK
        if bound.refuse and count > bound.most:
            raise TooManyTokens(count, bound.most)
    return found if count > bound.most else read(text)


def _pieces(text: str, read: Read) -> Iterator[str]:
    begin = 0
    while len(text) - begin > PIECE:
        end, following = _cut(text, begin + PIECE, read)
        yield text[begin:end]
        begin = following
    yield text[begin:]


def _cut(text: str, at: int, read: Read) -> tuple[int, int]:
    """Where a piece that should end at ``at`` ends, and where the next one begins: a space between is left out where the tokenizer
    puts one in front of every text. Judged by whether both sides have the tokens that they have together."""
    for border in _borders(text, at):
        before, behind = text[border - WINDOW : border], text[border : border + WINDOW]
        together, first = read(before + behind), read(before)
        if first + read(behind) == together:
            return border, border
        if behind[0] == " " and first + read(behind[1:]) == together:
            return border, border + 1
    return at, at


def _borders(text: str, at: int) -> Iterator[int]:
    """Places to cut near ``at``, the most natural ones first."""
    for kind in BORDERS:
        places = [found.start() for found in kind.finditer(text, at - SEARCHED, at)]
        yield from reversed(places[-CANDIDATES:])
    yield from itertools.islice(range(at, at - SEARCHED, -1), 2 * CANDIDATES)
