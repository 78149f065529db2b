"""What one answered prompt leaves behind when it is measured. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

UNSENT = -1  # stands for a token that was made, and of which a server has said no more (the last one, inside a character)


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt answered once.

    ``first_s`` are the seconds from handing the request over to its first token (TTFT: queueing and prompt included),
    ``decode_s`` those from the first token to the last. ``rounds`` counts verification passes after the first token, plain ones
    too; ``drafted`` and ``accepted`` count nodes by drafter. ``by_position[d]`` holds, of the rounds that drafted deeper than d,
    how many there were and how many accepted a guess at depth d + 1.
    """

    tokens: list[int]
    prompt_tokens: int
    first_s: float
    decode_s: float
    rounds: int = 0
    drafted: dict[str, int] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    by_position: list[tuple[int, int]] = field(default_factory=list)
    cached: int = 0
    text: str = ""

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed, the prompt left out; None for fewer than two tokens."""
        return (len(self.tokens) - 1) / self.decode_s if len(self.tokens) > 1 and self.decode_s > 0 else None

    @property
    def tokens_per_round(self) -> float | None:
        return (len(self.tokens) - 1) / self.rounds if self.rounds else None


def first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    """Where two answers part, None where they are equal as far as is known."""
    for at, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other and UNSENT not in (one, other):
            return at
    return None if len(left) == len(right) else min(len(left), len(right))
