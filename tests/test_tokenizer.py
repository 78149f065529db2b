"""Tokenizers against SentencePiece itself, transformers, published rules, and hostile files."""

from __future__ import annotations

import json
import math
import random
import re
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from hasten.core.errors import CorruptModel, InvalidRequest, ModelError, UnsupportedModel
from hasten.model.gguf_tokenizer import WORD_RULES
from hasten.model.tokenizer import BYTE_SPELLING
from vocabularies import (
    PROSE,
    Metadata,
    build,
    byte_level,
    gguf,
    hard_texts,
    sentencepiece,
    sentencepiece_model,
    sentencepiece_processor,
)

TOLERANT = pytest.mark.filterwarnings("ignore")  # for code of others


# --- SentencePiece ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adds_space", [True, False])
def test_equals_sentencepiece(adds_space: bool) -> None:
    oracle, ours = sentencepiece_processor(sentencepiece_model(adds_space)), build(sentencepiece(adds_space))
    defined = re.compile(r"  |▁▁|▁ | ▁|<b>|\n")
    for text in (*hard_texts(), *PROSE.splitlines()):
        if adds_space and defined.search(f" {text}"):
            continue  # after a user-defined piece SentencePiece adds no space; llama.cpp and transformers do, and so do we
        ids = ours.encode(text, add_bos=False, allow_special=False)
        assert ids == oracle.encode(text), repr(text)
        assert ours.decode(ids) == text.replace("▁", " "), repr(text)


def test_a_long_text_leaves_other_threads_their_turns() -> None:
    """The lock of the interpreter is let go of meanwhile."""
    tokenizer = build(byte_level())
    text, done = "one two three " * 150_000, threading.Event()

    def work() -> None:
        tokenizer.encode(text, add_bos=False)
        tokenizer.encode(text, add_bos=False, allow_special=False)
        tokenizer.encode_marked(text)
        done.set()

    worker = threading.Thread(target=work)
    longest = 0.0
    worker.start()
    began = last = time.perf_counter()
    while not done.is_set():
        time.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    worker.join()
    took = time.perf_counter() - began
    assert longest < took / 6, f"{longest:.2f} s of {took:.2f} s without a turn"


def test_scores_decide_and_not_ids() -> None:
    metadata = sentencepiece(False)
    keys = [f"tokenizer.ggml.{key}" for key in ("tokens", "scores", "token_type")]
    rows = list(zip(*(metadata[key] for key in keys), strict=True))
    fixed, movable = rows[:259], rows[259:]
    random.Random(6).shuffle(movable)
    for key, column in zip(keys, zip(*fixed, *movable, strict=True), strict=True):
        metadata[key] = list(column)
    oracle, ours = sentencepiece_processor(sentencepiece_model(False)), build(metadata)
    draw = random.Random(7)
    for text in (draw.choice(PROSE.split()) + draw.choice(PROSE.split()) for _ in range(500)):
        spelled = [rows[token][0] for token in oracle.encode(text)]
        assert [metadata[keys[0]][token] for token in ours.encode(text, add_bos=False, allow_special=False)] == spelled


def test_merges_are_in_published_order() -> None:
    published = pytest.importorskip("transformers.convert_slow_tokenizer").generate_merges
    metadata = sentencepiece(True)
    tokens, scores, kinds = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    normal = {text: score for text, score, kind in zip(tokens, scores, kinds, strict=True) if kind == 1}
    expected = published({text: tokens.index(text) for text in normal}, normal)
    model = json.loads(build(metadata)._backend.to_str())["model"]
    assert [tuple(pair) for pair in model["merges"]] == [tuple(pair) for pair in expected]


def test_a_piece_is_not_joined_across_a_user_defined_one() -> None:
    ours = build(sentencepiece(False))
    assert [ours.token_text(token) for token in ours.encode("      x", add_bos=False)] == ["    ", "  ", "x"]
    assert ours.token_text(ours.encode("<b>", add_bos=False)[0]) == "<b>"


def test_byte_fallback_and_literal_byte_names() -> None:
    ours = build(sentencepiece(True))
    ids = ours.encode("🎉", add_bos=False)
    assert [ours.token_bytes(token) for token in ids] == [b" ", b"\xf0", b"\x9f", b"\x8e", b"\x89"]
    assert ours.decode(ids) == "🎉"
    assert len(ours.encode("<0x0A>", add_bos=False)) > 1
    assert ours.decode(ours.encode("<0x0A>", add_bos=False)) == "<0x0A>"


def test_the_space_in_front() -> None:
    ours = build(sentencepiece(True))
    ids = ours.encode("the dog", add_bos=False)
    assert ours.decode(ids) == "the dog"
    assert ours.decode(ids, continues=True) == " the dog"
    assert ours.decode(ours.encode(" the dog", add_bos=False)) == " the dog"
    assert ours.encode("<s>the dog", add_bos=False) == [1, *ids]
    assert build(sentencepiece(False)).encode("the dog", add_bos=False) != ids


# --- rules for cutting words ------------------------------------------------------------------------------------------

TEXT = "I'LL pay 12345 for  HTMLParser\n\n  x²!"
CUTS = {
    "gpt-2": ["I", "'", "LL", " pay", " 12345", " for", " ", " HTMLParser", "\n\n ", " x", "²", "!"],
    "smollm": ["I", "'", "LL", " pay", " ", "1", "2", "3", "4", "5", " for", " ", " HTMLParser", "\n\n ", " x", "²", "!"],
    "qwen2": ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " for", " ", " HTMLParser", "\n\n", " ", " x", "²", "!"],
    "llama-bpe": ["I", "'LL", " pay", " ", "123", "45", " for", " ", " HTMLParser", "\n\n", " ", " x", "²", "!"],
    "tekken": ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " for", " ", " HTMLParser", "\n\n", " ", " x", "²", "!"],
    "default": ["I", "'", "LL", " pay", " ", "123", "45", " for", " ", " HTMLParser", "\n\n ", " x", "²", "!"],
}


def words(rule: str, text: str) -> list[str]:
    cut = WORD_RULES[rule].words().pre_tokenize_str(text)
    return [bytes(BYTE_SPELLING[character] for character in word).decode() for word, _ in cut]


@pytest.mark.parametrize("rule", CUTS)
def test_words(rule: str) -> None:
    assert words(rule, TEXT) == CUTS[rule]


def test_tekken_cuts_at_capitals() -> None:
    assert words("tekken", "camelCase HTMLParser/x/\n") == ["camel", "Case", " HTMLParser", "/x", "/\n"]


@pytest.mark.parametrize("rule", ["llama-bpe", "tekken", "qwen2", "deepseek-r1-qwen"])
def test_words_equal_published_rules(rule: str) -> None:
    published = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping").GGUF_PRE_TOKENIZER_SPLITS
    regex = pytest.importorskip("regex")
    pattern = regex.compile(published[rule])
    for text in hard_texts():
        if text.isascii():  # the two engines know different versions of Unicode
            assert words(rule, text) == [match[0] for match in pattern.finditer(text)], repr(text)


def test_default_rule_is_its_four_patterns_in_turn() -> None:
    regex = pytest.importorskip("regex")
    for text in hard_texts():
        parts = [text]
        for pattern in WORD_RULES["default"].splits:
            splitter = regex.compile(f"({pattern})")
            parts = [part for whole in parts for part in splitter.split(whole) if part]
        if text.isascii():
            assert words("default", text) == parts, repr(text)


@pytest.mark.parametrize("rule", WORD_RULES)
def test_byte_level_round_trip(rule: str) -> None:
    ours = build(byte_level(rule))
    nfc = normalizers.NFC()
    for text in hard_texts():
        plain = nfc.normalize_str(text) if WORD_RULES[rule].nfc else text
        for allow in (True, False):
            assert ours.decode(ours.encode(text, add_bos=False, allow_special=allow), skip_special=False) == plain


def test_whole_words_skip_the_merges() -> None:
    tokens = [*BYTE_SPELLING, "ab", "bc", "abc"]
    made = gguf(model="gpt2", tokens=tokens, token_type=[1] * len(tokens), merges=["b c", "a b"], bos_token_id=0)
    assert build(made | gguf(pre="llama-bpe")).encode("abc", add_bos=False) == [258]
    assert build(made | gguf(pre="gpt-2")).encode("abc", add_bos=False) == [tokens.index("a"), 257]


# --- special tokens, ends ---------------------------------------------------------------------------------------------


def test_special_tokens() -> None:
    ours = build(byte_level())
    begin, end = ours.bos_token_id, ours.eos_token_ids[0]
    assert begin is not None
    text = "<|begin|>dog<|im_end|>"
    ids = ours.encode(text, add_bos=False)
    assert (ids[0], ids[-1]) == (begin, end)
    assert begin not in ids[1:]
    assert not {begin, end} & set(ours.encode(text, add_bos=False, allow_special=False))
    assert ours.special_ids == {begin, end}
    assert ours.decode(ours.encode(text, add_bos=False)) == "dog"
    assert ours.decode(ours.encode(text, add_bos=False), skip_special=False) == text
    assert ours.token_bytes(begin) == b"<|begin|>"


def test_user_defined_tokens_are_whole_even_in_plain_text() -> None:
    ours = build(byte_level())
    token = ours.vocabulary_size - 2
    for allow in (True, False):
        assert ours.encode("<toolé>", add_bos=False, allow_special=allow) == [token]
    assert ours.token_text(token) == "<toolé>"  # not read in the byte alphabet, which has é, too
    assert token not in ours.special_ids


def test_what_is_put_around_a_prompt() -> None:
    bos, eos = build(byte_level()).bos_token_id, build(byte_level()).eos_token_ids[0]
    assert bos is not None
    cases: list[tuple[Metadata, list[int], list[int]]] = [
        (byte_level(), [], []),
        (byte_level("llama-bpe"), [bos], []),
        (byte_level("llama-bpe", add_bos_token=False), [], []),
        (byte_level(add_bos_token=True, add_eos_token=True), [bos], [eos]),
        (sentencepiece(True), [1], []),
        (sentencepiece(True, add_bos_token=False, add_eos_token=True), [], [2]),
    ]
    for metadata, prefix, suffix in cases:
        ours = build(metadata)
        assert ours.encode("dog", add_bos=True) == [*prefix, *ours.encode("dog", add_bos=False), *suffix]
        assert ours.encode("", add_bos=True) == [*prefix, *suffix]


def test_turn_ends_end_an_answer() -> None:
    ours = build(byte_level(eos_token_id=0))
    assert ours.eos_token_ids == (0, ours.vocabulary_size - 3)
    assert build(byte_level(eos_token_id=0, eot_token_id=3, eom_token_id=4)).eos_token_ids == (0, 3, 4, ours.vocabulary_size - 3)
    assert 0 in ours.special_ids


def test_tokens_without_text() -> None:
    ours = build(byte_level())
    size = ours.vocabulary_size
    assert ours.decode([size - 1, size, size + 5, -1]) == ""
    assert ours.decode([2**32 - 1, 2**32, 2**70]) == ""


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        build(byte_level()).encode("a\ud83d", add_bos=False)


def test_decoding_ill_formed_bytes() -> None:
    ours = build(byte_level())
    ids = {byte: token for token in range(256) for byte in ours.token_bytes(token)}
    draw = random.Random(1)
    for _ in range(500):
        data = bytes(draw.choice([*range(256), *b"\xe2\x82\xac\xf0\x9f\x8e\x89"]) for _ in range(draw.randrange(12)))
        assert ours.decode(ids[byte] for byte in data) == data.decode("utf-8", "replace")


def test_threads_do_not_share_the_switch() -> None:
    ours = build(byte_level())
    text = "<|im_end|>" * 20
    special, plain = (ours.encode(text, add_bos=False, allow_special=allow) for allow in (True, False))
    wrong: list[int] = []

    def work(allow: bool, expected: list[int]) -> None:
        for _ in range(2000):
            if ours.encode(text, add_bos=False, allow_special=allow) != expected:
                wrong.append(1)

    threads = [threading.Thread(target=work, args=case) for case in ((True, special), (False, plain)) * 2]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_fingerprints() -> None:
    plain, padded, other = byte_level(), byte_level(), byte_level()
    padded["tokenizer.ggml.tokens"] = [*padded["tokenizer.ggml.tokens"], "[PAD8]"]
    padded["tokenizer.ggml.token_type"] = [*padded["tokenizer.ggml.token_type"], 5]
    swapped = list(other["tokenizer.ggml.tokens"])
    swapped[300], swapped[301] = swapped[301], swapped[300]
    other["tokenizer.ggml.tokens"] = swapped
    prints = [build(metadata).vocabulary_fingerprint for metadata in (plain, padded, other)]
    assert prints[0] == prints[1] != prints[2]
    assert re.fullmatch("[0-9a-f]{64}", prints[0])


# --- hostile metadata -------------------------------------------------------------------------------------------------

CORRUPT: list[tuple[str, Metadata]] = [
    ("no kind", gguf(model=None)),
    ("kind is no text", gguf(model=3)),
    ("no tokens", gguf(tokens=None)),
    ("tokens are no list", gguf(tokens="abc")),
    ("no tokens at all", gguf(tokens=[], token_type=[])),
    ("a token is no text", gguf(tokens=["a", 3], token_type=[1, 1])),
    ("a token twice", gguf(tokens=["a", "a"], token_type=[1, 1], merges=[], bos_token_id=0, eos_token_id=0)),
    ("an empty token", gguf(tokens=["a", ""], token_type=[1, 1], merges=[], bos_token_id=0, eos_token_id=0)),
    ("a token is not UTF-8", gguf(tokens=["a", "\udcff"], token_type=[1, 1], merges=[], bos_token_id=0, eos_token_id=0)),
    ("types are too few", gguf(token_type=[1])),
    ("types are no numbers", gguf(token_type=["a"])),
    ("a type is unknown", gguf(tokens=["a"], token_type=[9], merges=[], bos_token_id=0, eos_token_id=0)),
    ("no merges", gguf(merges=None)),
    ("a merge of one part", gguf(merges=["a"])),
    ("a merge of three parts", gguf(merges=["a b c"])),
    ("a merge of unknown parts", gguf(merges=["zzz yyy"])),
    ("a merge into nothing known", gguf(merges=["~ ~"])),
    ("begin is out of range", gguf(bos_token_id=10**6)),
    ("begin is negative", gguf(bos_token_id=-1)),
    ("end is a flag", gguf(eos_token_id=True)),
    ("a flag is a number", gguf(add_bos_token=1)),
    ("begin is asked for and not named", gguf(add_bos_token=True, bos_token_id=None)),
    ("the template is a number", {"tokenizer.chat_template": 4}),
]


@pytest.mark.parametrize(("what", "change"), CORRUPT, ids=[what for what, _ in CORRUPT])
def test_corrupt_metadata(what: str, change: Metadata) -> None:
    metadata = {key: value for key, value in (byte_level() | change).items() if value is not None}
    with pytest.raises(CorruptModel, match=r"^toy.gguf has a malformed tokenizer: .*\.$"):
        build(metadata)


@pytest.mark.parametrize("scores", [None, [], [math.nan] * 520, [math.inf] * 520, ["a"] * 520, [0.0] * 519])
def test_corrupt_scores(scores: Any) -> None:
    metadata = sentencepiece(True) | gguf(scores=scores)
    with pytest.raises(CorruptModel):
        build({key: value for key, value in metadata.items() if value is not None})


@pytest.mark.parametrize(
    "change",
    [gguf(model="t5"), gguf(pre="poro-chat"), gguf(pre=None), gguf(model="llama", remove_extra_whitespaces=True, scores=[])],
)
def test_unsupported_metadata(change: Metadata) -> None:
    with pytest.raises(UnsupportedModel, match=r"^toy.gguf has|^toy.gguf cuts|^toy.gguf is an old conversion"):
        build(byte_level() | change)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 2**70), st.floats(), st.text(max_size=4), st.lists(st.integers(), max_size=3)
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_metadata_gives_a_tokenizer_or_one_sentence(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["byte", "pieces"]))
    metadata = dict(byte_level() if kind == "byte" else sentencepiece(True))
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(metadata)))
        value = metadata[key]
        if isinstance(value, list) and value and data.draw(st.booleans()):
            changed = list(value)
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(JUNK)
            metadata[key] = changed
        else:
            metadata[key] = data.draw(JUNK)
    try:
        ours = build(metadata)
    except ModelError:
        return
    ours.decode(ours.encode("the dog 🎉<|im_end|>\x00", add_bos=True))
