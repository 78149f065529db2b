"""Texts that nobody can foretell: where the target itself wavered between thousands of tokens, guesses are hardly ever right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from hasten.control.rounds import Round, share_out
from hasten.core.types import Sequence

EVERY = 16  # one in so many tokens stands for the others: looking at all of them takes a hundredth of a step
FLAT = 8.0  # nats: as much is left open as between 3,000 tokens that are equally likely (docs/log.md)


@dataclass(slots=True)
class FlatLaws:
    """Sequences whose last token was drawn from a law that was nearly flat, where it was last looked at."""

    _sequences: set[int] = field(default_factory=set)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.id in self._sequences

    def look(self, sequence: Sequence, logits: Tensor, last: int, round: Round | None, clock: Callable[[], float]) -> None:
        """``logits`` [rows, vocabulary]; its last token was chosen by row ``last``. Who was asked in the round pays for the look.
        A greedy choice is foreseen by the likeliest token alone, so how flat the rest is says little of it."""
        if sequence.params.greedy:
            return
        began = clock()
        if rough_entropy(logits[last]) >= FLAT:
            self._sequences.add(sequence.id)
        else:
            self._sequences.discard(sequence.id)
        if round is not None:
            share_out(clock() - began, [(round, drafter) for drafter in round.seconds])

    def forget(self, sequence: Sequence) -> None:
        self._sequences.discard(sequence.id)


def rough_entropy(logits: Tensor) -> float:
    """About how many nats the law of a row [vocabulary] leaves open, at temperature 1: by its largest logit and one in ``EVERY``.
    Where tokens that are not looked at have much of the law, all others seem to have more of it than they do."""
    below = (logits[::EVERY] - logits.max()).float().cpu().numpy()
    below = np.maximum(below, -80.0)  # e to that is nothing beside 1, and so is its product with it
    weights = EVERY * np.exp(below)
    total = 1.0 + float(weights.sum())
    return math.log(total) - float(weights @ below) / total
