"""Streamed text against the decoding of the whole, over both kinds of vocabulary, ill-formed bytes and stop strings."""

from __future__ import annotations

import codecs
import random
import time
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.text import TextStream
from hasten.model.gguf_tokenizer import tokenizer_from_metadata
from hasten.model.tokenizer import Tokenizer
from vocabularies import HARD, byte_level, sentencepiece

KINDS = ["byte level", "pieces", "pieces with space"]


@cache
def tokenizer(kind: str) -> Tokenizer:
    metadata = byte_level() if kind == "byte level" else sentencepiece(kind == "pieces with space")
    return tokenizer_from_metadata(metadata, "toy.gguf")


class Fake:
    """A vocabulary of given bytes; token 0 is special."""

    special_ids = frozenset({0})

    def __init__(self, pieces: Sequence[bytes], strips_space: bool = False) -> None:
        self.pieces = [b"<special>", *pieces]
        self.strips_space = strips_space

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token]


def whole_characters(vocabulary: Tokenizer, tokens: Sequence[int], continues: bool) -> str:
    """The decoding of a beginning of an answer, less a character at its end that later tokens may complete."""
    data = b"".join(vocabulary.token_bytes(token) for token in tokens if token not in vocabulary.special_ids)
    text = codecs.utf_8_decode(data, "replace", False)[0]
    return text[1:] if vocabulary.strips_space and not continues and text.startswith(" ") else text


def oracle(vocabulary: Tokenizer, tokens: Sequence[int], stops: Sequence[str], continues: bool) -> tuple[str, int, bool]:
    """(text, tokens consumed, stopped) by decoding every beginning from scratch."""
    for count in range(1, len(tokens) + 1):
        text = whole_characters(vocabulary, tokens[:count], continues)
        begins = [at for stop in stops if (at := text.find(stop)) >= 0]
        if begins:
            return text[: min(begins)], count, True
    text = vocabulary.decode(tokens, continues=continues)
    begins = [at for stop in stops if (at := text.find(stop)) >= 0]
    return (text[: min(begins)], len(tokens), True) if begins else (text, len(tokens), False)


def streamed(vocabulary: Tokenizer, tokens: Sequence[int], stops: Sequence[str], continues: bool) -> tuple[str, int, bool]:
    stream = TextStream(vocabulary, stops, continues)
    shown = ""
    for token in tokens:
        piece, stopped = stream.push(token)
        shown += piece
        assert stopped == stream.stopped
        assert not any(stop in shown for stop in stops)
        held = whole_characters(vocabulary, tokens[: stream.consumed], continues)
        assert held.startswith(shown)
        if not stopped:  # nothing is held back but the beginning of a stop string
            rest = held[len(shown) :]
            assert not rest or any(stop.startswith(rest) for stop in stops)
    shown += stream.finish()
    assert stream.finish() == ""
    return shown, stream.consumed, stream.stopped


def random_stops(draw: random.Random, text: str) -> list[str]:
    stops = []
    for _ in range(draw.randrange(4)):
        at = draw.randrange(max(1, len(text)))
        stop = text[at : at + draw.randrange(1, 9)] or "never"
        stops.append(stop + draw.choice(["", "", "!"]) if draw.random() < 0.8 else draw.choice(["aa", "ab", "\ufffd", "x"]))
    return stops


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("continues", [False, True])
def test_random_tokens(kind: str, continues: bool) -> None:
    ours = tokenizer(kind)
    draw = random.Random(4)
    bytes_only = [token for token in range(ours.vocabulary_size) if len(ours.token_bytes(token)) == 1]
    for _ in range(400):
        pool: Sequence[int] = draw.choice([range(ours.vocabulary_size), bytes_only, [*bytes_only, *ours.special_ids]])
        tokens = [draw.choice(pool) for _ in range(draw.randrange(25))]
        stops = random_stops(draw, ours.decode(tokens, continues=continues))
        case = (tokens, stops)
        assert streamed(ours, tokens, stops, continues) == oracle(ours, tokens, stops, continues), case
        assert streamed(ours, tokens, (), continues)[0] == ours.decode(tokens, continues=continues), case


@pytest.mark.parametrize("kind", KINDS)
def test_real_text(kind: str) -> None:
    ours = tokenizer(kind)
    draw = random.Random(5)
    for text in HARD:
        tokens = ours.encode(text, add_bos=True)
        for _ in range(3):
            stops = random_stops(draw, text)
            assert streamed(ours, tokens, stops, False) == oracle(ours, tokens, stops, False), (text, stops)


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.text("ab", min_size=1, max_size=4), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=6), max_size=3),
)
def test_overlapping_stops_in_any_pieces(pieces: list[str], stops: list[str]) -> None:
    stream = TextStream(Fake([piece.encode() for piece in pieces]), stops)
    shown = "".join(stream.push(token)[0] for token in range(1, len(pieces) + 1)) + stream.finish()
    for count in range(len(pieces) + 1):
        text = "".join(pieces[:count])
        begins = [text.find(stop) for stop in stops if stop in text]
        if begins:
            assert (shown, stream.consumed, stream.stopped) == (text[: min(begins)], count, True)
            return
    assert (shown, stream.consumed, stream.stopped) == ("".join(pieces), len(pieces), False)


def test_a_stop_that_begins_again_inside_itself() -> None:
    stream = TextStream(Fake([b"a", b"a", b"b", b"a", b"a", b"c", b"x"]), ["aac"])
    assert [stream.push(token) for token in range(1, 8)] == [
        ("", False), ("", False), ("aab", False), ("", False), ("", False), ("", True), ("", True),
    ]  # fmt: skip
    assert stream.consumed == 6
    assert stream.finish() == ""


def test_the_earliest_stop_of_one_token_wins() -> None:
    stream = TextStream(Fake([b"ab", b"cdefgh"]), ["cd", "bcdef"])
    assert [stream.push(1), stream.push(2)] == [("a", False), ("", True)]


def test_a_character_in_parts_around_a_special_token() -> None:
    stream = TextStream(Fake([b"\xe2", b"\x82", b"\xac!"]))
    assert [stream.push(token) for token in (1, 0, 2, 3)] == [("", False), ("", False), ("", False), ("€!", False)]
    assert stream.consumed == 4


def test_an_unfinished_character() -> None:
    stream = TextStream(Fake([b"a\xf0\x9f"]))
    assert stream.push(1) == ("a", False)
    assert stream.finish() == "\ufffd"
    stream = TextStream(Fake([b"a\xf0\x9f"]), ["a\ufffd"])
    assert stream.push(1) == ("", False)
    assert stream.finish() == ""
    assert stream.stopped


def test_the_leading_space() -> None:
    for continues, expected in ((False, "a b"), (True, " a b")):
        stream = TextStream(Fake([b" a", b" b"], strips_space=True), continues=continues)
        assert "".join(stream.push(token)[0] for token in (0, 1, 2)) + stream.finish() == expected
    stream = TextStream(Fake([b"", b" a"], strips_space=True))
    assert stream.push(1)[0] + stream.push(2)[0] == "a"
    stream = TextStream(Fake([b" ", b" a"], strips_space=True))
    assert stream.push(1)[0] + stream.push(2)[0] == " a"


def test_a_stop_that_begins_with_the_dropped_space_is_not_seen() -> None:
    stream = TextStream(Fake([b" a"], strips_space=True), [" a"])
    assert stream.push(1) == ("a", False)


def test_work_grows_with_the_text_only() -> None:
    def seconds(count: int) -> float:
        stream = TextStream(Fake([b"aaaaaaa", b"b"]), ["a" * 1000 + "c", "ab" * 50])
        begin = time.perf_counter()
        for at in range(count):
            stream.push(1 + at % 2)
        return time.perf_counter() - begin

    seconds(1000)
    few, many = min(seconds(2000) for _ in range(3)), min(seconds(16000) for _ in range(3))
    assert many < 8 * 3 * few
