"""What drafting has cost and brought, so that it is never slower than plain decoding for long.

Every second that a round takes beyond a plain step is charged to a drafter (where somebody insists on drafts, to nobody):
proposing, catching up, verifying its rows, observing. Every token it brought is credited with the seconds that a plain step would
have taken for it. A drafter that is in the red is not asked. Each plain step earns it a small allowance to try again with, and
what others save a larger one. So, whatever is accepted or not:

    seconds <= (1 + EXPLORATION) x plain seconds - (1 - PASSED_ON) x what is saved + START + the largest single loss

where START is in steps of one sequence. Less is spent in company, where it is learnt from all sequences, and on hot sampling
and flat laws, where guesses are rarely right (``exploration``, ``start_steps``). Two accounts: the *standing* of a drafter
under a kind of sampling, alone or in company (kept over restarts), decides whether it may begin with a request and probe; the
account of one request, whether it goes on there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hasten.control import store
from hasten.control.cost import Average

EXPLORATION = 0.01  # of the plain time of a sequence alone, shared by all drafters
PASSED_ON = 0.1  # of what drafting saves, to those that are not asked, shared by all
START_STEPS = 12.0  # plain steps that a model may lose before it has to have brought something: two or three answers that go badly
FREE_START_STEPS = 3.0  # and a drafter whose guesses cost only their rows
MOST_STEPS = 24.0  # of credit that are remembered; more would be spent for too long when the text changes
FIRST_PROBE = 16
LONGEST_PROBE = 1024
STANDING_FORGETTING = 0.99
OWN_FORGETTING = 0.92
PRIOR_ACCEPTANCE, PRIOR_TRIALS = 0.6, 4.0
FLAT_ACCEPTANCE, FLAT_TRIALS = 0.02, 40.0  # the same behind flat laws: one guess that was right there says little
TRYING = {"hot": 0.5, "flat": 0.1}  # times as much as otherwise goes into trying where guesses are rarely right
SHRINKAGE = 5.0  # trials of a request that count as much as all that was seen before it
PROVEN = 30.0  # trials
REMEMBERED_REQUESTS = 8
FEWEST_REQUESTS, HOPED = 4, 0.85  # this stands for those of them that are missing
DEAREST_TRY = 0.1
TOLD = 4.0  # trials of a request from which on it says how well its text is guessed


def exploration(kind: str, sequences: int) -> float:
    """The share of a sequence's plain time that may go into trying, where so many share a step: with n of them the root of n times
    as much is still learnt a step."""
    return EXPLORATION * TRYING.get(kind, 1.0) / math.sqrt(sequences)


def start_steps(paid: bool, kind: str, sequences: int) -> float:
    """Plain steps of one sequence that a drafter may lose at first: fewer where guesses are rarely right. A model shows in
    company what it is worth in fewer steps, as with ``exploration``."""
    steps = max(FREE_START_STEPS, START_STEPS / math.sqrt(sequences)) if paid else FREE_START_STEPS
    return steps * TRYING.get(kind, 1.0)


def prior(kind: str) -> tuple[float, float]:
    """What guesses are taken for before anything is known of them: their acceptance, and the trials that it counts as."""
    return (FLAT_ACCEPTANCE, FLAT_TRIALS) if kind == "flat" else (PRIOR_ACCEPTANCE, PRIOR_TRIALS)


@dataclass(slots=True)
class Evidence:
    """Trials and successes: a level of a draft is tried when the level above it was accepted."""

    successes: float = 0.0
    trials: float = 0.0

    def observe(self, accepted: int, levels: int, forgetting: float) -> None:
        """One round: of ``levels`` drafted ones the first ``accepted`` were accepted."""
        self.successes = self.successes * forgetting + min(accepted, levels)
        self.trials = self.trials * forgetting + min(accepted + 1, levels)

    def acceptance(self, prior: float, strength: float) -> float:
        return (self.successes + strength * prior) / (self.trials + strength)


@dataclass(slots=True)
class Standing:
    """One drafter under one kind of sampling, alone or in company. ``balance`` in seconds, None before its first step; ``reserved``
    is promised to requests that have just begun, ``owed`` was spent on reading texts whose answers go on: what they gain pays that
    first, and it counts against new requests only, until they end without having paid."""

    balance: float | None = None
    reserved: float = 0.0
    owed: float = 0.0
    evidence: Evidence = field(default_factory=Evidence)
    start: float = START_STEPS  # plain steps of credit to begin with
    paid: bool = True
    prior: tuple[float, float] = PRIOR_ACCEPTANCE, PRIOR_TRIALS  # what its guesses are taken for at first, and how firmly
    breadth: Average = field(default_factory=lambda: Average(0.1))  # rows that are verified for each level of a model's draft
    requests: list[float] = field(default_factory=list)  # acceptance of the last ones, the newest at the end

    @property
    def hope(self) -> float:
        """What a request may bring before it has shown anything: the mean of the better half of the last ones, if that is more than
        the mean. One that goes badly is soon given up, one that goes well pays to its end; so it is not the mean that decides."""
        missing = max(0, FEWEST_REQUESTS - len(self.requests))
        best = sorted([*self.requests, *[HOPED] * missing], reverse=True)
        best = best[: (len(best) + 1) // 2]
        return max(self.acceptance, sum(best) / len(best))

    def remember(self, evidence: Evidence, begun: bool) -> None:
        """A request is over. Where the drafter did not begin, one that it had begun is forgotten: texts change."""
        if evidence.trials >= TOLD:
            self.requests = [*self.requests[1 - REMEMBERED_REQUESTS :], evidence.successes / evidence.trials]
        elif not begun:
            self.requests = self.requests[1:]

    @property
    def free(self) -> float:
        return (self.balance or 0.0) - self.reserved

    @property
    def acceptance(self) -> float:
        return self.evidence.acceptance(*self.prior)

    @property
    def proven(self) -> bool:
        """Whether a request may be given more time: what a drafter that is no model loses are only the rows of its guesses."""
        return not self.paid or (self.evidence.trials >= PROVEN and (self.balance or 0.0) > 0.0)

    def book(self, seconds: float, step: float) -> None:
        """Add a gain or a loss; ``step`` is what a plain step takes."""
        before = self.start * step if self.balance is None else self.balance
        self.balance = min(MOST_STEPS * step, before + seconds)

    def to_json(self) -> list[float]:
        return [self.balance or 0.0, self.evidence.successes, self.evidence.trials, *self.requests]

    @classmethod
    def from_json(cls, content: object) -> Standing:
        """Raises ValueError when the content is not what ``to_json`` gives."""
        balance, successes, trials, *requests = store.numbers(content, -1e6, 1e6)
        likely = all(0.0 <= acceptance <= 1.0 for acceptance in requests)
        if not 0.0 <= successes <= trials or len(requests) > REMEMBERED_REQUESTS or not likely:
            raise ValueError("a standing does not fit")
        return cls(balance, evidence=Evidence(successes, trials), requests=requests)


@dataclass(slots=True)
class Own:
    """One drafter on one request. ``reserved`` stands in ``standing``; ``why`` is the last decision in words."""

    balance: float = 0.0
    allowance: float = 0.0
    reserved: float = 0.0
    owed: float = 0.0
    standing: Standing | None = None
    begun: bool = False
    evidence: Evidence = field(default_factory=Evidence)
    tells: Standing | None = None  # whose requests this one is of
    hope: float | None = None  # what the request is expected to bring at first, where that is not the mean
    off: int = 0
    interval: int = FIRST_PROBE
    probing: bool = False
    on: bool = False
    why: str = "not asked yet"
    rounds: int = 0
    asked: int = 0
    saved: float = 0.0

    def __str__(self) -> str:
        state = "on" if self.on else "off"
        return f"{state}, {self.why}; asked in {self.asked} of {self.rounds} rounds, {self.saved:+.2f} s saved"

    def reserve(self, seconds: float, standing: Standing) -> None:
        """Promise that much of the standing's credit to this request."""
        self.release()
        self.reserved, self.standing = seconds, standing
        standing.reserved += seconds

    def release(self) -> None:
        if self.standing is not None:
            self.standing.reserved -= self.reserved
        self.reserved, self.standing = 0.0, None

    def close(self, step: float) -> None:
        """The request is over, at a time when a plain step takes ``step``."""
        self.release()
        if self.tells is not None:
            self.tells.remember(self.evidence, self.begun)
            if self.owed:
                self.tells.owed -= self.owed
                self.tells.book(-self.owed, step)

    def pay_back(self, net: float, reading: float) -> float:
        """A round brought ``net``, after ``reading`` was taken off. What of it stands on the account now: reading is owed until the
        request has gained it."""
        if self.tells is None:
            return net
        due = self.owed + reading
        paid = min(due, max(0.0, net + reading))
        self.tells.owed += due - paid - self.owed
        self.owed = due - paid
        return net + reading - paid

    def acceptance(self, standing: Standing) -> float:
        return self.evidence.acceptance(standing.acceptance if self.hope is None else self.hope, SHRINKAGE)

    def look_forward(self, standing: Standing, price: float, answer: float, kind: str) -> None:
        """Only before the request has begun: it may be hopeful where what was earned pays for a try, and where that takes little of
        what the ``answer`` takes plainly. Hot sampling and flat laws are not."""
        self.tells = standing
        paid = kind not in TRYING and price <= min(standing.free, DEAREST_TRY * answer)
        self.hope = standing.hope if paid else None

    def probe_due(self, rounds: int = 1) -> bool:
        """So many more rounds are passed over; True when it is time to look again."""
        self.off += rounds
        return self.off >= self.interval

    def probe(self, standing: Standing, due: bool, why: str, step: float) -> None:
        """Try a drafter that is off once more where it is ``due`` and its credit allows that."""
        self.on = due and standing.free > 0.0
        if self.on:
            self.probing = True
            self.reserve(step, standing)
            self.why = f"{why}; it is tried again"
        elif due:
            self.why = f"{why}; it is tried again when it has earned that"
        else:
            left = max(1, self.interval - self.off)
            self.why = f"{why}; it is tried again in {left} round{'' if left == 1 else 's'}"

    def settle(self, seconds: float, tried: bool = True) -> None:
        """A round brought (or, negative, cost) that. A probe that paid opens the account again; one that did not doubles the
        wait; one that had nothing to guess, not ``tried``, goes on in the next round."""
        self.saved += seconds
        self.balance = min(self.balance + seconds, 2.0 * self.allowance)
        if not self.probing:
            return
        self.probing = False
        if not tried:
            return
        self.off = 0
        if seconds > 0.0:
            self.balance, self.interval = max(self.balance, self.allowance / 2), 1
        else:
            self.balance, self.interval = (
                max(self.balance, -self.allowance),
                min(max(FIRST_PROBE, self.interval * 2), LONGEST_PROBE),
            )


@dataclass(slots=True)
class Savings:
    """Seconds that all drafters together have saved, and the most that was so far."""

    now: float = 0.0
    most: float = 0.0

    def gained(self, saved: float) -> float:
        """So much more was saved (negative: lost): how much of it makes nothing good that was lost before."""
        self.now += saved
        gained = max(0.0, self.now - self.most)
        self.most += gained
        return gained

    def passed_on(self, saved: float) -> float:
        """So much more was saved (negative: lost): what of it goes to those that were not asked."""
        return PASSED_ON * self.gained(saved)


@dataclass(slots=True)
class Tally:
    """What a drafter did since the engine started: nodes bid, verified and accepted, rounds it was asked in, seconds it took
    and seconds it saved against plain decoding (all its costs taken off)."""

    proposed: int = 0
    verified: int = 0
    accepted: int = 0
    rounds: int = 0
    seconds: float = 0.0
    saved: float = 0.0
    state: str = "on"
    reason: str = "not asked yet"

    def decided(self, on: bool, why: str) -> None:
        """Of a request and round."""
        self.state, self.reason = ("on" if on else "off"), why
        self.rounds += on

    def count(self, proposed: int, verified: int, accepted: int) -> None:
        """Of a round: nodes bid, verified and accepted."""
        self.proposed += proposed
        self.verified += verified
        self.accepted += accepted

    def took(self, seconds: float, saved: float) -> None:
        self.seconds += seconds
        self.saved += saved

    def __str__(self) -> str:
        counts = f"{self.accepted} of {self.verified} verified guesses accepted, {self.saved:+.2f} s saved"
        return f"{self.state}, {self.reason}; {counts}"

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "reason": self.reason,
            "proposed": self.proposed,
            "verified": self.verified,
            "accepted": self.accepted,
            "rounds": self.rounds,
            "seconds": round(self.seconds, 6),
            "saved_s": round(self.saved, 6),
        }
