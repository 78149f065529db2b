"""A tokenizer from the metadata of a GGUF file, which is taken to be hostile: types, lengths and ids are checked first.

Two kinds are read. ``gpt2`` is byte-level BPE: the file lists the merges, and names the rule that cuts text into words
before them. ``llama`` is SentencePiece BPE (Kudo and Richardson 2018, 1808.06226): the file has a score a piece, and the
adjacent pair whose union scores highest is joined first; merges are recovered from that. Pieces that users defined are cut
out of the text first, longest match from the left, as SentencePiece does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Never, TypeVar

from tokenizers import AddedToken, Regex
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Normalizer, Prepend, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from hasten.core.errors import CorruptModel, UnsupportedModel
from hasten.model.tokenizer import SPACE_MARK, Tokenizer

__all__ = ["tokenizer_from_metadata"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Instruction models end a turn with a token of their own, and GGUF has room for one end token only.
TURN_ENDS = frozenset(
    ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")
)

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
MODERN_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES
)


@dataclass(frozen=True, slots=True)
class WordRule:
    """How byte-level BPE cuts text into words: split by each regular expression in turn (none: GPT-2's own rule), digits
    one by one first where asked. ``whole_words`` takes a word that is itself a token without asking the merges."""

    splits: tuple[str, ...] = ()
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    adds_bos: bool = False

    def words(self) -> PreTokenizer:
        steps: list[PreTokenizer] = [Digits(individual_digits=True)] if self.digits else []
        steps += [Split(Regex(split), behavior="isolated") for split in self.splits]
        return Steps([*steps, ByteLevel(add_prefix_space=False, use_regex=not self.splits)])


LLAMA3 = WordRule((MODERN_WORDS.replace("DIGITS", "3"),), whole_words=True, adds_bos=True)
QWEN = MODERN_WORDS.replace("{1,DIGITS}", "")

WORD_RULES: Mapping[str, WordRule] = {
    "gpt-2": WordRule(),
    "smollm": WordRule(digits=True),
    "starcoder": WordRule(digits=True),
    "refact": WordRule(digits=True),
    "qwen2": WordRule((QWEN,), nfc=True),
    "deepseek-r1-qwen": WordRule((QWEN,)),
    "llama-bpe": LLAMA3,
    "smaug-bpe": WordRule(LLAMA3.splits, whole_words=True),
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "tekken": WordRule((TEKKEN_WORDS,), whole_words=True, adds_bos=True),
    "default": WordRule((r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]")),
}


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The checked vocabulary of a file: the spelling and the type of every id."""

    spelled: list[str]
    types: list[int]

    def of_type(self, *types: int) -> list[int]:
        return [token for token, kind in enumerate(self.types) if kind in types]


def tokenizer_from_metadata(metadata: Mapping[str, Any], name: str) -> Tokenizer:
    """Build the tokenizer; ``name`` is how errors call the file.

    Raises CorruptModel (malformed or hostile) or UnsupportedModel (a kind that Hasten does not read).
    """
    reader = _Reader(metadata, name)
    kind = reader.text("model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModel(f"{name} has a tokenizer of the kind {kind!r:.60}; Hasten reads 'gpt2' and 'llama'.")
    adds_space = kind == "llama" and reader.flag("add_space_prefix", True)
    marks = {SPACE_MARK: " "} if adds_space else {" ": SPACE_MARK}
    pieces = reader.pieces(marks if kind == "llama" else {})
    if kind == "gpt2":
        rule = reader.word_rule()
        backend, adds_bos = _byte_level_backend(reader, pieces, rule), rule.adds_bos
    else:
        backend, adds_bos = _sentencepiece_backend(reader, pieces, adds_space), True
    bos, eos = reader.token("bos_token_id"), reader.token("eos_token_id")
    ends = [eos, reader.token("eot_token_id"), reader.token("eom_token_id")]
    ends += [token for token in pieces.of_type(CONTROL) if pieces.spelled[token] in TURN_ENDS]
    eos_ids = tuple(dict.fromkeys(token for token in ends if token is not None))
    adds_bos, adds_eos = reader.flag("add_bos_token", adds_bos), reader.flag("add_eos_token", False)
    if (adds_bos and bos is None) or (adds_eos and eos is None):
        reader.corrupt("it asks for a begin or end token to be added and does not say which")
    return Tokenizer(
        backend,
        byte_level=kind == "gpt2",
        strips_space=adds_space,
        special_ids={*pieces.of_type(CONTROL, UNKNOWN), *eos_ids, *(() if bos is None else (bos,))},
        silent_ids=pieces.of_type(UNUSED),
        prefix_ids=(bos,) if adds_bos and bos is not None else (),
        suffix_ids=(eos,) if adds_eos and eos is not None else (),
        bos_token_id=bos,
        eos_token_ids=eos_ids,
        chat_template=reader.chat_template(),
    )


def _byte_level_backend(reader: _Reader, pieces: _Pieces, rule: WordRule) -> Backend:
    vocabulary = {text: token for token, text in enumerate(pieces.spelled)}
    merges: list[tuple[str, str]] = []
    for at, merge in enumerate(reader.strings("merges")):
        left, _, right = merge.partition(" ")
        if not left or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            reader.corrupt(f"merge {at} ({merge!r:.60}) does not join two tokens into a third")
        merges.append((left, right))
    backend = reader.backend(vocabulary, merges, ignore_merges=rule.whole_words)
    if rule.nfc:
        backend.normalizer = NFC()
    backend.pre_tokenizer = rule.words()
    _add_tokens(backend, pieces, normalized=False)
    return backend


def _sentencepiece_backend(reader: _Reader, pieces: _Pieces, adds_space: bool) -> Backend:
    if reader.flag("remove_extra_whitespaces", False):
        raise UnsupportedModel(f"{reader.name} has a tokenizer that removes spaces; Hasten reads those that keep them.")
    vocabulary = {text: token for token, text in enumerate(pieces.spelled)}
    unknown = reader.token("unknown_token_id")
    if unknown is None and any(f"<0x{byte:02X}>" not in vocabulary for byte in range(256)):
        reader.corrupt("its vocabulary has neither a token for every byte nor an unknown token")
    backend = reader.backend(
        vocabulary,
        _merges_from_scores(pieces, reader.scores(len(pieces.spelled))),
        unk_token=None if unknown is None else pieces.spelled[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    marks: list[Normalizer] = [Replace(" ", SPACE_MARK)]
    backend.normalizer = Normalizers([Prepend(SPACE_MARK), *marks] if adds_space else marks)
    # A normalized token is matched after spaces are marked; Prepend would put one in front of the token's own spelling, too.
    _add_tokens(backend, pieces, normalized=not adds_space)
    return backend


def _merges_from_scores(pieces: _Pieces, scores: list[float]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, best score first; of one piece, the longest left part first (the order in
    which published tokenizer.json files have them)."""
    ranked = sorted(pieces.of_type(NORMAL), key=lambda token: -scores[token])
    normal = {pieces.spelled[token] for token in ranked}
    return [
        (text[:at], text[at:])
        for text in (pieces.spelled[token] for token in ranked)
        for at in range(len(text) - 1, 0, -1)
        if text[:at] in normal and text[at:] in normal
    ]


def _add_tokens(backend: Backend, pieces: _Pieces, normalized: bool) -> None:
    """Make control and user-defined tokens whole in any text; ``normalized`` matches the latter after normalization."""
    for kinds, special, late in (((CONTROL, UNKNOWN), True, False), ((USER_DEFINED,), False, normalized)):
        texts = [pieces.spelled[token] for token in pieces.of_type(*kinds)]
        backend.add_tokens([AddedToken(text, normalized=late, special=special) for text in texts])


Value = TypeVar("Value")


class _Reader:
    """Checked access to the keys under ``tokenizer.ggml``."""

    def __init__(self, metadata: Mapping[str, Any], name: str) -> None:
        self.metadata = metadata
        self.name = name

    def corrupt(self, what: str) -> Never:
        raise CorruptModel(f"{self.name} has a malformed tokenizer: {what}; fetch the file again or use another conversion.")

    def value(self, key: str, kind: type[Value]) -> Value | None:
        found = self.metadata.get(key)
        if found is not None and type(found) is not kind:
            self.corrupt(f"{key} is a {type(found).__name__} where a {kind.__name__} is allowed")
        return found

    def text(self, key: str) -> str:
        found = self.value(f"tokenizer.ggml.{key}", str)
        if found is None:
            self.corrupt(f"tokenizer.ggml.{key} is missing")
        return found

    def flag(self, key: str, otherwise: bool) -> bool:
        found = self.value(f"tokenizer.ggml.{key}", bool)
        return otherwise if found is None else found

    def token(self, key: str) -> int | None:
        """A token id, or None where the key is missing."""
        found = self.value(f"tokenizer.ggml.{key}", int)
        size = len(self.metadata["tokenizer.ggml.tokens"])
        if found is not None and not 0 <= found < size:
            self.corrupt(f"{key} is {found} where ids go from 0 to {size - 1}")
        return found

    def entries(self, key: str, kinds: tuple[type, ...]) -> list[Any]:
        found = self.value(f"tokenizer.ggml.{key}", list)
        if found is None:
            self.corrupt(f"tokenizer.ggml.{key} is missing")
        for at, entry in enumerate(found):
            if type(entry) not in kinds:
                self.corrupt(f"entry {at} of tokenizer.ggml.{key} is a {type(entry).__name__}")
        return found

    def strings(self, key: str) -> list[str]:
        found: list[str] = self.entries(key, (str,))
        try:
            "".join(found).encode()
        except UnicodeEncodeError:
            self.corrupt(f"tokenizer.ggml.{key} has text that is not UTF-8")
        return found

    def scores(self, count: int) -> list[float]:
        found: list[float] = self.entries("scores", (float, int))
        if len(found) != count:
            self.corrupt(f"it has {len(found)} scores for {count} tokens")
        if not all(map(math.isfinite, found)):
            self.corrupt("a score is not a finite number")
        return found

    def pieces(self, marks: Mapping[str, str]) -> _Pieces:
        """The vocabulary. Files spell the spaces of user-defined tokens in either way; ``marks`` chooses one."""
        spelled = self.strings("tokens")
        types: list[int] = (
            self.entries("token_type", (int,)) if "tokenizer.ggml.token_type" in self.metadata else [NORMAL] * len(spelled)
        )
        if len(types) != len(spelled) or not spelled:
            self.corrupt(f"it has {len(types)} token types for {len(spelled)} tokens")
        if strange := set(types) - set(range(1, 7)):
            self.corrupt(f"token type {min(strange)} is none of 1 to 6")
        respell = str.maketrans(dict(marks))
        spelled = [text.translate(respell) if kind == USER_DEFINED else text for text, kind in zip(spelled, types, strict=True)]
        if len(set(spelled)) != len(spelled) or "" in spelled:
            self.corrupt("two tokens have the same spelling, or one has none")
        return _Pieces(spelled, types)

    def word_rule(self) -> WordRule:
        name = self.value("tokenizer.ggml.pre", str)
        if name is None:
            raise UnsupportedModel(
                f"{self.name} is an old conversion that does not say how text is cut into words; choose a newer one of the model."
            )
        if name not in WORD_RULES:
            raise UnsupportedModel(
                f"{self.name} cuts text into words by a rule called {name!r:.60}; Hasten knows {', '.join(WORD_RULES)}."
            )
        return WORD_RULES[name]

    def chat_template(self) -> str | None:
        return self.value("tokenizer.chat_template", str)

    def backend(self, vocabulary: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> Backend:
        """BPE over checked tokens; what the library itself refuses is the file's fault."""
        try:
            return Backend(BPE(vocab=vocabulary, merges=merges, **options))
        except Exception as problem:
            self.corrupt(f"its merges cannot be used ({problem})")
