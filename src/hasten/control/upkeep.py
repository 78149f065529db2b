"""What drafters take outside of the rounds that they are asked in: getting ready for a text, following it, letting go of it.

That is theirs whether they guess or not, so not being asked does not end it. A drafter for which it has taken more than it may is
*let go*: no further text begins with it, and it follows none. It may take a credit to begin with, ``UPKEEP`` of the plain time,
which those share whose credit is not whole, and what it has gained by its guesses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hasten.control.accounts import MOST_STEPS, PASSED_ON, Savings, Standing
from hasten.control.cost import Average, interrupted

UPKEEP = 0.002  # of the plain time; what our own drafters take of an answer is less


@dataclass(slots=True)
class Upkeep:
    """One account a drafter, by its name. ``step`` is the seconds of a plain step of one sequence."""

    accounts: dict[str, Standing] = field(default_factory=dict)
    _savings: dict[str, Savings] = field(default_factory=dict)
    _usual: dict[tuple[str, str], Average] = field(default_factory=dict)
    _earned: float = 0.0  # seconds of plain decoding that nobody has been credited for yet
    _step: float = 0.0

    def pays(self, drafter: str) -> bool:
        """Whether the drafter is worth its upkeep, as far as it is known."""
        account = self.accounts.get(drafter)
        if account is not None and (account.balance or 0.0) <= 0.0:
            self._credit()
        return account is None or (account.balance or 0.0) > 0.0

    def charge(self, drafter: str, call: str, seconds: float, step: float) -> None:
        """The drafter's method ``call`` took that long. Interruptions are on no account."""
        usual = self._usual.setdefault((drafter, call), Average(0.1))
        if usual.value is not None and interrupted(seconds, usual.value):
            return
        usual.observe(seconds)
        self._credit()
        self.accounts.setdefault(drafter, Standing()).book(-seconds, step)

    def earn(self, plain: float, step: float) -> None:
        """So many seconds of plain decoding have passed. Credited when it is asked for: this is called in every step."""
        self._earned += plain
        self._step = step

    def _credit(self) -> None:
        needy = [account for account in self.accounts.values() if (account.balance or 0.0) < MOST_STEPS * self._step]
        for account in needy:
            account.book(UPKEEP * self._earned / len(needy), self._step)
        self._earned = 0.0

    def gain(self, drafter: str, net: float, step: float) -> None:
        """A round of the drafter's brought that, or cost it; what it lost in rounds is made good first."""
        account = self.accounts.get(drafter)
        if account is not None:
            gained = self._savings.setdefault(drafter, Savings()).gained(net)
            if gained:
                account.book((1.0 - PASSED_ON) * gained, step)
