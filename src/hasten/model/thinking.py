"""Whether a model thinks before it answers, and in which marks: told by its chat template and its vocabulary.

A model that thinks writes ``<think>``, its thought, ``</think>`` and then its answer. Some templates write the first mark
themselves, so that what the model writes begins within the thought; some write an empty thought where none is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from hasten.model.tokenizer import Tokenizer

__all__ = ["CLOSE", "OPEN", "Place", "Thinking", "thinking_of"]

OPEN, CLOSE = "<think>", "</think>"
Place: TypeAlias = Literal["before", "inside"]
NEAR = 16  # tokens at a prompt's end among which its last mark is looked for: behind it there are only line breaks


@dataclass(frozen=True, slots=True)
class Thinking:
    """How one model thinks. ``open`` and ``close`` are the tokens of the marks, both None where they are spelled with ordinary
    ones. ``announced``: the template speaks of thoughts; else the vocabulary alone has the marks."""

    tokenizer: Tokenizer
    open: int | None
    close: int | None
    announced: bool

    @property
    def by_token(self) -> bool:
        return self.open is not None

    def begins(self, prompt: list[int]) -> Place | None:
        """Where an answer to this prompt begins: before a thought that may come, or inside one that the prompt has opened. None:
        the prompt has closed it, and the answer is all that comes."""
        texts = [self.tokenizer.token_bytes(token).decode(errors="replace") for token in prompt[-NEAR:]]
        tail = "".join(texts).rstrip()
        if self.by_token:
            last = next((token for token, text in zip(prompt[::-1], texts[::-1], strict=False) if text.strip()), None)
            opened, closed = last == self.open, last == self.close
        else:
            opened, closed = tail.endswith(OPEN), tail.endswith(CLOSE)
        return None if closed else "inside" if opened else "before"


def thinking_of(tokenizer: Tokenizer) -> Thinking | None:
    """How the model of this tokenizer thinks, None where nothing says that it does. Reads no text and loads nothing."""
    tokens = {text: token for token, text in tokenizer.added.items() if text in (OPEN, CLOSE)}
    announced = CLOSE in (tokenizer.chat_template or "")
    if len(tokens) == 2:
        return Thinking(tokenizer, tokens[OPEN], tokens[CLOSE], announced)
    return Thinking(tokenizer, None, None, announced) if announced else None
