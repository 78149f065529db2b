"""Which ids a draft model computes: chosen, kept in a file, and hostile files."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from hasten.draft.trim import (
    DEFAULT_SIZE,
    FORMAT,
    TrimmedVocabulary,
    choose_trim,
    count_tokens,
    load,
    save,
    trim_head,
    trimmed,
)
from hasten.model.precision import FP64
from hasten.model.weights import load_decoder
from test_trim import SOME
from tiny import CPU, DESCRIPTIONS, LetterTokenizer, RandomSource


class Words:
    """A vocabulary of numbered words."""

    vocabulary_fingerprint = "words"

    def __init__(self, size: int, byte_level: bool = True, special: tuple[int, ...] = (), eos: tuple[int, ...] = ()) -> None:
        self.vocabulary_size, self.byte_level = size, byte_level
        self.special_ids, self.eos_token_ids = frozenset(special), eos

    def token_bytes(self, token: int) -> bytes:
        return f"word{token}".encode() if token < self.vocabulary_size - 10 else "aé☃"[token % 3].encode()


# ---- which ids


def test_the_most_counted_are_kept_then_the_lowest() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 7, 50, 99, 100, 5000):
        counts = rng.integers(0, 4, 100) * (rng.random(100) < 0.3)
        found = trimmed(Words(100, special=(98,), eos=(97, 500)), size, counts).ids
        order = sorted(range(100), key=lambda token: (-counts[token], token))
        assert found.tolist() == sorted({*order[:size], 97, 98})
        assert found.dtype == np.int64


def test_letters_of_a_sentencepiece_vocabulary_rank_before_words() -> None:
    words = Words(100, byte_level=False)
    letters = {token for token in range(90, 100) if token % 3 != 2}  # the snowman has three bytes
    assert {*trimmed(words, 20).ids.tolist()} == letters | {*range(20 - len(letters))}
    assert trimmed(Words(100), 20).ids.tolist() == list(range(20))


def test_counting() -> None:
    assert count_tokens([[1, 1, 4], [], [4, 9, -1, 10**9]], 5).tolist() == [0, 2, 0, 0, 2]


def test_the_default_keeps_the_lowest_of_a_large_vocabulary(tmp_path: Path) -> None:
    assert choose_trim("d", Words(2 * DEFAULT_SIZE - 1), tmp_path / "none") is None
    found = choose_trim("d", Words(2 * DEFAULT_SIZE, special=(40000,)), tmp_path / "none")
    assert found is not None
    assert found.ids.tolist() == [*range(DEFAULT_SIZE), 40000]


# ---- the file


def test_a_choice_comes_back(tmp_path: Path) -> None:
    path, words = tmp_path / "deep" / "trim.json", Words(100, special=(3,))
    assert load(path, "draft", words) is None
    save(trimmed(words, 10, counted="a test"), path, "draft", words)
    found = load(path, "draft", words)
    assert found is not None
    assert (found.ids.tolist(), found.counted) == (list(range(10)), "a test")
    assert [entry.name for entry in path.parent.iterdir()] == ["trim.json"]


def test_a_choice_of_everything_is_no_trim(tmp_path: Path) -> None:
    words = Words(3 * DEFAULT_SIZE)
    save(trimmed(words, words.vocabulary_size), tmp_path / "trim.json", "draft", words)
    assert choose_trim("draft", words, tmp_path / "trim.json") is None


def content(**changes: object) -> bytes:
    good = {"format": FORMAT, "draft": "draft", "vocabulary": "words", "counted": "x", "size": 3, "ids": [1, 5, 7]}
    return json.dumps({**good, **changes}).encode()


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "not json": b"{",
    "not utf-8": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "format": content(format="hasten-trim-0"),
    "draft": content(draft="other"),
    "vocabulary": content(vocabulary=None),
    "counted": content(counted=7),
    "no ids": content(ids=[], size=0),
    "size": content(size=4),
    "text ids": content(ids=["1", "5", "7"]),
    "true": content(ids=[True, 5, 7]),
    "fractions": content(ids=[1.0, 5, 7]),
    "nested": content(ids=[[1], [5], [7]]),
    "negative": content(ids=[-1, 5, 7]),
    "beyond": content(ids=[1, 5, 100]),
    "huge": content(ids=[1, 5, 10**400]),
    "repeated": content(ids=[1, 5, 5]),
    "descending": content(ids=[7, 5, 1]),
    "a hidden large one": content(ids=[1, 10**9, 7]),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_set_aside_with_one_warning(data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trim.json"
    path.write_bytes(data)
    assert choose_trim("draft", Words(100), path) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert not path.exists()
    assert path.with_suffix(".damaged").read_bytes() == data
    assert load(path, "draft", Words(100)) is None
    assert len(caplog.records) == 1


def test_a_file_without_special_ids_gets_them(tmp_path: Path) -> None:
    (tmp_path / "trim.json").write_bytes(content())
    found = load(tmp_path / "trim.json", "draft", Words(100, special=(50,), eos=(2,)))
    assert found is not None
    assert found.ids.tolist() == [1, 2, 5, 7, 50]


def test_a_file_that_is_a_folder_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "trim.json").mkdir()
    assert load(tmp_path / "trim.json", "draft", Words(100)) is None
    assert len(caplog.records) == 1


def test_the_head_of_a_draft_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    source, letters = RandomSource(DESCRIPTIONS["llama3"]), LetterTokenizer()
    letters.byte_level = True  # type: ignore[attr-defined]
    decoder = load_decoder(source, FP64, CPU, None)
    assert trim_head(source, decoder, None, letters) is None  # type: ignore[arg-type]
    from hasten.model import storage

    path = storage.trim_path(source.fingerprint, letters.vocabulary_fingerprint)
    save(TrimmedVocabulary(SOME, "a test"), path, source.fingerprint, letters)  # type: ignore[arg-type]
    head = trim_head(source, decoder, None, letters)  # type: ignore[arg-type]
    assert head is not None
    assert head.ids.tolist() == SOME.tolist()
