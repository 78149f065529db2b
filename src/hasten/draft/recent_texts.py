"""The last so many tokens of a stream of texts, and where a run of tokens occurred in them. No torch.

A ring of tokens: a new text overwrites the oldest ones. For each gram length a table leads from the hash of a run to where it
occurred last, and from every occurrence to the one before, so that adding a text costs a few array operations and a look-up a few
reads. Nothing is ever removed: links into what was overwritten are told by their age, and hashes that lie by comparing tokens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hasten.draft.matches import BOUNDARY, LONGEST_MATCH, Match, weights

GRAM_LENGTHS = (6, 2, 1)
MOST_MATCHES = 24  # looked at for each gram length, the most recent ones

_WEIGHTS = weights(trust=1.0, power=2.5, ranks=len(GRAM_LENGTHS) * MOST_MATCHES)
_MULTIPLIERS = [(0x9E3779B97F4A7C15 * (2 * place + 1) ** 5) & (2**64 - 1) | 1 for place in range(max(GRAM_LENGTHS))]
_WORD = 2**64 - 1
_BACK = np.arange(LONGEST_MATCH)

Tokens = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]


class RecentTexts:
    """Holds texts of ``capacity`` tokens in all, boundaries and a little waste at the ring's end included.

    A text longer than a quarter of the capacity keeps its end. Memory: 52 to 76 bytes a token of capacity.
    Raises ValueError for a capacity that is not from 64 to 2^30.
    """

    def __init__(self, capacity: int) -> None:
        if not 64 <= capacity <= 1 << 30:
            raise ValueError("capacity must be from 64 to 2^30 tokens")
        self.capacity = capacity
        self._bits = max(8, (capacity - 1).bit_length())
        # A margin before the ring, so that looking back from its first tokens meets a boundary.
        self._tokens = np.full(LONGEST_MATCH + capacity, BOUNDARY, dtype=np.int32)
        self._text = self._tokens.data
        self._written = 0  # tokens so far; a place is ``written`` at its time, and lies at that modulo the capacity
        # Links hold a place plus one; 0 is none. Zeros cost no memory until they are used.
        self._latest = {length: np.zeros(1 << self._bits, dtype=np.int64) for length in GRAM_LENGTHS}
        self._previous = {length: np.zeros(capacity, dtype=np.int64) for length in GRAM_LENGTHS}
        self._starts: dict[int, int] = {}  # where the text with that hash starts, oldest first

    @property
    def bytes(self) -> int:
        """Memory of the ring and its tables."""
        tables = [*self._latest.values(), *self._previous.values()]
        return self._tokens.nbytes + sum(table.nbytes for table in tables)

    def add(self, tokens: Tokens, context: int) -> bool:
        """Append a text. Its first ``context`` tokens only help to find the rest: they are never proposed.

        Returns whether it is new: a text that is still held whole is not appended again.
        """
        tokens, context = fit(tokens, context, self.capacity)
        key = hash((context, tokens.tobytes()))
        if key in self._starts and self._starts[key] >= self._written - self.capacity:
            return False
        start = self._make_room(len(tokens) + 1)
        self._starts.pop(key, None)
        self._starts[key] = start
        while next(iter(self._starts.values())) < self._written - self.capacity:
            del self._starts[next(iter(self._starts))]
        at = start % self.capacity + LONGEST_MATCH
        self._tokens[at : at + len(tokens)] = tokens
        self._tokens[at + len(tokens)] = BOUNDARY
        for length in GRAM_LENGTHS:
            self._link(tokens, start, length, np.arange(max(length, context) - 1, len(tokens) - 1))
        return True

    def fill(self, texts: list[tuple[Tokens, int]]) -> None:
        """Take in the last of ``texts`` (tokens and context, oldest first) that fit an empty ring; as if added, but at once."""
        fitting: list[tuple[Tokens, int]] = []
        free = self.capacity
        for tokens, context in reversed([fit(*text, self.capacity) for text in texts]):
            free -= len(tokens) + 1
            if free < 0:
                break
            fitting.append((tokens, context))
        if not fitting:
            return
        fitting.reverse()
        boundary, offset = np.array([BOUNDARY], dtype=np.int32), 0
        block = np.concatenate([piece for tokens, _ in fitting for piece in (tokens, boundary)])
        self._tokens[LONGEST_MATCH : LONGEST_MATCH + len(block)] = block
        ends: dict[int, list[Places]] = {length: [] for length in GRAM_LENGTHS}
        for tokens, context in fitting:
            self._starts[hash((context, tokens.tobytes()))] = offset
            for length, some in ends.items():
                some.append(np.arange(offset + max(length, context) - 1, offset + len(tokens) - 1))
            offset += len(tokens) + 1
        for length, some in ends.items():
            self._link(block, 0, length, np.concatenate(some))
        self._written = len(block)

    def _make_room(self, size: int) -> int:
        """The place where ``size`` tokens fit in one piece."""
        left = self.capacity - self._written % self.capacity
        if size > left:
            self._tokens[self.capacity + LONGEST_MATCH - left :] = BOUNDARY
            self._written += left
        start = self._written
        self._written += size
        return start

    def _link(self, tokens: Tokens, start: int, length: int, ends: Places) -> None:
        """Link the runs of ``length`` tokens that end at the indices ``ends`` of ``tokens``, which lie from place ``start`` on."""
        if not len(ends):
            return
        words = tokens.astype(np.uint64)
        hashes = np.zeros(len(ends), dtype=np.uint64)
        for place in range(length):
            hashes += words[ends - place] * np.uint64(_MULTIPLIERS[place])
        buckets, places = _bucket(hashes, self._bits), start + ends
        # Sorting numbers that hold bucket and order is several times faster than a stable argsort.
        packed = np.sort((buckets << 32) | np.arange(len(buckets)))
        buckets, places = packed >> 32, places[packed & 0xFFFFFFFF]
        latest, previous = self._latest[length], np.empty(len(places), dtype=np.int64)
        same = buckets[1:] == buckets[:-1]
        previous[1:] = places[:-1] + 1
        heads = np.flatnonzero(np.concatenate(([True], ~same)))
        previous[heads] = latest[buckets[heads]]
        self._previous[length][places % self.capacity] = previous
        tails = np.flatnonzero(np.concatenate((~same, [True])))
        latest[buckets[tails]] = places[tails] + 1

    def matches(self, end: list[int]) -> list[Match]:
        """Where ``end``, the last tokens of a sequence, occurred, latest first; at least a run of the shortest gram length."""
        places = sorted({place for length in GRAM_LENGTHS for place in self._candidates(end, length)}, reverse=True)
        if not places:
            return []
        wanted = np.full(LONGEST_MATCH, BOUNDARY - 1, dtype=np.int64)
        last = end[-LONGEST_MATCH:][::-1]
        wanted[: len(last)] = last
        at = np.array(places, dtype=np.int64) % self.capacity + LONGEST_MATCH
        differs = self._tokens[at[:, None] - _BACK] != wanted
        lengths = np.where(differs.any(axis=1), differs.argmax(axis=1), LONGEST_MATCH).tolist()
        found = [(place, length) for place, length in zip(at.tolist(), lengths, strict=True) if length >= GRAM_LENGTHS[-1]]
        return [(self._text, place + 1, length, weight) for (place, length), weight in zip(found, _WEIGHTS, strict=False)]

    def _candidates(self, end: list[int], length: int) -> list[int]:
        """The latest places where a run with the hash of the last ``length`` tokens ended."""
        if len(end) < length:
            return []
        mixed = sum(token * multiplier for token, multiplier in zip(reversed(end[-length:]), _MULTIPLIERS, strict=False)) & _WORD
        latest, previous = self._latest[length], self._previous[length]
        link = int(latest[((mixed ^ (mixed >> 29)) * _MULTIPLIERS[0] & _WORD) >> (64 - self._bits)])
        oldest, newest = max(0, self._written - self.capacity), self._written
        out: list[int] = []
        while len(out) < MOST_MATCHES and oldest < link <= newest:
            newest = link - 1
            out.append(newest)
            link = int(previous[newest % self.capacity])
        return out


def fit(tokens: Tokens, context: int, capacity: int) -> tuple[Tokens, int]:
    """A text and its context cut to its last tokens, a quarter of the capacity at most."""
    excess = max(0, len(tokens) - capacity // 4)
    return tokens[excess:], max(0, context - excess)


def _bucket(hashes: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.int64]:
    mixed = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(_MULTIPLIERS[0])
    return (mixed >> np.uint64(64 - bits)).astype(np.int64)
