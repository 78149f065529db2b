"""Vocabularies of toys that spell the same letters differently, for draft models of another vocabulary."""

from __future__ import annotations

from tiny import LETTERS, VOCABULARY


class Pieces:
    """Longest match from the left over ``pieces``; the last id ends an answer. Letters that it has no piece for are passed over."""

    prefix_ids: tuple[int, ...] = ()
    strips_space = False

    def __init__(self, pieces: list[str], end: str = "<end>") -> None:
        self.pieces = [*pieces, end]
        self.vocabulary_size = len(self.pieces)
        self.eos_token_ids = (len(pieces),)
        self.special_ids = frozenset(self.eos_token_ids)
        self._ids = {piece: token for token, piece in enumerate(pieces)}
        self._longest = max(map(len, pieces))

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token].encode() if 0 <= token < len(self.pieces) else b""

    def encode(self, text: str, *, add_bos: bool = False, allow_special: bool = True) -> list[int]:
        out, at = [], 0
        while at < len(text):
            size = next((size for size in range(self._longest, 0, -1) if text[at : at + size] in self._ids), 0)
            out += [self._ids[text[at : at + size]]] if size else []
            at += max(1, size)
        return out


def letters() -> Pieces:
    """The tiny models' vocabulary: one letter a token."""
    return Pieces(list(LETTERS))


def others() -> Pieces:
    """The same letters in another order, and pairs and triples of some; as many ids as the tiny models have."""
    alone = sorted(LETTERS)
    joined = ["ab", "cd", "the", "abc", "ca", "ZY", "e ", ". "]
    gone = list("QXZ!?;:W")  # letters that only the target has
    return Pieces([letter for letter in alone if letter not in gone] + joined[: VOCABULARY - 1 - len(alone) + len(gone)])
