"""Text to token ids and back, exactly as the model was trained with them.

A tokenizer comes from a folder (``tokenizer.json`` and its companions, as the Hub stores them) or from the metadata of a
GGUF file. Encoding is done by the ``tokenizers`` library. Decoding is done here, by bytes: every token stands for fixed
bytes, an answer is the concatenation of its tokens' bytes read as UTF-8, and each maximal ill-formed part becomes U+FFFD.
So text can be streamed token by token and still equal the decoding of the whole. "Clean-up" of spaces before punctuation
is never done: it would make the text differ from what the tokens say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from hasten.core.errors import InvalidRequest, ModelNotFound
from hasten.model.long_texts import read_within_bounds

__all__ = ["BYTE_SPELLING", "Tokenizer", "load_tokenizer"]

SPACE_MARK = "\u2581"  # SentencePiece spells a space so
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_spelling() -> dict[str, int]:
    """The 256 characters in which byte-level BPE (GPT-2) spells bytes: printable Latin-1 stands for itself, the other bytes
    take the characters from U+0100 on, in order."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


BYTE_SPELLING = _byte_spelling()


class Tokenizer:
    """The vocabulary of one model. Safe to use from several threads.

    ``byte_level`` says how tokens are spelled: GPT-2's byte alphabet, or SentencePiece's (``▁`` for a space, ``<0xNN>`` for
    a byte). ``strips_space`` is SentencePiece's rule that text gets a space in front before it is encoded, so that decoding
    drops one. ``special_ids`` are control tokens, which are no text. ``silent_ids`` fill up the vocabulary and have no
    text at all. ``prefix_ids`` and ``suffix_ids`` are what this model's tokenizer puts around a plain prompt. ``eos_token_ids``
    end an answer. Ids beyond the vocabulary, which files may name and nobody can choose, are left out.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        byte_level: bool,
        strips_space: bool,
        special_ids: Iterable[int],
        silent_ids: Iterable[int] = (),
        prefix_ids: tuple[int, ...] = (),
        suffix_ids: tuple[int, ...] = (),
        bos_token_id: int | None = None,
        eos_token_ids: tuple[int, ...] = (),
        chat_template: str | None = None,
    ) -> None:
        self._backend = backend
        self._bytes: dict[int, bytes] = {}
        self._added = {token: added.content for token, added in backend.get_added_tokens_decoder().items()}
        self._silent_ids = frozenset(silent_ids)
        self._marked: dict[int, int] = {}  # ids of marks, which ``_marking`` alone has, to the tokens they stand for
        self._particular: dict[str, str] = {}  # marks that are not tokens everywhere, and the spellings they stand for
        self.byte_level = byte_level
        self.strips_space = strips_space
        self.special_ids = frozenset(token for token in special_ids if token < self.vocabulary_size)
        self.prefix_ids = prefix_ids
        self.suffix_ids = suffix_ids
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(token for token in eos_token_ids if token < self.vocabulary_size)
        self.chat_template = chat_template
        self.control_ids: frozenset[int] = frozenset()  # of the added tokens
        self._never_text: frozenset[int] = frozenset()
        control, known = self.special_ids.intersection(self._added), backend.get_added_tokens_decoder()
        backend.add_special_tokens([known[token] for token in control if not known[token].special])
        self._add_control(control)

    @cached_property
    def _marking(self) -> Backend:
        """What ``encode_marked`` asks: the same model with marks, and without the spellings of control tokens."""
        return self._second_backend()

    @cached_property
    def _without_control(self) -> Backend:
        """What reads the spellings of control tokens as text: the switch belongs to a backend, not to a call."""
        return self._second_backend()

    def _second_backend(self) -> Backend:
        """It shares the vocabulary; what is added to it, in the order of ids, is given the ids that it has in the first one."""
        made = Backend(self._backend.model)
        made.normalizer, made.pre_tokenizer = self._backend.normalizer, self._backend.pre_tokenizer
        made.post_processor = self._backend.post_processor
        made.add_tokens([added for _, added in sorted(self._backend.get_added_tokens_decoder().items())])
        made.encode_special_tokens = True
        return made

    def encode(self, text: str, *, add_bos: bool, allow_special: bool = True) -> list[int]:
        """Token ids of ``text``.

        ``add_bos`` puts around it what this model's tokenizer puts around a plain prompt (most often its first token, or
        nothing); leave it off for the output of a chat template, which writes those itself. ``allow_special=False`` reads
        the text of control tokens as ordinary text. Raises InvalidRequest when the text is no valid Unicode, and TooManyTokens
        (``long_texts``) where a bound is set that it does not keep to.
        """
        _check_unicode(text)
        backend = self._backend if allow_special else self._without_control
        ids = read_within_bounds(text, lambda part: _ids(backend, part))
        return [*self.prefix_ids, *ids, *self.suffix_ids] if add_bos else ids

    def encode_marked(self, text: str) -> list[int]:
        """Token ids of a text in which marks (``add_marks``) stand for control tokens, and spellings of them are ordinary text.

        Text between two of them is read in one piece. Raises InvalidRequest when the text is no valid Unicode, or when this
        vocabulary has no other way to write what spells a control token; TooManyTokens as ``encode``.
        """
        _check_unicode(text)
        ids = read_within_bounds(text, lambda part: _ids(self._marking, self._readable(part)))
        for token in ids:
            if token not in self._marked and token in self._never_text:
                raise InvalidRequest(
                    f"The messages spell {self.token_text(token)!r}, which is no text for this model; leave it out."
                )
        return [self._marked.get(token, token) for token in ids]

    def _readable(self, text: str) -> str:
        """``text`` with spellings for those marks that are not read as tokens where they stand: a token that is one between words
        only, or in normalised text only, is text elsewhere."""
        if not any(mark in text for mark in self._particular):
            return text
        found = self._marking.encode_batch([text], add_special_tokens=False)[0]
        spans = [span for token, span in zip(found.ids, found.offsets, strict=True) if token in self._marked]
        read = {at for begin, end in spans for at in range(begin, end)}
        marks = re.compile("|".join(map(re.escape, self._particular)))
        return marks.sub(lambda mark: mark[0] if mark.start() in read else self._particular[mark[0]], text)

    @property
    def added(self) -> Mapping[int, str]:
        """The tokens that are found in a text before it is cut into words, with their spellings; control tokens and others."""
        return self._added

    def add_marks(self, marks: Mapping[int, str]) -> None:
        """Let ``encode_marked`` read texts as these of the ``added``, and their spellings as ordinary text, whatever the model's
        files call them. A mark takes spaces beside it as its token does; for ``encode`` nothing changes. Before any text is read.
        """
        known = self._backend.get_added_tokens_decoder()
        added = [
            AddedToken(
                mark,
                single_word=known[token].single_word,
                lstrip=known[token].lstrip,
                rstrip=known[token].rstrip,
                normalized=known[token].normalized,
                special=False,
            )
            for token, mark in marks.items()
        ]
        self._marking.add_tokens(added)
        for token, mark in marks.items():
            found = self._marking.token_to_id(mark)
            assert found is not None
            self._marked[found] = token
            if known[token].single_word or (known[token].normalized and self._backend.normalizer is not None):
                self._particular[mark] = self._added[token]
        self._marking.add_special_tokens([known[token] for token in marks if not known[token].special])
        self._add_control(marks)

    def _add_control(self, tokens: Iterable[int]) -> None:
        unknown = getattr(self._backend.model, "unk_token", None)  # also what text becomes that has no other token
        self.control_ids |= set(tokens)
        self._never_text |= {token for token in tokens if self._added[token] != unknown}

    def decode(self, tokens: Iterable[int], skip_special: bool = True, continues: bool = False) -> str:
        """The text of ``tokens``; ids beyond the vocabulary (padding rows of the embedding) have no text.

        ``continues`` says that the text follows other text, so a leading space is kept where SentencePiece drops it.
        """
        shown = (token for token in tokens if not (skip_special and token in self.special_ids))
        text = b"".join(map(self.token_bytes, shown)).decode("utf-8", "replace")
        return text[1:] if self.strips_space and not continues and text.startswith(" ") else text

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token contributes in the middle of text; of a control token, those of its name."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._spelled_bytes(token)
        return found

    def _spelled_bytes(self, token: int) -> bytes:
        spelled = self._added.get(token) or (self._backend.id_to_token(token) if 0 <= token < 2**32 else None)
        if spelled is None or token in self._silent_ids:
            return b""
        if not self.byte_level:
            byte = BYTE_TOKEN.fullmatch(spelled)
            return bytes([int(byte[1], 16)]) if byte else spelled.replace(SPACE_MARK, " ").encode()
        if token not in self._added and all(character in BYTE_SPELLING for character in spelled):
            return bytes(BYTE_SPELLING[character] for character in spelled)
        return spelled.encode()

    def token_text(self, token: int) -> str:
        """What one token looks like by itself; part of a character looks like U+FFFD."""
        return self.token_bytes(token).decode("utf-8", "replace")

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest token id; the model's own may be larger (padding rows)."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def vocabulary_fingerprint(self) -> str:
        """SHA-256 over the spelling of every id; tokens without text count as absent, so that a folder and a padded GGUF
        file of one model agree. Two models with equal fingerprints mean the same by every token id."""
        spelled = [""] * self.vocabulary_size
        for text, token in self._backend.get_vocab(with_added_tokens=True).items():
            if token not in self._silent_ids:
                spelled[token] = text
        while spelled and not spelled[-1]:
            spelled.pop()
        digest = sha256()
        for text in spelled:
            data = text.encode()
            digest.update(len(data).to_bytes(4, "little") + data)
        return digest.hexdigest()


def _ids(backend: Backend, text: str) -> list[int]:
    """Token ids of a text. As a batch of one: ``encode`` holds the interpreter's lock, and all other threads, for seconds where the
    text has millions of characters."""
    return list(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)


def _check_unicode(text: str) -> None:
    """Raise InvalidRequest when a text is no valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise InvalidRequest(
            f"The text has half of a surrogate pair at character {problem.start}; send valid Unicode."
        ) from problem


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer of a model: a folder with ``tokenizer.json``, or a ``.gguf`` file.

    Raises ModelNotFound, CorruptModel (malformed or hostile) or UnsupportedModel (a kind that Hasten does not read).
    """
    # Both build a Tokenizer, so they import this module.
    from hasten.model.folder_tokenizer import tokenizer_from_folder
    from hasten.model.gguf_tokenizer import tokenizer_from_metadata
    from hasten.model.loaders.gguf_file import read_gguf

    path = Path(path)
    if path.is_dir():
        return tokenizer_from_folder(path)
    if path.is_file():
        return tokenizer_from_metadata(read_gguf(path).metadata, str(path))
    raise ModelNotFound(f"There is no model at {path}; give a folder with tokenizer.json or a .gguf file.")
