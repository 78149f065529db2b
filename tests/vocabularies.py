"""Small vocabularies in the form of GGUF metadata, and text that is hard on tokenizers."""

from __future__ import annotations

import io
import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from hasten.model.gguf_tokenizer import tokenizer_from_metadata
from hasten.model.storage import catalogue_path
from hasten.model.tokenizer import Tokenizer, load_tokenizer

Metadata = dict[str, Any]

PROSE = """The quick brown fox jumps over the lazy dog. It wasn't the dog's fault, they'd said; we'll see, I'm sure.
In 1999 there were 12345 foxes and 678 dogs; 3.14159 is not a number of dogs.  Two  spaces   three    four.
def fibonacci(number):
    if number < 2:
        return number
    return fibonacci(number - 1) + fibonacci(number - 2)

	tabs	and	tabs
Die schöne Müllerin, façade, naïve, Ærøskøbing, 日本語のテキスト, 中文字符, 한국어 텍스트, русский текст, ελληνικά.
"""

HARD = [
    "", "a", " ", "  ", "\n", "\t", " \n ", "\n\n\n x", "a  b   c    d", " lead", "trail ", "don't DON'T I'LL we've 'S 'ſ",
    "x = [1, 22, 333, 4444]  # 12345678", "日本語のテキストです。", "中文字符测试，标点！", "한국어", "العربية", "हिन्दी में",
    "🎉👨‍👩‍👧‍👦🏳️‍🌈", "e\u0301 vs \u00e9 ﬁ \u212b", "\u00a0nbsp\u2003em\u200bzw", "\r\n win \r\n",
    "<|im_start|>user\nhi<|im_end|>",
    "<bos><eos><unk><pad>", "<s>hi</s>", "<0x0A> <0xFF>", "▁▁ x▁y", "<b>bold</b> <tool_call>", "[PAD151665]", "\x00\x01\x7f",
    "١٢٣ ½ Ⅷ ²", "a" * 300, *(" " * count + "x" for count in (31, 32, 33, 64)), " " * 100, "\n" * 40, "\t" * 40,
    "!!??...---===",
    "    30\n   4", "camelCase HTMLParser XMLHttp", "def f(x):\n\treturn x**2\n\n\nclass A:\n    pass\n",
]  # fmt: skip


@cache
def hard_texts(count: int = 1500) -> tuple[str, ...]:
    """``HARD`` and seeded mixtures of scripts, spaces, digits, marks and pieces of special tokens."""
    draw = random.Random(0)
    pools = ["abcXYZ 019'.,\n\t ", "áéñ漢字かな한글🎉👍 \u0301\u200d", " <|>imstartend_/b0x▁▁"]
    mixed = ["".join(draw.choice(draw.choice(pools)) for _ in range(draw.randrange(1, 40))) for _ in range(count)]
    ranges = [(0x20, 0x3000), (0x20, 0xD800), (0xE000, 0x20000)]
    wild = ["".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(1, 12))) for _ in range(count // 3)]
    return (*HARD, *mixed, *wild)


def gguf(**keys: Any) -> Metadata:
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


@cache
def _trained_byte_level() -> tuple[tuple[str, ...], tuple[str, ...]]:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([PROSE], trainer)
    vocabulary = backend.get_vocab()
    merges = [" ".join(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    return tuple(sorted(vocabulary, key=lambda text: vocabulary[text])), tuple(merges)


def byte_level(pre: str = "gpt-2", **keys: Any) -> Metadata:
    """A trained byte-level vocabulary with control tokens at its end, a user-defined one, and one that fills up."""
    tokens, merges = _trained_byte_level()
    extra = ["<|begin|>", "<|im_end|>", "<toolé>", "[PAD7]"]
    made = gguf(
        model="gpt2",
        pre=pre,
        tokens=[*tokens, *extra],
        token_type=[1] * len(tokens) + [3, 3, 4, 5],
        merges=list(merges),
        bos_token_id=len(tokens),
        eos_token_id=len(tokens) + 1,
    )
    return made | gguf(**keys)


@cache
def sentencepiece_model(adds_space: bool) -> bytes:
    """A trained SentencePiece BPE model with byte fallback and user-defined pieces."""
    spm = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.splitlines()),
        model_writer=out,
        model_type="bpe",
        vocab_size=520,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=adds_space,
        user_defined_symbols=["\u2581\u2581", "\u2581\u2581\u2581\u2581", "<b>", "\n"],
        minloglevel=2,
    )
    return out.getvalue()


def sentencepiece(adds_space: bool, **keys: Any) -> Metadata:
    """That model as a converter writes it to GGUF: user-defined pieces with real spaces and a low score."""
    spm = pytest.importorskip("sentencepiece")
    model = spm.SentencePieceProcessor(model_proto=sentencepiece_model(adds_space))
    ids = range(model.get_piece_size())
    kinds = [2 if model.is_unknown(token) else 3 if model.is_control(token) else 6 if model.is_byte(token) else 1 for token in ids]
    tokens, scores = [model.id_to_piece(token) for token in ids], [model.get_score(token) for token in ids]
    for defined in ("\u2581\u2581", "\u2581\u2581\u2581\u2581", "<b>", "\n"):
        at = tokens.index(defined)
        tokens[at], scores[at], kinds[at] = defined.replace("\u2581", " "), -1000.0, 4
    made = gguf(
        model="llama",
        tokens=tokens,
        scores=scores,
        token_type=kinds,
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
        add_space_prefix=adds_space,
    )
    return made | gguf(**keys)


def build(metadata: Metadata) -> Tokenizer:
    return tokenizer_from_metadata(metadata, "toy.gguf")


def sentencepiece_processor(model: bytes) -> Any:
    return pytest.importorskip("sentencepiece").SentencePieceProcessor(model_proto=model)


def real_model(name: str) -> Path:
    """A catalogue model on this disk, or a skipped test."""
    path = catalogue_path(name)
    if not path.is_file():
        pytest.skip(f"{name} is not on this disk; fetch it with: hasten pull {name}")
    return path


@cache
def real_tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(real_model(name))


def data_folder() -> Path:
    """Published prompts and texts for long comparisons, or a skipped test."""
    chosen = os.environ.get("HASTEN_SHARED_DATA")
    folder = Path(chosen) if chosen else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("there is no data folder; set HASTEN_SHARED_DATA")
    return folder
