"""What drafting usually takes, so that what held it up (a process that was stopped, a machine that swapped) is not
taken for its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hasten.control.cost import Average, interrupted
from hasten.control.rounds import Round
from hasten.control.step_costs import StepCosts


@dataclass(slots=True)
class UsualTime:
    """Seconds that drafting takes in a step in which somebody is asked, but for what it reads."""

    _usual: Average = field(default_factory=lambda: Average(0.1))

    def counted(self, asked: float, rounds: Sequence[Round], costs: StepCosts) -> float:
        """What counts of the ``asked`` seconds of drafting in a step of these ``rounds``. Where they can only be an interruption it
        is nothing, and on nobody's account: one such step would keep a drafter off for hours."""
        if self._held_up(asked, rounds, costs):
            for round in rounds:
                round.seconds = dict.fromkeys(round.seconds, 0.0)
                round.catching_up.clear()
            return 0.0
        if any(round.seconds for round in rounds):  # else it would be forgotten over plain steps, and the next try be free
            self._usual.observe(asked - sum(sum(round.catching_up.values()) for round in rounds))
        return asked

    def _held_up(self, asked: float, rounds: Sequence[Round], costs: StepCosts) -> bool:
        usual = self._usual.value
        if usual is None or not interrupted(asked, usual):
            return False
        due = sum(costs.reading(drafter, round.to_read(drafter)) for round in rounds for drafter in round.catching_up)
        return interrupted(asked, usual + due)
