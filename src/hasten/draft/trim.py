"""Which ids a draft model computes logits for: VocabTrim (2506.22694, section 3) and FR-Spec (2502.14856).

The head of a small draft model is a large part of it, and most of the vocabulary is hardly ever said. So the head keeps the ids
that are said most, counted in the target's own output (better than any other text: section 4.3 of the paper) or given text.
Ids that were not counted are ranked by number: byte-pair vocabularies are numbered in the order of their merges, so
that low ids are frequent pieces of text. What a text in hand needs besides is added while it runs (``shortlist``).

A choice that was measured (``hasten draft trim``) is a JSON file in Hasten's own folder; without one the lowest ids are kept.
A draft only guesses, so whatever stands in such a file can cost speed and never a token.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hasten.core.damaged import set_aside
from hasten.core.replacement import Replacement
from hasten.model import storage
from hasten.model.decoder import Decoder
from hasten.model.head import IntArray, TrimmedHead, head_rows
from hasten.model.weights import Weights

FORMAT = "hasten-trim-1"
DEFAULT_SIZE = 32768
LARGEST_FILE = 64 << 20
log = logging.getLogger(__name__)


class Vocabulary(Protocol):
    """What this file needs of a tokenizer."""

    byte_level: bool
    special_ids: frozenset[int]
    eos_token_ids: tuple[int, ...]

    @property
    def vocabulary_size(self) -> int: ...
    @property
    def vocabulary_fingerprint(self) -> str: ...
    def token_bytes(self, token: int) -> bytes: ...


@dataclass(frozen=True, slots=True, eq=False)
class TrimmedVocabulary:
    """``ids`` ascend, without repeats; ``counted`` says in a few words what they were chosen by."""

    ids: IntArray
    counted: str

    def __len__(self) -> int:
        return len(self.ids)


def trim_head(source: Weights, decoder: Decoder, converted: Path | None, tokenizer: Vocabulary) -> TrimmedHead | None:
    """The head that this draft model should have instead of its whole one; None where that should stay."""
    path = storage.trim_path(source.fingerprint, tokenizer.vocabulary_fingerprint)
    trim = choose_trim(source.fingerprint, tokenizer, path)
    rows = None if trim is None else head_rows(source, decoder, converted)
    return None if trim is None or rows is None else TrimmedHead(rows, trim.ids)


def trimmed(
    tokenizer: Vocabulary, size: int, counts: IntArray | None = None, counted: str = "order of merges"
) -> TrimmedVocabulary:
    """The ``size`` most counted ids, uncounted ones by rank, and all that control the text (end of answer, roles), which may make
    it a few more. ``counts``: int64 [vocabulary]."""
    total = tokenizer.vocabulary_size
    counts = np.zeros(total, np.int64) if counts is None else counts
    order = np.lexsort((np.arange(total), ~_single_characters(tokenizer), -counts))
    return TrimmedVocabulary(np.union1d(order[: min(size, total)], _always(tokenizer)).astype(np.int64), counted)


def count_tokens(texts: list[list[int]], vocabulary_size: int) -> IntArray:
    """How often each id stands in the texts; ids beyond the vocabulary are passed over."""
    counts = np.zeros(vocabulary_size, np.int64)
    for tokens in texts:
        array = np.array(tokens, np.int64)
        counts += np.bincount(array[(array >= 0) & (array < vocabulary_size)], minlength=vocabulary_size)
    return counts


def choose_trim(draft: str, tokenizer: Vocabulary, path: Path) -> TrimmedVocabulary | None:
    """The ids that the draft model with the fingerprint ``draft`` should compute: those kept in ``path``, else the default; None
    for all of them (so it was measured, or the vocabulary is small)."""
    found = load(path, draft, tokenizer)
    if found is not None:
        return None if len(found) == tokenizer.vocabulary_size else found
    return None if tokenizer.vocabulary_size < 2 * DEFAULT_SIZE else trimmed(tokenizer, DEFAULT_SIZE)


def save(trim: TrimmedVocabulary, path: Path, draft: str, tokenizer: Vocabulary) -> None:
    """Write the choice to ``path``, whole or not at all. Raises OSError when the disk refuses."""
    content = {
        "format": FORMAT,
        "draft": draft,
        "vocabulary": tokenizer.vocabulary_fingerprint,
        "counted": trim.counted,
        "size": len(trim),
        "ids": trim.ids.tolist(),
    }
    with Replacement(path) as replacement:
        replacement.file.write(json.dumps(content, separators=(",", ":")).encode())


def load(path: Path, draft: str, tokenizer: Vocabulary) -> TrimmedVocabulary | None:
    """The choice kept in ``path``; None where there is none. A file that is damaged, or belongs to other models, is set aside
    under another name, with one warning."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError("it is too large")
        with path.open("rb") as file:
            content = json.loads(file.read(LARGEST_FILE))
        return _checked(content, draft, tokenizer)
    except FileNotFoundError:
        return None
    except OSError as problem:
        log.warning("The choice of draft ids in %s cannot be read (%s); the default is used.", path, problem.strerror)
    except (ValueError, RecursionError, MemoryError) as problem:
        set_aside(path, f"The choice of draft ids in {path} is damaged ({problem})")
    return None


def _checked(content: Any, draft: str, tokenizer: Vocabulary) -> TrimmedVocabulary:
    """Raises ValueError for whatever ``save`` would not have written for these models."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"it is not of the form {FORMAT}")
    if content.get("draft") != draft or content.get("vocabulary") != tokenizer.vocabulary_fingerprint:
        raise ValueError("it belongs to another model")
    ids, counted, size = content.get("ids"), content.get("counted"), content.get("size")
    if not isinstance(counted, str) or not isinstance(ids, list) or not ids or len(ids) != size:
        raise ValueError("a field is missing or has another type")
    if not all(type(token) is int for token in ids):
        raise ValueError("an id is no whole number")
    total = tokenizer.vocabulary_size
    if ids[0] < 0 or ids[-1] >= total or any(low >= high for low, high in pairwise(ids)):
        raise ValueError(f"its ids do not ascend from 0 to {total - 1}")
    return TrimmedVocabulary(np.union1d(np.array(ids, np.int64), _always(tokenizer)), counted)


def _always(tokenizer: Vocabulary) -> IntArray:
    chosen = {*tokenizer.special_ids, *tokenizer.eos_token_ids}
    return np.array(sorted(token for token in chosen if 0 <= token < tokenizer.vocabulary_size), np.int64)


def _single_characters(tokenizer: Vocabulary) -> npt.NDArray[np.bool_]:
    """Which ids rank before the others although their numbers are high: SentencePiece numbers letters and digits last, after all
    merges. Byte-level vocabularies begin with their bytes. Characters of three bytes and more are too many."""
    total = tokenizer.vocabulary_size
    if tokenizer.byte_level:
        return np.zeros(total, np.bool_)
    texts = (tokenizer.token_bytes(token) for token in range(total))
    return np.fromiter((0 < len(text) <= 2 and len(text.decode("utf-8", "replace")) == 1 for text in texts), np.bool_, total)
