"""How long answers are: what is still to come of one that has so many tokens, and whether to wait before paying for it. No torch.

Answers of a dozen tokens and of hundreds come one after the other, and which it will be nobody knows at its beginning. But one that
has become long is likely to go on. So what has to be paid once, and comes back token by token, may be worth paying later: in the
mean over the lengths remembered, of which those that an answer has outgrown count no more (optimal stopping over the empirical law
of lengths).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hasten.control import store
from hasten.control.rounds import Round

REMEMBERED = 32  # answers
MOST_READING = 0.5  # of what an answer has taken plainly so far: no more is read for it at once
WORTH = 2.0  # times what reading takes: less is not worth it, for what it will bring is a guess
FEW = 4.0  # tokens of an answer that say little of how well it is guessed
BEFORE_ANY = (8.0, 16.0, 32.0, 64.0, 96.0, 128.0, 192.0, 384.0)  # lengths, until others have taken their place


@dataclass(slots=True)
class Lengths:
    """Lengths in tokens of the last answers that came to their end, the newest last."""

    recent: deque[float] = field(default_factory=lambda: deque(BEFORE_ANY, REMEMBERED))

    def observe(self, length: float) -> None:
        self.recent.append(length)

    def left(self, so_far: int, most: int) -> float:
        """Tokens still expected of an answer that has ``so_far`` and may have ``most`` more."""
        rests = self._rests(so_far, most)
        return sum(rests) / len(rests)

    def saved(self, so_far: int, most: int, gain: float, price: float) -> float:
        """What an answer gains on the mean by paying ``price`` now for ``gain`` a token; 0 where that is not more than nothing, and
        where paying later, for those answers only that have not ended by then, promises more."""
        later, total, count = 0.0, 0.0, 0
        rests = sorted(self._rests(so_far, most), reverse=True)
        for rest in rests:  # wait until those that have no more than this have ended
            later = max(later, (total - count * rest) * gain - count * price)
            total, count = total + rest, count + 1
        now = total * gain - count * price
        return now / count if now > later else 0.0

    def _rests(self, so_far: int, most: int) -> list[float]:
        """Of the answers that were longer than this one is, what they still had; of one longer than all, as much as it has."""
        rests = [min(length - so_far, most) for length in self.recent if length > so_far]
        return rests or [float(min(max(1, so_far), most))]

    def to_json(self) -> list[float]:
        return list(self.recent)

    @classmethod
    def from_json(cls, content: object) -> Lengths:
        """Raises ValueError when the content is not what ``to_json`` gives."""
        lengths = store.numbers(content, 1.0, 1e9)
        if not 0 < len(lengths) <= REMEMBERED:
            raise ValueError("lengths of answers are missing, or too many")
        return cls(deque(lengths, REMEMBERED))


def why_not_read(lengths: Lengths, round: Round, steps: int, unit: float, reading: float, allowance: float, gain: float) -> str:
    """Why a drafter may not read the text of an answer now, which takes ``reading`` seconds; empty where it may: where that comes
    back on the mean, and an answer that ends right after it has not taken longer by half of its plain time and ``allowance``.

    The drafter makes ``gain`` times as many tokens of a step for which others have no guesses; ``steps`` is how many the answer
    has taken, which tells how often they have some, and ``unit`` what a plain one takes."""
    if reading > allowance + MOST_READING * round.generated * unit:
        return f"reading the text takes {reading:.2f} s, too much for an answer of {round.generated} tokens so far"
    unguessed = min(1.0, (steps + FEW) / (round.generated + FEW))  # of the answer's tokens
    a_token = unguessed * unit * (1.0 - 1.0 / gain)
    if not lengths.saved(round.generated, round.tokens_left, a_token, WORTH * reading):
        return f"reading the text takes {reading:.2f} s and would save {1e3 * a_token:.1f} ms a token, of which too few may follow"
    return ""
