"""Draft along a text that the caller expects, as when a file is asked for again with a small change (OpenAI's ``prediction``).

The answer is followed through the prediction by an expected place, which moves on with every token. Where the answer departs from
the prediction, the place first moves on as well (a token was replaced), and is set anew where the answer's last two or more
tokens occur, the longest match first, then the nearest one (something was inserted or left out). So a change costs a few plain
tokens and the rest is drafted again. Every place that agrees with the answer's last token has a vote, as in prompt lookup
(``draft.matches``), the nearest ones and the longest matches the heaviest.

A prediction can be wrong from start to end: it then costs rows until its scores are calibrated, never a wrong token.
"""

from __future__ import annotations

from bisect import bisect_left

from hasten.core.types import DraftTree, Sequence
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.best_first import best_first
from hasten.draft.matches import LONGEST_MATCH, Match, vote, weights

MOST_PLACES = 8  # looked at on each side of the expected place, for each length of key
FAITHFUL = 4  # an answer that is the prediction so far is trusted like a match this much longer
REPLACED = 1  # a place that is only expected, as a replaced token would have it, is trusted like a match of this length
LEAST_RESUME = 2  # a shorter match does not move the expected place
ESCAPE = 4.0  # weight of "something else", as much as a match of two tokens
DOUBT = 0.02  # what is left of it where a long match stands alone

BYTES = 300  # of memory a predicted token
_WEIGHTS = weights(1.0, 2.0, 4 * MOST_PLACES + 1)


class Follower:
    """One answer beside its prediction. ``expected`` is the place in the prediction of the answer's next token."""

    def __init__(self, prediction: list[int]) -> None:
        self.expected = 0
        self._prediction = list(prediction)
        self._answer: list[int] = []
        self._faithful = True
        self._agreed = 0  # the answer's last tokens that stand before the expected place, too
        self._ends: dict[tuple[int, ...], list[int]] = {}  # where the last token of each single token and pair stands
        for end in range(len(self._prediction)):
            for length in (1, 2):
                if end + 1 >= length:
                    self._ends.setdefault(tuple(self._prediction[end + 1 - length : end + 1]), []).append(end)

    @property
    def bytes(self) -> int:
        """Of memory, about."""
        return BYTES * len(self._prediction)

    @property
    def answered(self) -> int:
        return len(self._answer)

    def extend(self, tokens: list[int]) -> None:
        """The answer goes on with these committed tokens."""
        for token in tokens:
            self._answer.append(token)
            if self.expected < len(self._prediction) and self._prediction[self.expected] == token:
                self.expected += 1
                self._agreed += 1
                continue
            self._faithful = False
            self.expected += 1
            self._agreed = 0
            self._resume()

    def _resume(self) -> None:
        """Set the expected place behind the longest match, the nearest of equals; leave it where none is long enough."""
        lengths = [(self._match_length(end), end) for end in self._near()]
        longest, end = max(lengths, key=lambda found: found[0], default=(0, 0))  # the first of equals, so the nearest
        if longest >= LEAST_RESUME:
            self.expected, self._agreed = end + 1, longest

    def _near(self) -> list[int]:
        """Ends of places that agree with the answer's last token, and its last two, near the expected place; nearest first."""
        found: set[int] = set()
        for length in (1, 2):
            ends = self._ends.get(tuple(self._answer[-length:]), [])
            at = bisect_left(ends, self.expected - 1)
            found.update(ends[max(0, at - MOST_PLACES) : at + MOST_PLACES])
        return sorted(found, key=lambda end: (abs(end + 1 - self.expected), end))

    def _match_length(self, end: int) -> int:
        most = min(LONGEST_MATCH, end + 1, len(self._answer))
        length = 0
        while length < most and self._prediction[end - length] == self._answer[-1 - length]:
            length += 1
        return length

    def matches(self) -> list[Match]:
        """Places that may come next, the expected one first."""
        length = min(LONGEST_MATCH, self._agreed + (FAITHFUL if self._faithful else 0))
        found = [(self.expected, max(REPLACED, length))]
        found += [(end + 1, self._match_length(end)) for end in self._near() if end + 1 != self.expected]
        return [(self._prediction, at, length, _WEIGHTS[rank]) for rank, (at, length) in enumerate(found)]


def _follow(matches: list[Match]) -> list[tuple[int, float, list[Match]]]:
    return vote(matches, ESCAPE, DOUBT)


class PredictionDrafter(Drafter):
    """One ``Follower`` for each sequence that has a ``prediction``; the others get empty trees. Nothing is shared.

    The nodes cost nothing until they are verified, so only ``budget.floors`` ends a tree early. Memory: some 300 bytes a predicted
    token, freed with its sequence.
    """

    name = "prediction"

    def __init__(self) -> None:
        self._followers: dict[int, Follower] = {}

    def begin(self, sequence: Sequence) -> None:
        """Index the prediction. Beginning again starts over."""
        self._followers.pop(sequence.id, None)
        if sequence.prediction:
            self._followers[sequence.id] = Follower(sequence.prediction)

    def serves(self, sequence: Sequence) -> bool:
        return sequence.id in self._followers

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        """Follow the answer to where it is now, and grow a tree along what is predicted from there."""
        trees: list[DraftTree] = []
        for sequence, budget in zip(sequences, budgets, strict=True):
            follower = self._followers.get(sequence.id)
            if follower is None:
                trees.append(DraftTree())
                continue
            follower.extend(sequence.tokens[sequence.prompt_length + follower.answered :])
            trees.append(best_first(follower.matches(), _follow, budget, self.name))
        return trees

    def end(self, sequence: Sequence) -> None:
        """Free the sequence's index."""
        self._followers.pop(sequence.id, None)

    @property
    def bytes(self) -> int:
        return sum(follower.bytes for follower in [*self._followers.values()])
