"""What drafters take outside of the rounds that they are asked in, and passes that they do not time, is on their accounts. On the
simulated machines of ``test_control_never_slower``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from hasten.control.memory import Memory
from hasten.control.upkeep import Upkeep
from hasten.core.types import DraftTree, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.engine.drafting import Drafting
from test_control_never_slower import FLAT, STEEP, Accepts, Clock, Machine, Scripted, always, never

STEP = FLAT[1]


@dataclass
class Busy(Scripted):
    """Takes its time in methods that are no guessing."""

    beginning: float = 0.0
    following: float = 0.0
    ending: float = 0.0
    followed: int = 0
    begun: int = 0
    ended: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.follows = self.following > 0.0

    def begin(self, sequence: Sequence) -> None:
        self.begun += 1
        self.clock.now += self.beginning

    def follow(self, sequence: Sequence, state: torch.Tensor) -> None:
        self.followed += 1
        self.clock.now += self.following

    def end(self, sequence: Sequence) -> None:
        self.ended += 1
        self.clock.now += self.ending


def machine(law: Accepts, make: Callable[[Clock], Drafter], batch: int = 1) -> Machine:
    return Machine(lambda clock: [make(clock)], {"busy": law}, FLAT, batch=batch)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("where", ["beginning", "ending"])
@pytest.mark.parametrize("steps", [0.5, 20.0])
def test_never_slower_by_getting_ready_or_cleaning_up(where: str, steps: float, batch: int) -> None:
    simulated = machine(never, lambda clock: Busy(clock, "busy", **{where: steps * STEP}), batch)  # type: ignore[arg-type]
    simulated.run(2000 * batch)
    assert simulated.run(4000 * batch) <= 1.015
    tally = simulated.drafting.statistics()["busy"]
    drafter = simulated.made[0]
    assert isinstance(drafter, Busy)
    assert tally.seconds >= 0.95 * steps * STEP * (drafter.begun if where == "beginning" else drafter.ended)
    assert tally.saved < 0.0


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machines tell drafters of states, as the engine does."""
    observe = Drafting.observe

    def told(self: Drafting, sequence: Sequence, tree: DraftTree, verdict: Verdict, logits: torch.Tensor) -> None:
        observe(self, sequence, tree, verdict, logits, torch.zeros(1 + len(tree), 1))

    monkeypatch.setattr(Drafting, "observe", told)


@pytest.mark.usefixtures("states")
@pytest.mark.parametrize("steps", [0.05, 1.0])
def test_never_slower_by_following(steps: float) -> None:
    simulated = machine(never, lambda clock: Busy(clock, "busy", following=steps * STEP))
    simulated.run(2000)
    assert simulated.run(4000) <= 1.015
    drafter = simulated.made[0]
    assert isinstance(drafter, Busy)
    assert drafter.followed < 1500
    assert drafter.ended in (drafter.begun, drafter.begun - 1)  # who is let go in the middle still cleans up


class Attentive(Busy):
    """Notes how far its states were behind when it was asked."""

    behind: ClassVar[list[int]] = []
    told: ClassVar[dict[int, int]] = {}

    def follow(self, sequence: Sequence, state: torch.Tensor) -> None:
        super().follow(sequence, state)
        self.told[sequence.id] = len(sequence.tokens)

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        self.behind.extend(len(sequence.tokens) - self.told.get(sequence.id, 0) for sequence in sequences)
        return super().propose(sequences, budgets)


@pytest.mark.usefixtures("states")
@pytest.mark.parametrize("batch", [1, 8])
def test_nobody_follows_while_nobody_is_asked(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who is asked again has the state behind the last token."""
    monkeypatch.setattr(Attentive, "behind", [])
    monkeypatch.setattr(Attentive, "told", {})
    simulated = Machine(
        lambda clock: [Attentive(clock, "busy", level=0.3 * STEP, following=1e-6 * STEP)],
        {"busy": never},
        STEEP,
        batch=batch,
        length=1024,
    )
    simulated.run(4000 * batch)
    drafter = simulated.made[0]
    assert isinstance(drafter, Busy)
    assert drafter.followed < simulated.steps * batch / 4
    assert len(Attentive.behind) > 10
    assert sum(behind > 0 for behind in Attentive.behind) <= len(Attentive.behind) / 4, (
        "but for those that another one's start surprised"
    )


@pytest.mark.usefixtures("states")
def test_upkeep_that_pays_goes_on() -> None:
    simulated = machine(always, lambda clock: Busy(clock, "busy", beginning=STEP, following=0.3 * STEP, ending=STEP))
    simulated.run(1000)
    drafter = simulated.made[0]
    assert isinstance(drafter, Busy)
    before = drafter.begun, simulated.drafting.statistics()["busy"].rounds
    assert simulated.run(3000) < 0.6
    assert drafter.begun - before[0] >= 3000 // 128 - 1
    assert drafter.followed > 0.9 * simulated.steps


def test_cheap_drafters_are_let_go_for_nothing() -> None:
    """What suffix takes to index a text is a thousandth of the answer, whoever is beside it."""
    simulated = Machine(
        lambda clock: [Busy(clock, "cheap", beginning=0.02 * STEP), Busy(clock, "busy", beginning=20 * STEP)],
        {"cheap": never, "busy": never},
        FLAT,
    )
    simulated.run(8000)
    cheap, busy = simulated.made
    assert isinstance(cheap, Busy)
    assert isinstance(busy, Busy)
    assert cheap.begun == next(simulated.ids)
    assert busy.begun < 10


def test_upkeep_is_kept_over_restarts_and_interruptions_are_not_charged(tmp_path: Path) -> None:
    simulated = machine(never, lambda clock: Busy(clock, "busy", beginning=20 * STEP))
    simulated.run(300)
    memory = Memory(tmp_path / "learnt.json")
    memory.save(simulated.drafting.controller)
    fresh = machine(never, lambda clock: Busy(clock, "busy", beginning=20 * STEP))
    assert fresh.controller is not None
    assert fresh.controller.upkeep.pays("busy")
    assert memory.load(fresh.controller)
    assert not fresh.controller.upkeep.pays("busy")
    upkeep = Upkeep()
    for seconds in (0.001, 0.001, 60.0):
        upkeep.charge("busy", "begin", seconds, STEP)
    assert upkeep.pays("busy")
    upkeep.charge("busy", "end", 60.0, STEP)  # not known yet to be anything else
    assert not upkeep.pays("busy")


@dataclass
class Mute(Scripted):
    """A model that says nothing of its passes."""

    reads: bool = False
    silent: bool = False

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        trees = Scripted.propose(self, sequences, budgets)
        self.seconds_per_pass, self.passes = None, 0
        return [DraftTree() for _ in trees] if self.silent else trees


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("reads", "silent"), [(False, False), (True, False), (True, True)])
def test_a_model_that_does_not_time_its_passes_is_timed(reads: bool, silent: bool, batch: int) -> None:
    """A level takes ten plain steps."""
    simulated = Machine(
        lambda clock: [Mute(clock, "busy", level=10 * STEP, reads=reads, silent=silent)], {"busy": never}, FLAT, batch=batch
    )
    simulated.run(1500 * batch)
    assert simulated.run(3000 * batch) <= 1.02
    assert simulated.drafting.statistics()["busy"].state == "off"


def test_a_model_that_does_not_time_its_passes_is_used_where_it_pays() -> None:
    simulated = Machine(
        lambda clock: [Mute(clock, "busy", level=0.3 * STEP, reading=0.02 * STEP, reads=True)], {"busy": always}, FLAT
    )
    simulated.run(1000)
    assert simulated.run(2000) < 0.7
