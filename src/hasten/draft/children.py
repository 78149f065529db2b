"""Which children the nodes of a model's draft tree get, from rows of its logits; and what of a text must be known for that."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from hasten.core.types import Sequence
from hasten.draft.growth import Growing
from hasten.draft.shortlist import Shortlists
from hasten.model.head import IntArray
from hasten.sampling.filters import History
from hasten.sampling.guess import Guess, draft_law, guesses, likeliest_guesses


@dataclass(slots=True)
class Text:
    """What a model that drafts has seen of a sequence's tokens besides reading them."""

    history: History | None = None
    counted: int = 0  # output tokens that the history has seen
    noted: int = 0  # tokens that the shortlist has seen

    def catch_up(self, sequence: Sequence, shortlists: Shortlists | None) -> None:
        """Count what the sequence has grown by, for penalties and for the head's choice of ids."""
        if sequence.params.needs_history:
            if self.history is None:
                self.history = History(sequence.tokens[: sequence.prompt_length])
            self.history.extend(sequence.tokens[sequence.prompt_length + self.counted :])
            self.counted = sequence.output_length
        if shortlists is not None:
            shortlists.note(sequence.id, sequence.tokens[self.noted :])
            self.noted = len(sequence.tokens)


def children(
    growing: Growing, node: int, row: Tensor, ids: IntArray | None, history: History | None, vocabulary: int
) -> list[Guess]:
    """What should hang below ``node``, the best first, by a row of logits; ``ids`` are the target's ids of these, None: 0, 1, 2
    ... below ``vocabulary``. ``history`` is that of the text without the tree."""
    sequence, before = growing.sequence, growing.path(node)
    position = len(sequence.tokens) + len(before)
    history = None if history is None else history.with_path(before)
    if growing.drawn:
        law = draft_law(row, sequence.params, position, history=history, vocabulary_size=vocabulary, ids=ids)
        return growing.draw(node, law)
    return guesses(
        row,
        sequence.params,
        sequence.seed,
        position,
        growing.shape.children(growing.level),
        history=history,
        vocabulary_size=vocabulary,
        ids=ids,
        noisy=growing.noisy,
    )


def as_the_model_says(growing: Growing) -> bool:
    """Whether children are simply the likeliest tokens of a row: those that ``likeliest_children`` finds."""
    params = growing.sequence.params
    return params.greedy and not growing.drawn and not params.needs_history and not params.logit_bias


def likeliest_children(shortlists: Shortlists, growing: list[Growing], logits: Tensor) -> list[list[Guess]] | None:
    """``children`` of all rows [n, columns of the head] of one level, in one call: row by row those of the tree beside it, each of
    which must be ``as_the_model_says``. None where no kernel does that."""
    places = [shortlists.places(each.sequence.id) for each in growing]
    count = growing[0].shape.children(growing[0].level)
    return likeliest_guesses(logits, count, shortlists.ids, shortlists.fixed, places)


def too_unsure(growing: Growing, logits: Tensor) -> bool:
    """Whether every one of these rows leaves more open than the budget allows for a level behind the first one."""
    most, temperature = growing.budget.most_entropy, growing.sequence.params.temperature or 1.0
    return growing.level > 0 and most < inf and min(entropy(row, temperature) for row in logits) > most


def entropy(logits: Tensor, temperature: float) -> float:
    """Of the law of one row, in nats."""
    law = torch.log_softmax(logits.double() / temperature, dim=-1)
    return float(-(law.exp() * law).nan_to_num(0.0).sum())
