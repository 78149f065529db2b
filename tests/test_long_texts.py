"""Texts longer than a model can take: given up after little work, or read in pieces with the tokens of the whole."""

from __future__ import annotations

import pytest

from hasten.core.errors import PromptTooLong
from hasten.model import long_texts
from hasten.model.gguf_tokenizer import WORD_RULES
from hasten.model.long_texts import PIECE, TooManyTokens, bounded, read_within_bounds
from hasten.model.tokenizer import Tokenizer
from vocabularies import HARD, PROSE, build, byte_level, real_tokenizer, sentencepiece

LONG = (PROSE + " ".join(text for text in HARD if 0 < len(text.strip()) < 60) + "\n7 7 7 7 " * 40) * 4


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "PIECE", 400)
    monkeypatch.setattr(long_texts, "SEARCHED", 300)


class Reads:
    """A reader that makes a token of each ``characters``, and what it was given."""

    def __init__(self, characters: int) -> None:
        self.characters = characters
        self.lengths: list[int] = []

    def __call__(self, text: str) -> list[int]:
        self.lengths.append(len(text))
        return [7] * -(-len(text) // self.characters)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "qwen2", "llama-bpe", "tekken", "default"])
def test_pieces_have_the_tokens_of_the_whole(rule: str) -> None:
    assert rule in WORD_RULES
    check_pieces(build(byte_level(rule)))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("adds_space", [True, False])
def test_pieces_of_sentencepiece_have_the_tokens_of_the_whole(adds_space: bool) -> None:
    check_pieces(build(sentencepiece(adds_space)))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b", "gemma-3-270m"])
def test_pieces_of_real_vocabularies_have_the_tokens_of_the_whole(name: str) -> None:
    check_pieces(real_tokenizer(name))


def check_pieces(tokenizer: Tokenizer) -> None:
    plain, marked = tokenizer.encode(LONG, add_bos=True), tokenizer.encode_marked(LONG)
    with bounded(20, refuse=False):
        assert tokenizer.encode(LONG, add_bos=True) == plain
        assert tokenizer.encode_marked(LONG) == marked
    with bounded(len(plain)):
        assert tokenizer.encode(LONG, add_bos=True) == plain
    with bounded(20):
        for encode in (lambda: tokenizer.encode(LONG, add_bos=True), lambda: tokenizer.encode_marked(LONG)):
            with pytest.raises(TooManyTokens) as caught:
                encode()
            assert 20 < caught.value.count <= len(plain)
    assert tokenizer.encode(LONG, add_bos=True) == plain, "a bound ends with its block"


def test_a_text_is_given_up_after_little_work() -> None:
    read = Reads(1)
    with bounded(5000), pytest.raises(PromptTooLong, match="more than") as caught:
        read_within_bounds("7 " * (2 << 20), read)
    assert sum(read.lengths) < 2 * PIECE
    assert isinstance(caught.value, TooManyTokens)
    assert 5000 < caught.value.count < PIECE


def test_no_more_than_a_piece_is_read_at_once_of_what_does_not_fit() -> None:
    read = Reads(2)
    text = "7 " * (PIECE * 4)
    with bounded(5000, refuse=False):
        found = read_within_bounds(text, read)
    assert max(read.lengths) <= PIECE
    assert len(found) == pytest.approx(len(text) / 2, abs=10)


@pytest.mark.parametrize("refuse", [True, False])
def test_what_fits_is_read_whole_however_long_it_is(refuse: bool) -> None:
    """Also where every cut makes it longer than it is."""
    read = Reads(PIECE * 8)
    text = "x" * (PIECE * 8)
    with bounded(2, refuse=refuse):
        assert read_within_bounds(text, read) == [7]
    assert read.lengths[-1] == len(text)


def test_whoever_wants_it_no_more_ends_it_between_two_pieces() -> None:
    read, left = Reads(1000), iter([None, None])

    def between() -> None:
        if next(left, "over") == "over":
            raise InterruptedError

    with bounded(1 << 20, between=between), pytest.raises(InterruptedError):
        read_within_bounds("x " * (PIECE * 4), read)
    assert sum(length > 1000 for length in read.lengths) == 2
