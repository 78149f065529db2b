"""What drafters see of the sequences: copies, so that nothing a drafter does to one gets into the text."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field

from hasten.core.types import Sequence


@dataclass(slots=True)
class Views:
    """A copy of each sequence, whose own list of tokens grows as the text does."""

    _views: dict[int, Sequence] = field(default_factory=dict)

    def of(self, sequence: Sequence) -> Sequence:
        """The copy as the sequence is now. Takes as long as there are tokens that it has not been given yet."""
        view = self._views.get(sequence.id)
        if view is None or len(view.tokens) > len(sequence.tokens):
            view = self._views[sequence.id] = copy(sequence)
            view.tokens = list(sequence.tokens)
            view.blocks, view.provenance, view.logprobs = [], [], []
        elif len(view.tokens) < len(sequence.tokens):
            view.tokens += sequence.tokens[len(view.tokens) :]
        view.finish_reason = sequence.finish_reason
        return view

    def changed(self, sequence: Sequence) -> bool:
        """Whether somebody has cut, continued or ended differently the copy that was up to date; then the next one is a new one.
        What was written further up goes unnoticed: a worse guess is all that comes of it."""
        tokens = self._views[sequence.id].tokens
        if len(tokens) == len(sequence.tokens) and tokens[-1] == sequence.tokens[-1]:
            return False
        self.forget(sequence)
        return True

    def forget(self, sequence: Sequence) -> None:
        self._views.pop(sequence.id, None)
