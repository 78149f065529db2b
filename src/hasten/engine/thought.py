"""An answer's thought apart from its words, token by token, and constraints that begin behind the thought.

Where the marks of a model are tokens, those tokens alone are marks: what only spells one is text. Else the text is searched, in
pieces of any length. The line breaks that models write between the marks and their words belong to neither, as templates have it.
No torch at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from hasten.engine.text import overlap
from hasten.model.thinking import CLOSE, OPEN, Place, Thinking
from hasten.sampling.constraint import Constraint

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AfterThought", "Thought", "place_of"]


def place_of(thinking: Thinking, prompt: list[int], constrained: bool) -> Place | None:
    """Where the answer begins; None where it is not searched for a thought.

    Of an answer that is ``constrained`` the thought stays free only where the marks are tokens, so that it is certain at every node
    of a draft tree where the constraint begins, and where the template speaks of thoughts. Else its form is that of all it says.
    """
    place = thinking.begins(prompt)
    if constrained and not (thinking.by_token and (place == "inside" or thinking.announced)):
        return None
    return place


class Thought:
    """Takes the text of one answer and gives it out as thought or as words. ``exact``: words begin with the first sign that is no
    mark, and right behind the thought: nothing is left out of what a constraint allowed."""

    def __init__(self, thinking: Thinking, place: Place, exact: bool) -> None:
        self._thinking = thinking
        self._exact = exact
        self._place: Literal["before", "inside", "behind", "words"] = place
        self._held = ""
        self._said = False

    @property
    def inside(self) -> bool:
        return self._place == "inside"

    def is_mark(self, token: int) -> bool:
        """Whether a token would open or close the thought here."""
        thinking = self._thinking
        return thinking.by_token and (
            (self._place == "before" and token == thinking.open) or (self._place == "inside" and token == thinking.close)
        )

    def take(self, text: str, mark: bool = False) -> tuple[str, str]:
        """(thought, words) that are certain with this text; ``mark``: behind it stands a token for which ``is_mark`` holds."""
        self._held += text
        thought = words = ""
        if self._place == "before" and self._opens(mark):
            mark = False
        if self._place == "inside":
            thought = self._thought(mark)
        if self._place == "behind":
            self._held = self._held.lstrip("\n")
            self._place = "words" if self._held else "behind"
        if self._place == "words":
            words, self._held = self._held, ""
        return thought, words

    def finish(self) -> tuple[str, str]:
        """(thought, words): what was held, when no more text comes."""
        held, self._held = self._held, ""
        return (self._trimmed(held), "") if self.inside else ("", held)

    def _opens(self, mark: bool) -> bool:
        """Whether the thought begins here; where words do, that is noted."""
        begun = self._held.lstrip()
        if mark or (not self._thinking.by_token and begun.startswith(OPEN)):
            self._held = begun if mark else begun.removeprefix(OPEN)
            self._place = "inside"
        elif self._exact or (begun and (self._thinking.by_token or not OPEN.startswith(begun))):
            self._place = "words"
        return self._place == "inside"

    def _thought(self, mark: bool) -> str:
        """What is certain of the thought; what is behind it stays held."""
        by_token = self._thinking.by_token
        end = -1 if by_token else self._held.find(CLOSE)
        if mark or end >= 0:
            whole = self._held if mark else self._held[:end]
            self._held = "" if mark else self._held[end + len(CLOSE) :]
            said = self._trimmed(whole)
            self._place = "words" if self._exact else "behind"
        else:
            keep = 0 if by_token else overlap(self._held, CLOSE)
            certain = self._held[: len(self._held) - keep].rstrip("\n")
            self._held = self._held[len(certain) :]
            said = self._trimmed(certain)
        return said

    def _trimmed(self, text: str) -> str:
        """A part of the thought without the line breaks at its end, and at the thought's beginning."""
        said = text.rstrip("\n") if self._said else text.strip("\n")
        self._said = self._said or bool(said)
        return said


class AfterThought:
    """A ``Constraint`` of the words alone: in the thought everything is allowed but the end of the answer (``ends``), and where a
    thought may begin, its mark is allowed beside what the words may begin with. The place follows the path as the constraint
    itself does, so that each node of a tree is masked by exactly what precedes it.
    """

    def __init__(self, words: Constraint, thinking: Thinking, place: Place, vocabulary: int, ends: frozenset[int]) -> None:
        self._words = words
        self._thinking = thinking
        self._place: Literal["before", "inside", "words"] = place
        self._vocabulary = vocabulary
        self._ends = ends
        self._free: Tensor | None = None

    def allowed_after(self, path: Sequence[int]) -> Tensor | None:
        place, rest = self._walked(path)
        if place == "inside":
            return self._thought()
        allowed = self._words.allowed_after(rest)
        opening = self._thinking.open
        if place == "before" and allowed is not None and opening is not None and opening < len(allowed):
            allowed = allowed.clone()
            allowed[opening] = True
        return allowed

    def accept(self, tokens: Sequence[int]) -> None:
        self._place, rest = self._walked(tokens)
        if self._place == "words":
            self._words.accept(rest)

    def _walked(self, path: Sequence[int]) -> tuple[Literal["before", "inside", "words"], Sequence[int]]:
        """Where the path leads, and what of it are words."""
        place = self._place
        if place == "before" and path:
            place, path = ("inside", path[1:]) if path[0] == self._thinking.open else ("words", path)
        close = self._thinking.close
        if place == "inside" and close is not None and close in path:
            place, path = "words", path[list(path).index(close) + 1 :]
        return place, path if place == "words" else ()

    def _thought(self) -> Tensor:
        if self._free is None:
            import torch

            self._free = torch.ones(self._vocabulary, dtype=torch.bool)
            self._free[list(self._ends)] = False
        return self._free
