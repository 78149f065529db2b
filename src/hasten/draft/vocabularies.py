"""Two vocabularies side by side: which tokens spell the same text, how a sequence of one reads in the other, and how a draft of the
other is told in the first (the reference is section 8 of the sources: Timor et al. 2502.05202; OmniDraft 2507.02659).

Everything goes by the bytes that tokens stand for, never by their spelling in a file: leading spaces, byte tokens and characters
of several tokens are bytes like any others. Control tokens are no text; only ends of answers are taken for each other.

What comes out of here only suggests. A misreading costs acceptance and never a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hasten.core.errors import VocabularyMismatch
from hasten.sampling.noise import IntArray

FEWEST_SHARED = 32
LEAST_REREAD = 8  # tokens at the end of a text that are read again when it grows: their borders may move
MOST_REREAD = 64
UNFINISHED = 3  # most bytes of a character that has not ended
WORD_STARTS = (b" ", b"\n", b"\t")


class Vocabulary(Protocol):
    """What this file needs of a tokenizer."""

    special_ids: frozenset[int]
    eos_token_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    strips_space: bool

    @property
    def vocabulary_size(self) -> int: ...
    def token_bytes(self, token: int) -> bytes: ...
    def encode(self, text: str, *, add_bos: bool, allow_special: bool = True) -> list[int]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """Pairs of ids that mean the same: ``target`` ascending, ``own`` (the draft model's) beside it, no id twice."""

    target: IntArray
    own: IntArray
    to_own: dict[int, int]
    to_target: dict[int, int]

    def check(self, draft: str, target: str) -> None:
        """Raises VocabularyMismatch when the two have too little in common to draft for each other."""
        if len(self.target) < FEWEST_SHARED:
            raise VocabularyMismatch(
                f"'{draft}' cannot draft for '{target}': only {len(self.target)} tokens of their vocabularies spell the same text "
                f"and {FEWEST_SHARED} are needed; choose a draft model of the same family, or leave it out."
            )


def overlap(target: Vocabulary, own: Vocabulary) -> Overlap:
    """The tokens that both have, and their ends of answers: those of equal name, else the first of each."""
    spelled = _spelled(own)
    pairs = {token: spelled[text] for text, token in _spelled(target).items() if text in spelled}
    ends = {own.token_bytes(token): token for token in own.eos_token_ids}
    found = {token: ends[name] for token in target.eos_token_ids if (name := target.token_bytes(token)) in ends}
    if not found and target.eos_token_ids and own.eos_token_ids:
        found = {target.eos_token_ids[0]: own.eos_token_ids[0]}
    pairs.update(found)
    ids = sorted(pairs)
    return Overlap(
        np.array(ids, np.int64),
        np.array([pairs[token] for token in ids], np.int64),
        pairs,
        {own_id: token for token, own_id in pairs.items()},
    )


def _spelled(vocabulary: Vocabulary) -> dict[bytes, int]:
    """Token by text. Of several that spell the same (single bytes, to which a tokenizer falls back, are such) the one that is said:
    which the text alone is made of, else the last."""
    same: dict[bytes, list[int]] = {}
    for token in _texts(vocabulary):
        same.setdefault(vocabulary.token_bytes(token), []).append(token)
    out = {text: tokens[-1] for text, tokens in same.items()}
    for text, tokens in same.items():
        alone = encoded(vocabulary, text) if len(tokens) > 1 else []
        if len(alone) == 1 and alone[0] in tokens:
            out[text] = alone[0]
    return out


def _texts(vocabulary: Vocabulary) -> Iterable[int]:
    """Ids that stand for text."""
    barred = {*vocabulary.special_ids, *vocabulary.eos_token_ids}
    return (token for token in range(vocabulary.vocabulary_size) if token not in barred and vocabulary.token_bytes(token))


@dataclass(slots=True)
class Reading:
    """A growing sequence of target tokens, in the tokens of another vocabulary.

    The last tokens are read again whenever text is added, from the beginning of a word, where the borders of tokens do not
    depend on what stands before (string-level alignment: the reference's A.6 looks for the longest common run instead).
    """

    target: Vocabulary
    own: Vocabulary
    overlap: Overlap
    tokens: list[int] = field(default_factory=list)
    _read: int = 0  # target tokens
    _start: int = 0  # where in ``tokens`` the present run of text begins
    _text: bytearray = field(default_factory=bytearray)  # of that run
    _covered: int = 0  # bytes that the run's tokens stand for
    _faithful: bool = True  # these bytes are the text's; else (a tokenizer that rewrites text) the run is read whole each time

    def __post_init__(self) -> None:
        self.tokens += self.own.prefix_ids
        self._start = len(self.tokens)

    def extend(self, sequence: Sequence[int]) -> int:
        """Read on to the end of ``sequence``; returns how many of the earlier tokens still stand."""
        standing = len(self.tokens)
        fresh = bytearray()
        for token in sequence[self._read :]:
            if token in self.target.special_ids or token in self.target.eos_token_ids:
                standing = min(standing, self._append(bytes(fresh)))
                fresh.clear()
                self._control(token)
            else:
                fresh += self.target.token_bytes(token)
        self._read = len(sequence)
        return min(standing, self._append(bytes(fresh)))

    def _control(self, token: int) -> None:
        """A control token, where there is one like it, and a new run of text."""
        own = self.overlap.to_own.get(token)
        if own is None and token not in self.target.eos_token_ids:
            name = self.target.token_bytes(token)
            own = next((other for other in self.own.special_ids if self.own.token_bytes(other) == name), None)
        self.tokens += [] if own is None else [own]
        self._start, self._covered, self._faithful = len(self.tokens), 0, True
        self._text.clear()

    def _append(self, fresh: bytes) -> int:
        """Add text to the run; returns how many of the tokens there were still stand."""
        if not fresh:
            return len(self.tokens)
        before = len(self.tokens)
        self._text += fresh if self._text or not self.target.strips_space else fresh.removeprefix(b" ")
        lead = int(self.own.strips_space)  # the run's first token has a space that is not in the text
        cut, kept = before, self._covered
        while cut > self._start and (before - cut < MOST_REREAD or not self._faithful):
            cut -= 1
            text = self.own.token_bytes(self.tokens[cut])
            kept -= len(text)
            if self._faithful and before - cut >= LEAST_REREAD and text.startswith(WORD_STARTS[: 1 if lead else None]):
                break  # where encoding puts a space in front, words begin with theirs
        tail = encoded(self.own, bytes(self._text[max(0, kept - lead) :]), first=cut == self._start)
        self._covered = kept + sum(len(self.own.token_bytes(token)) for token in tail)
        self._faithful = 0 <= len(self._text) + lead - self._covered <= UNFINISHED
        same = cut
        while same < before and same - cut < len(tail) and self.tokens[same] == tail[same - cut]:
            same += 1
        self.tokens[cut:] = tail
        return same


def encoded(vocabulary: Vocabulary, text: bytes, first: bool = False) -> list[int]:
    """Token ids of a piece of text, without an unfinished character at its end. ``first``: nothing stands before it."""
    whole = text.decode("utf-8", "ignore")
    if vocabulary.strips_space and not first:
        whole = whole.removeprefix(" ")  # encoding puts one there
    return vocabulary.encode(whole, add_bos=False, allow_special=False)


class Telling:
    """Tells drafts of another vocabulary in the target's, as strings: decode, and encode together with the text before
    (string-level exact match, SLEM: 2502.05202, algorithm 2)."""

    def __init__(self, target: Vocabulary, own: Vocabulary) -> None:
        self._target, self._own = target, own

    def tell(self, before: Sequence[int], draft: Sequence[int]) -> list[tuple[int, int]]:
        """(target token, number of tokens of ``draft`` begun when it ends), in order. ``before`` are the target's own tokens,
        which stay as they are: where text on both sides of the border would join, the draft is encoded by itself."""
        pieces = [self._own.token_bytes(token) for token in draft]
        text = b"".join(pieces)
        lead = self._lead(before)
        lead_text = b"".join(self._target.token_bytes(token) for token in lead)
        tokens = encoded(self._target, lead_text + text)
        tokens = tokens[len(lead) :] if tokens[: len(lead)] == lead else encoded(self._target, text)
        ends = np.cumsum([0, *map(len, pieces)])
        out, end = [], 0
        for token in tokens:
            end += len(self._target.token_bytes(token))
            out.append((token, int(np.searchsorted(ends, end, side="left"))))
        return [(token, min(begun, len(draft))) for token, begun in out]

    def _lead(self, before: Sequence[int]) -> list[int]:
        """The last tokens of the text before, from the beginning of a word."""
        at = len(before)
        while at > 0 and len(before) - at < MOST_REREAD:
            if before[at - 1] in self._target.special_ids:
                break
            at -= 1
            if len(before) - at >= LEAST_REREAD and self._target.token_bytes(before[at]).startswith(WORD_STARTS):
                break
        return list(before[at:])


MERGE_BYTES = 300  # of memory a merge, about


@dataclass(slots=True)
class Merges:
    """OmniDraft's cache (2507.02659, section 3.1): target tokens that another vocabulary spells with several tokens, learnt from
    the texts themselves. Keeps the ``most`` that were met last."""

    own: Vocabulary
    target: Vocabulary
    overlap: Overlap
    most: int = 16_384
    _by_first: dict[int, dict[tuple[int, ...], int]] = field(default_factory=dict)
    _known: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def bytes(self) -> int:
        """Of memory, about."""
        return MERGE_BYTES * len(self._known)

    def learn(self, tokens: Iterable[int]) -> None:
        """These target tokens stand in a text."""
        for token in tokens:
            if token in self._known:
                self._known[token] = self._known.pop(token)
            elif token not in self.overlap.to_own and token not in self.target.special_ids:
                self._add(token)

    def _add(self, token: int) -> None:
        text = self.target.token_bytes(token)
        parts = tuple(encoded(self.own, text))
        if len(parts) < 2 or b"".join(map(self.own.token_bytes, parts)) != text:
            return  # part of a character, or nothing
        self._known[token] = parts
        self._by_first.setdefault(parts[0], {})[parts] = token
        if len(self._known) > self.most:
            self._forget(next(iter(self._known)))

    def _forget(self, token: int) -> None:
        gone = self._known.pop(token)
        merges = self._by_first.get(gone[0], {})
        if merges.get(gone) == token:  # else another token is spelled so, too
            del merges[gone]
            if not merges:
                del self._by_first[gone[0]]

    def tell(self, before: Sequence[int], draft: Sequence[int]) -> list[tuple[int, int]]:
        """As ``Telling.tell``: the longest merge first, else the token itself where both have it; stops where neither is so."""
        out: list[tuple[int, int]] = []
        at = 0
        while at < len(draft):
            merges = self._by_first.get(draft[at], {})
            best = max((parts for parts in merges if tuple(draft[at : at + len(parts)]) == parts), key=len, default=None)
            token = self.overlap.to_target.get(draft[at]) if best is None else merges[best]
            if token is None:
                break
            at += 1 if best is None else len(best)
            out.append((token, at))
        return out
