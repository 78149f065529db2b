"""Places in stored texts where the end of a sequence occurred before, and what they say comes next. No numpy, no torch.

Each match votes for the token that followed it, the more the longer it is, the more recent, and the more its text is trusted. A
token's score is its share of all votes, less a constant that stands for "none of them": the escape of prediction by partial
matching (Cleary and Witten 1984). So texts of different kinds vote together, a long match outweighs many short ones wherever it
was found, and the scores of siblings never sum to one.
"""

from __future__ import annotations

from typing import Protocol

LONGEST_MATCH = 32  # longer ones are not told apart
BOUNDARY = -1  # stands between the texts of a store; equals no token


class Text(Protocol):
    """Tokens that can be read one by one: a list, or a memoryview of int32."""

    def __getitem__(self, index: int, /) -> int: ...

    def __len__(self) -> int: ...


# A text, the index of the token that followed, how many tokens before it agree, and the weight of the vote by that number.
Match = tuple[Text, int, int, list[float]]


def weights(trust: float, power: float, ranks: int) -> list[list[float]]:
    """For each rank of recency the weight of a vote by the match's length: trust * length^power / sqrt(1 + rank)."""
    by_length = [trust * float(length) ** power for length in range(LONGEST_MATCH + 1)]
    return [[weight * (1.0 + rank) ** -0.5 for weight in by_length] for rank in range(ranks)]


def vote(matches: list[Match], escape: float, doubt: float) -> list[tuple[int, float, list[Match]]]:
    """The tokens that followed ``matches``: (token, P(accepted | parent accepted), the matches that agree, moved on by one).

    ``escape`` is the weight of "none of the tokens seen before"; ``doubt`` is what is left of it, as a share of all votes, where
    they outweigh everything. Tokens stand in the order of their first match. A match at the end of its text says nothing.
    """
    votes: dict[int, float] = {}
    agreeing: dict[int, list[Match]] = {}
    for text, at, length, by_length in matches:
        try:
            token = text[at]
        except IndexError:
            continue
        longer = length + 1 if length < LONGEST_MATCH else LONGEST_MATCH
        if token in votes:
            votes[token] += by_length[length]
            agreeing[token].append((text, at + 1, longer, by_length))
        elif token >= 0:
            votes[token] = by_length[length]
            agreeing[token] = [(text, at + 1, longer, by_length)]
    total = escape + (1.0 + doubt) * sum(votes.values())
    return [(token, weight / total, agreeing[token]) for token, weight in votes.items()]
