"""A fixed text on disk, ordered so that the places where a run of tokens occurred are found by bisection. No torch.

The file holds the tokens and their *places* (indices of tokens that follow at least one other), sorted by what stands before each,
read backwards: a suffix array of the reversed text, as in REST (arXiv:2311.08252) but led by the context's end. So the places that
share the last n tokens lie side by side, those that share n + 1 within them, and n-grams of all orders are counted by one table.

Little-endian int32: ``DEPTH`` boundaries, then texts, a boundary (-1) after each; then the places. It is mapped, not read; whoever
opens it checks every byte once, so that no content can lead a look-up astray.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hasten.core.errors import CorruptModel, VocabularyMismatch
from hasten.core.progress import Progress, silent
from hasten.core.replacement import Replacement
from hasten.draft.matches import BOUNDARY, LONGEST_MATCH, Match

DEPTH = 16  # tokens before a place that decide its order
MOST_PLACES = 32  # looked at in one look-up
MOST_TOKENS = 1 << 24
MAGIC = b"HASTENNG"
VERSION = 2
HEADER = struct.Struct("<8sIIQQI64s")  # magic, version, depth, tokens, places, checksum, vocabulary
DATA_OFFSET = 128

Tokens = npt.NDArray[np.int32]


class NgramDatabase:
    """An open, checked file. Raises CorruptModel for a file that is not whole and sound, VocabularyMismatch for one of another
    vocabulary, and OSError when it cannot be read. Equal databases give equal answers; nothing is learnt."""

    def __init__(self, path: Path, vocabulary: str) -> None:
        tokens, places = _mapped(path, vocabulary)
        self._text, self._places = tokens.data, places.data
        self.size = len(tokens) - DEPTH

    def matches(self, end: list[int], weights: Sequence[list[float]]) -> list[Match]:
        """Up to ``MOST_PLACES`` places where the last tokens of ``end`` occurred, longest first.

        Where more share a context they are taken evenly from all of them, so that their followers are as frequent as in the text.
        """
        ranges = self._ranges(end)
        length = len(ranges)
        found: list[tuple[int, int]] = []
        inner_low = inner_high = 0
        while length > 0 and len(found) < MOST_PLACES:
            low, high = ranges[length - 1]
            free = MOST_PLACES - len(found)
            outer = high - low - (inner_high - inner_low)
            # ``step`` apart, passing over the range that was taken with a longer context.
            step = max(1.0, outer / free)
            for number in range(min(free, outer)):
                at = low + int(number * step)
                entry = at if at < inner_low or inner_low == inner_high else at + inner_high - inner_low
                found.append((-self._length(entry, length, ranges, end), self._places[entry]))
            inner_low, inner_high = low, high
            length = min(length - 1, (length + 1) // 2)
        found.sort()
        return [(self._text, place, -loss, by_length) for (loss, place), by_length in zip(found, weights, strict=False)]

    def _ranges(self, end: list[int]) -> list[tuple[int, int]]:
        """For 1, 2, ... tokens the places that the last so many of ``end`` stand before, as long as there are any: each range lies
        within the one before, sorted by the token that is looked at next."""
        text, places = self._text, self._places
        low, high = 0, len(places)
        ranges: list[tuple[int, int]] = []
        for back in range(1, min(DEPTH, len(end)) + 1):
            before = partial(_token_before, text, back)
            low = bisect_left(places, end[-back], low, high, key=before)
            high = bisect_right(places, end[-back], low, high, key=before)
            if low == high:
                break
            ranges.append((low, high))
        return ranges

    def _length(self, entry: int, length: int, ranges: list[tuple[int, int]], end: list[int]) -> int:
        """How many tokens before a place that is in the range of ``length`` agree with ``end``, up to ``LONGEST_MATCH``."""
        while length < len(ranges) and ranges[length][0] <= entry < ranges[length][1]:
            length += 1
        if length == DEPTH:
            place = self._places[entry]
            most = min(LONGEST_MATCH, len(end), place)
            while length < most and self._text[place - 1 - length] == end[-1 - length]:
                length += 1
        return length


def _token_before(text: memoryview, back: int, place: int) -> int:
    return int(text[place - back])


def build(path: Path, texts: Sequence[Sequence[int] | Tokens], vocabulary: str, progress: Progress = silent) -> int:
    """Write a database of ``texts`` (token ids) to ``path``, replacing it at once or not at all; returns its tokens.

    Tokens over ``MOST_TOKENS`` are left out, the last ones first. Raises ValueError when there is nothing to write or an id is
    negative, OSError when the disk refuses. Takes some 40 bytes of memory a token.
    """
    pieces: list[Tokens] = [np.full(DEPTH, BOUNDARY, dtype=np.int32)]
    boundary = np.array([BOUNDARY], dtype=np.int32)
    room = MOST_TOKENS - DEPTH
    for text in texts:
        if room < 2:
            break
        piece = np.asarray(text[: room - 1], dtype=np.int32)
        if (piece < 0).any():
            raise ValueError("token ids are not negative")
        pieces += [piece, boundary]
        room -= len(piece) + 1
    tokens = np.concatenate(pieces)
    places = _sorted_places(tokens, progress)
    if not len(places):
        raise ValueError("the texts hold no two tokens in a row")
    _write(path, tokens, places, vocabulary)
    return len(tokens) - DEPTH


def _sorted_places(tokens: Tokens, progress: Progress) -> Tokens:
    """Places ordered by the ``DEPTH`` tokens before them: ranks of 1, 2, 4, 8, 16 tokens, each made of two of the last."""
    ranks = _dense(tokens.astype(np.int64))
    length, passes = 1, DEPTH.bit_length() - 1
    for number in range(passes):
        progress("sorting", number, passes)
        shifted = np.zeros_like(ranks)
        shifted[length:] = ranks[:-length]
        ranks = _dense(ranks * (int(ranks.max()) + 1) + shifted)
        length *= 2
    progress("sorting", passes, passes)
    places = np.flatnonzero((tokens[1:] >= 0) & (tokens[:-1] >= 0)) + 1
    return places[np.argsort(ranks[places - 1], kind="stable")].astype(np.int32)


def _dense(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Equal keys become equal small numbers in the same order."""
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _write(path: Path, tokens: Tokens, places: Tokens, vocabulary: str) -> None:
    data = tokens.astype("<i4").tobytes(), places.astype("<i4").tobytes()
    fields = len(tokens), len(places), _name(vocabulary)
    checksum = zlib.crc32(data[1], zlib.crc32(data[0], zlib.crc32(_header(*fields))))
    with Replacement(path, durable=True, private=True) as replacement:
        for part in (_header(*fields, checksum), *data):
            replacement.file.write(part)


def _header(tokens: int, places: int, name: bytes, checksum: int = 0) -> bytes:
    """What a file begins with. The checksum is the CRC-32 of the whole file with 0 in its place."""
    return HEADER.pack(MAGIC, VERSION, DEPTH, tokens, places, checksum, name).ljust(DATA_OFFSET, b"\0")


def _mapped(path: Path, vocabulary: str) -> tuple[Tokens, Tokens]:
    """Tokens and places of a file, every number checked."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(DATA_OFFSET)
    if len(start) < DATA_OFFSET:
        raise CorruptModel(f"{path} is too short to be a draft database; build it again with `hasten draft build`.")
    magic, version, depth, count, places_count, checksum, name = HEADER.unpack_from(start)
    if magic != MAGIC:
        raise CorruptModel(f"{path} is not a draft database; build one with `hasten draft build`.")
    if version != VERSION or depth != DEPTH:
        raise CorruptModel(f"{path} is of another format ({version}); build it again with `hasten draft build`.")
    if not DEPTH < count <= MOST_TOKENS or not 0 < places_count < count or size != DATA_OFFSET + 4 * (count + places_count):
        raise CorruptModel(f"{path} is truncated or its sizes are wrong; build it again with `hasten draft build`.")
    data = np.memmap(path, dtype="<i4", mode="r", offset=DATA_OFFSET, shape=(count + places_count,))
    own = zlib.crc32(data.data, zlib.crc32(_header(count, places_count, name)))
    if own != checksum or start != _header(count, places_count, name, checksum):
        raise CorruptModel(f"{path} is damaged; build it again with `hasten draft build`.")
    if name != _name(vocabulary):
        raise VocabularyMismatch(f"{path} was built for another vocabulary; build it again with `hasten draft build`.")
    tokens, places = np.asarray(data[:count], dtype=np.int32), np.asarray(data[count:], dtype=np.int32)
    sound = tokens.min() >= BOUNDARY and (tokens[:DEPTH] == BOUNDARY).all() and tokens[-1] == BOUNDARY
    if not sound or places.min() <= DEPTH or places.max() >= count:
        raise CorruptModel(f"{path} holds numbers out of range; build it again with `hasten draft build`.")
    return tokens, places


def _name(vocabulary: str) -> bytes:
    return vocabulary.encode("utf-8", "surrogatepass")[:64].ljust(64, b"\0")
