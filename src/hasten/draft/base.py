"""What a drafter is: whoever can guess the next tokens of a sequence cheaply. No torch.

A drafter never decides what is emitted, and what it is shown of sequences are copies, so nothing it does can change the text; but
whoever ``draws`` has to report truly what from, or the text has another law. It may be wrong, slow or silent; when it raises, the
engine stops asking it for that request. What it takes is charged to it: guessing and ``observe`` against what its guesses bring;
``begin``, ``follow`` and ``end`` as its upkeep.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from hasten.core.types import DraftTree, Sequence, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from hasten.sampling.laws import DraftLaws


def believed(score: float) -> float:
    """A score taken at its word."""
    return score


@dataclass(frozen=True, slots=True)
class DraftBudget:
    """What one sequence may be given in one round.

    ``nodes`` bounds the size of its tree and ``depth`` the depth of its nodes, so that no draft runs past max_tokens or the
    context. ``minimum_survival`` is for drafters that pay for every level: they stop when the most likely node of their
    frontier survives with less, a node's survival being the product of ``calibrated`` scores along its path. ``most_entropy``
    (nats) stops them before a level that they are less sure of (AdaEDL, 2410.18351); a first level is always drafted.

    Drafters whose nodes cost nothing leave these choices to the controller, and stop at the first of their nodes, the likeliest
    first, that would never be verified: the one behind ``n`` others that survives with less than ``floors[n]``.

    ``ahead`` is for drafters that are a model: a row more in one of its passes is worth its cost where it saves the next pass with
    that chance, for the first such row, the second ... none beyond the last.
    """

    nodes: int
    depth: int
    minimum_survival: float = 0.0
    calibrated: Callable[[float], float] = believed
    most_entropy: float = inf
    floors: Row[float] = ()
    ahead: Row[float] = ()


class Drafter:
    """Base of all drafters: every method does nothing, so that a drafter writes only those that it needs.

    The engine calls ``begin`` once before a sequence's first ``propose`` (its tokens are the prompt, and what was generated
    so far), ``end`` once after its last; neither of sequences that the drafter takes no part in. Between them it may leave out any
    number of rounds: ``sequence.tokens`` may have grown by any amount between two calls, but it never shrinks or changes.
    Sequences are told apart by ``sequence.id``. Within one call, proposals of equal sequences are equal, whoever else is in it.
    """

    name: str = "none"  # what it is registered as, and what its guesses are named by
    paid: bool = False  # whether each level costs a model's pass, so that it is only asked for where it pays
    reads: bool = True  # of a paid drafter: whether it has to read a text before it can guess what follows
    follows: bool = False  # whether it wants to be told the target's states
    draws: bool = False  # whether it can say which laws its nodes were drawn from, for verification by rejection
    likeliest_wanted: int = 0  # how many of the target's likeliest tokens a row ``Verdict.likeliest`` should hold
    seconds_per_pass: float | None = None  # of a paid drafter: what its last passes took, one with another, if it knows
    passes: int = 0  # that its last call made, those that only read aside
    foreseen: float | None = None  # share of the levels of its last call behind which another one takes no pass of its own
    passed_over: frozenset[int] = frozenset()  # ids of its last call's sequences whose text it did not come to read
    identity: str = ""  # of a drafter that is a model: what it is and in what precision; then ``pass_seconds`` can be asked
    positions: int = 0  # and how many positions its pool holds

    def begin(self, sequence: Sequence) -> None:
        """Get ready for a sequence, with whatever memory it takes."""

    def serves(self, sequence: Sequence) -> bool:
        """Whether there may ever be a guess for this sequence; asked once, after ``begin``. False: it is never asked for any."""
        return True

    def recalled(self, sequence: Sequence) -> int:
        """How many of the sequence's tokens a drafter that reads need not read any more; asked once, after ``begin``."""
        return 0

    def follow(self, sequence: Sequence, state: Tensor) -> None:
        """The target's last hidden state, [hidden], where it chose the sequence's last token; only to be read. Told to those who
        ``follows`` after every step that gave the sequence a token, also after plain ones; where nobody is asked for some steps,
        only after the last of these."""

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        """One tree a sequence, maybe empty, of guesses at what follows ``sequence.tokens``."""
        return [DraftTree() for _ in sequences]

    def draw(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[tuple[DraftTree, DraftLaws]]:
        """``propose`` for verification by rejection, asked of those who ``draws``: trees, and how their nodes came about.

        What is there of a tree must follow ``laws.DraftLaws``: never from a node's own token, nor from later ones. All of it is
        verified. Nodes that are proposed without chance are simply not among the drawn ones.
        """
        raise NotImplementedError(f"{self.name} draws nothing")

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        """Learn what became of the nodes that were verified; ``sequence.tokens`` has grown by ``verdict.tokens`` already.

        Called after the sequence's first token and after rounds in which this drafter was asked; not after plain ones, so that a
        drafter that is off costs nothing."""

    def end(self, sequence: Sequence) -> None:
        """Let go of everything kept for the sequence."""

    @property
    def bytes(self) -> int:
        """About how much memory the texts that it has indexed and what it has learnt take now, of all requests and tenants;
        networks and files that are mapped left out. Asked from any thread."""
        return 0

    def pass_seconds(self, rows: int, context: int) -> float:
        """Of a drafter that is a model: what one pass over that many rows of one sequence takes now, to measure its cost curve.
        Asked before the first sequence begins."""
        raise NotImplementedError(f"{self.name} is no model")


class NoDrafter(Drafter):
    """Guesses nothing: plain decoding."""


def held(memory: int) -> str:
    """So many bytes as the end of a line about a drafter; nothing where they are too few to matter."""
    return f"; holds {memory / 1e6:.1f} MB" if memory >= 50_000 else ""
