"""The controller against simulated machines: a clock that only simulated work moves, and drafts accepted as scripted.

The promise under test: whatever is accepted, decoding with drafts takes at most 2 % longer than plain decoding over a long run,
and where drafts pay they are used.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from hasten.control.controller import Controller
from hasten.control.cost import CostCurve
from hasten.control.memory import Memory
from hasten.control.step_costs import StepCosts
from hasten.core.config import SpeculationParams
from hasten.core.types import ROOT, DraftTree, SamplingParams, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.engine.drafting import Drafting
from hasten.engine.scheduler import Scheduled

Accepts = Callable[[int, int], float]  # P(a level is accepted) by token number of the whole run, and sequence

FLAT = {1: 0.050, 8: 0.056, 16: 0.065, 32: 0.100, 64: 0.180}
STEEP = {1: 0.010, 2: 0.018, 4: 0.034, 8: 0.066, 64: 0.50}
STEPS = {1: 0.020, 4: 0.020, 5: 0.035, 8: 0.035, 9: 0.060, 64: 0.2}
OVERHEAD, OVERHEAD_ROW = 0.0004, 0.0002
NO_LOGITS = torch.empty(0, 0)  # the drafters here do not ask for the target's likeliest tokens


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Scripted(Drafter):
    """Proposes chains of ``token`` until the budget's survival. ``level`` seconds a level and, for each token it has not read,
    ``reading`` seconds."""

    clock: Clock
    label: str
    token: int = 1
    level: float = 0.0
    reading: float = 0.0
    score: float = 0.8
    deepest: int = 24
    _read: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name, self.paid, self.seconds_per_pass = self.label, self.level > 0.0, None

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        trees = [DraftTree() for _ in sequences]
        longest = 0
        for sequence, budget, tree in zip(sequences, budgets, trees, strict=True):
            unread = len(sequence.tokens) - self._read.get(sequence.id, 0)
            self._read[sequence.id] = len(sequence.tokens)
            self.clock.now += self.reading * unread if unread > 64 else 0.0
            parent, survival = ROOT, 1.0
            while len(tree) < min(budget.depth, budget.nodes, self.deepest) and survival >= budget.minimum_survival:
                parent = tree.add(parent, self.token, self.score, self.name)
                survival *= budget.calibrated(self.score)
            longest = max(longest, len(tree))
        self.clock.now += longest * self.level + 0.00002 * len(sequences)
        if longest and self.paid:
            self.seconds_per_pass, self.passes = self.level, longest
        return trees


@dataclass
class Machine:
    """Decodes ``batch`` requests at a time with drafts and, on a second clock, without."""

    drafters: Callable[[Clock], list[Drafter]]
    accepts: dict[str, Accepts]
    points: dict[int, float]
    believed: dict[int, float] | None = None  # what the profile said, where it was wrong
    batch: int = 1
    length: int = 128
    prompt: int = 60
    noise: float = 0.0
    wish: SpeculationParams = field(default_factory=SpeculationParams)
    rule: str = "auto"
    depth: int = 0
    seed: int = 5
    clock: Clock = field(default_factory=Clock)
    controller: Controller | None = None

    def __post_init__(self) -> None:
        self.truth = CostCurve.measured(self.points)
        self.plain = 0.0
        self.tokens = 0
        self.rng = random.Random(self.seed)
        self.made = self.drafters(self.clock)
        if self.controller is None:
            self.controller = Controller(
                StepCosts(CostCurve.measured(self.believed or self.points)), rule=self.rule, depth=self.depth
            )
        self.drafting = Drafting(self.made, self.controller, 8, clock=self.clock)
        self.ids = itertools.count()
        self.running: list[Sequence] = []
        self.steps = 0

    def step_seconds(self, rows: int) -> float:
        """A hiccup now and then where there is noise, as on a machine that others use."""
        hiccup = 6.0 if self.noise and self.rng.random() < 0.01 else 1.0
        return (self.truth.predict(rows) * (1 + self.noise * self.rng.random()) + OVERHEAD + OVERHEAD_ROW * rows) * hiccup

    def run(self, tokens: int) -> float:
        """Decode that many tokens more; seconds over plain seconds."""
        started, plain, until = self.clock.now, self.plain, self.tokens + tokens
        while self.tokens < until:
            while len(self.running) < self.batch:
                sequence = Sequence(
                    next(self.ids), "r", SamplingParams(), 0, [0] * (self.prompt + 1), self.prompt, self.prompt + self.length
                )
                self.drafting.begin(sequence, self.wish)
                self.running.append(sequence)
            self.step()
        return (self.clock.now - started) / (self.plain - plain)

    def finish(self) -> None:
        """Let those that are running come to their end."""
        while self.running:
            self.step()

    def step(self) -> None:
        self.steps += 1
        items = [Scheduled(sequence, 1) for sequence in self.running]
        for item in items:
            item.sequence.computed = len(item.sequence.tokens) - 1
        began = self.clock.now
        self.drafting.propose(items, 512)
        rows = sum(1 + len(item.tree) for item in items)
        whole = self.step_seconds(rows)
        forward = whole - OVERHEAD - OVERHEAD_ROW * rows
        self.clock.now += whole
        brought = 0
        for item in items:
            brought += self._verify(item)
        self.tokens += brought
        mean = 1 + self.noise / 2
        hiccups = 1.05 if self.noise else 1.0
        count = len(items)
        self.plain += brought / count * (self.truth.predict(count) * mean + OVERHEAD + OVERHEAD_ROW * count) * hiccups
        self.drafting.settle(items, rows, forward, self.clock.now - began)

    def _verify(self, item: Scheduled) -> int:
        sequence, tree = item.sequence, item.tree
        path: list[int] = []
        at = ROOT
        while len(path) + 1 < sequence.tokens_left:
            children = [node for node, parent in enumerate(tree.parents) if parent == at]
            wanted = [n for n in children if self.rng.random() < self.accepts[tree.drafters[n]](self.tokens, sequence.id)]
            if not wanted:
                break
            path.append(wanted[0])
            at = wanted[0]
        verdict = Verdict(path, [tree.tokens[node] for node in path] + [2])
        sequence.tokens += verdict.tokens
        self.drafting.observe(sequence, tree, verdict, NO_LOGITS)
        if sequence.tokens_left <= 0:
            sequence.finish_reason = "length"
            self.running.remove(sequence)
            self.drafting.end(sequence)
        return len(verdict.tokens)


def never(token: int, sequence: int) -> float:
    return 0.0


def always(token: int, sequence: int) -> float:
    return 0.97


def often(token: int, sequence: int) -> float:
    return 0.75


def alternating(period: int) -> Accepts:
    return lambda token, sequence: 0.9 if token // period % 2 == 0 else 0.0


def sudden(token: int, sequence: int) -> float:
    return 0.95 if token < 4000 else 0.0


def by_request(token: int, sequence: int) -> float:
    return 0.9 if sequence % 3 == 0 else 0.02


def tempting(token: int, sequence: int) -> float:
    """Just below what pays on most machines."""
    return 0.35


ADVERSARIES = {
    "never": never, "tempting": tempting, "sudden": sudden, "by request": by_request, "period 7": alternating(7),
    "period 40": alternating(40), "period 300": alternating(300),
    "period 2000": alternating(2000), "often": often, "always": always,
}  # fmt: skip
MACHINES = {"flat": FLAT, "steep": STEEP, "steps": STEPS}


def text_and_model(level: float, reading: float) -> Callable[[Clock], list[Drafter]]:
    return lambda clock: [Scripted(clock, "text", score=0.6, deepest=12), Scripted(clock, "model", 3, level=level, reading=reading)]


def only_text(clock: Clock) -> list[Drafter]:
    return [Scripted(clock, "text", score=0.6, deepest=12)]


def run(model: Accepts, text: Accepts, machine: str, batch: int, tokens: int, **settings: Any) -> tuple[float, Machine]:
    points = MACHINES[machine]
    laws = {"text": text, "model": model}
    simulated = Machine(text_and_model(points[1] * 0.3, points[1] * 0.02), laws, points, batch=batch, **settings)
    return simulated.run(tokens), simulated


@pytest.mark.parametrize("adversary", ["never", "tempting", "sudden", "by request", "period 7", "period 300"])
def test_never_slower_with_a_draft_model(adversary: str) -> None:
    assert run(ADVERSARIES[adversary], never, "flat", 1, 3500)[0] <= 1.02


@pytest.mark.parametrize("machine", ["steep", "steps"])
def test_never_slower_where_rows_cost(machine: str) -> None:
    assert run(tempting, alternating(40), machine, 1, 3000)[0] <= 1.02


def test_never_slower_in_a_batch_of_16() -> None:
    assert run(tempting, never, "flat", 16, 24_000)[0] <= 1.02


def test_little_is_spent_on_trying_where_many_share_a_step() -> None:
    """What is tried is learnt from every sequence, so it need not take as large a share of them all."""
    _, simulated = run(never, never, "flat", 16, 24_000)
    assert simulated.run(24_000) <= 1.003


def test_never_slower_with_long_prompts_and_short_answers() -> None:
    """Reading the prompt with the draft model costs 20 plain steps, and the answers have 16 tokens: it is never read twice."""
    ratio, simulated = run(always, never, "flat", 1, 3000, prompt=1000, length=16)
    assert ratio <= 1.02
    assert "reading" in simulated.drafting.controller.tallies["model"].reason


def test_long_prompts_are_read_for_long_answers() -> None:
    _, simulated = run(always, never, "flat", 1, 3000, prompt=1000, length=400)
    assert simulated.run(3000) < 0.7


def test_one_long_prompt_is_not_read_on_the_credit_of_other_requests() -> None:
    """Reading it with the draft model costs 20 plain steps. That is no price for a try, so no single answer is slower by it."""
    prompts = [60]
    _, simulated = run(lambda token, sequence: 0.3, lambda token, sequence: 0.03 if prompts[0] == 60 else 0.3, "flat", 1, 3000)
    simulated.prompt, simulated.length, prompts[0] = 1000, 96, 1000
    simulated.run(96)  # what had begun with the short prompt
    ratios = [simulated.run(96) for _ in range(60)]
    assert max(ratios) <= 1.02
    assert sum(ratios) / len(ratios) <= 0.80
    assert "more than a try is worth" in simulated.drafting.controller.tallies["model"].reason


def test_long_prompts_are_read_once_an_answer_has_become_long() -> None:
    """Reading takes 20 plain steps. Every second answer ends after 12 to 30 tokens, and none of those is paid for; the others have
    300, and most of them are."""
    _, simulated = run(always, never, "flat", 1, 1500, prompt=1000, length=100)
    simulated.finish()
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for number in range(60):
        short = number % 2 == 0
        simulated.length = 12 + number % 19 if short else 300
        started, plain = simulated.clock.now, simulated.plain
        simulated.run(1)
        simulated.finish()
        ratios[short].append((simulated.clock.now - started) / (simulated.plain - plain))
    assert max(ratios[True]) <= 1.2
    assert sum(ratios[True]) / 30 <= 1.01
    assert max(ratios[False]) <= 1.1
    assert sum(ratios[False][10:]) / 20 < 0.85


def test_never_slower_where_the_profile_is_wrong() -> None:
    """It says that rows are free, and they are not."""
    simulated = Machine(only_text, {"text": tempting}, STEEP, believed={1: 0.010, 64: 0.012})
    simulated.run(1000)  # until a few plain steps were seen
    assert simulated.run(3000) <= 1.02


def test_never_slower_on_a_busy_machine() -> None:
    assert run(tempting, never, "flat", 1, 4000, noise=0.3)[0] <= 1.03  # the plain time itself is known to 1 % only


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_never_slower_sweep(adversary: str, machine: str, batch: int) -> None:
    assert run(ADVERSARIES[adversary], never, machine, batch, 12_000 if batch == 1 else 24_000)[0] <= 1.02


def test_the_setting_fixed_is_slower_so_the_adversaries_bite() -> None:
    assert run(never, never, "flat", 1, 1000, rule="fixed", depth=4)[0] > 1.5


@pytest.mark.parametrize(("law", "most"), [(often, 0.80), (always, 0.60)])
def test_a_draft_model_that_pays_is_used(law: Accepts, most: float) -> None:
    assert run(law, never, "flat", 1, 3000)[0] < most


def test_text_that_repeats_is_used_at_once() -> None:
    assert Machine(only_text, {"text": often}, FLAT).run(2000) < 0.45


@dataclass
class Seldom(Scripted):
    """Has something to guess in every fifth stretch of ten tokens only."""

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        silent = [len(sequence.tokens) // 10 % 5 != 0 for sequence in sequences]
        trees = Scripted.propose(self, sequences, budgets)
        return [DraftTree() if quiet else tree for quiet, tree in zip(silent, trees, strict=True)]


def test_a_bad_start_does_not_shut_out_a_drafter_that_seldom_guesses() -> None:
    """Its first guesses are wrong, then all are right: what it cost comes back within a few thousand tokens."""
    law: Accepts = lambda token, sequence: 0.0 if token < 4000 else 0.95  # noqa: E731
    simulated = Machine(lambda clock: [Seldom(clock, "text", score=0.6, deepest=8)], {"text": law}, FLAT)
    assert simulated.run(4000) <= 1.02
    simulated.run(1000)
    assert simulated.run(1500) < 0.9


@dataclass
class Silent(Scripted):
    """Has nothing to say about any sequence, and says so."""

    def serves(self, sequence: Sequence) -> bool:
        return False


def test_a_drafter_with_nothing_to_say_takes_no_share_of_the_credit() -> None:
    """What may go into trying belongs to those that could: with a silent one beside it a drafter comes back as soon as alone."""
    alone = Machine(only_text, {"text": never}, FLAT)
    beside = Machine(lambda clock: [*only_text(clock), Silent(clock, "silent")], {"text": never, "silent": never}, FLAT)
    assert alone.run(3000) == beside.run(3000)
    assert alone.drafting.controller.tallies["text"].rounds == beside.drafting.controller.tallies["text"].rounds
    assert not any(drafter == "silent" for drafter, _ in beside.drafting.controller.standings)


def test_what_one_sequence_earned_is_not_spent_on_many() -> None:
    alone = Machine(only_text, {"text": often}, FLAT)
    assert alone.run(1500) < 0.6
    many = Machine(only_text, {"text": never}, FLAT, batch=16, controller=alone.controller)
    assert many.run(500) <= 1.05  # some 30 steps


def test_it_comes_back_when_it_pays_again() -> None:
    changing: Accepts = lambda token, sequence: 0.0 if token < 2500 else 0.95  # noqa: E731
    simulated = Machine(text_and_model(0.015, 0.0), {"text": never, "model": changing}, FLAT)
    assert simulated.run(2500) <= 1.03
    simulated.run(1500)
    assert simulated.run(1000) < 0.6


def test_auto_is_near_the_best_fixed_depth() -> None:
    """In the mean of some runs: single ones are 5 % apart, by whether one of thirty answers had a bad start."""
    seeds = range(5, 9)
    for law in (often, always):
        auto = fmean(run(law, never, "flat", 1, 2000, seed=seed)[1].run(4000) for seed in seeds)
        fixed = min(
            fmean(run(law, never, "flat", 1, 4000, rule="fixed", depth=depth, seed=seed)[0] for seed in seeds)
            for depth in (2, 3, 8)
        )
        assert auto <= 1.04 * fixed


@pytest.mark.parametrize(
    ("batch", "acceptance", "near"), [(2, 0.85, 1.03), (4, 0.75, 1.04), (4, 0.85, 1.03), (8, 0.75, 1.03), (8, 0.85, 1.03)]
)
def test_auto_is_near_the_best_fixed_depth_in_batches(batch: int, acceptance: float, near: float) -> None:
    """A level is dear for one sequence and cheap for many: it must be decided for all at once."""
    law: Accepts = lambda token, sequence: acceptance  # noqa: E731
    simulated = run(law, never, "flat", batch, 256 * batch)[1]
    fixed = min(run(law, never, "flat", batch, 600 * batch, rule="fixed", depth=depth)[0] for depth in (1, 2, 3))
    assert simulated.run(1300 * batch) <= near * fixed


@pytest.mark.parametrize("rule", ["goodput", "threshold", "entropy"])
def test_the_other_rules_draft(rule: str) -> None:
    assert run(always, never, "flat", 1, 800, rule=rule)[0] < 0.75


@pytest.mark.parametrize(("good", "share"), [(1, 0.85), (2, 0.98)])
def test_a_bad_start_is_not_the_end_of_a_draft_model(good: int, share: float) -> None:
    """Of all later requests, or of every second one, it would pay to read the prompt, but not of the first three. The mean of those
    says no for ever; what others save pays for tries."""
    text: Accepts = lambda token, sequence: 0.3 if sequence % 2 == 0 else 0.15  # noqa: E731
    model: Accepts = lambda token, sequence: 0.9 if sequence >= 3 and sequence % good == 0 else 0.3  # noqa: E731
    both, alone = (
        Machine(drafters, {"text": text, "model": model}, FLAT, prompt=70, length=96)
        for drafters in (text_and_model(FLAT[1] * 0.3, FLAT[1] * 0.02), only_text)
    )
    for machine in (both, alone):
        machine.run(3000)
    assert both.run(6000) < share * alone.run(6000)


def test_a_draft_model_that_never_pays_takes_little_of_what_others_save() -> None:
    _, simulated = run(lambda token, sequence: 0.3, often, "flat", 1, 6000)
    alone = Machine(only_text, {"text": often}, FLAT)
    alone.run(6000)
    assert 1.0 - simulated.run(6000) >= 0.9 * (1.0 - alone.run(6000))


def test_requests_have_their_say() -> None:
    ratio, simulated = run(always, always, "flat", 1, 400, wish=SpeculationParams("off"))
    assert ratio == pytest.approx(1.0)
    assert not simulated.drafting.controller.tallies
    forced, _ = run(never, never, "flat", 1, 400, wish=SpeculationParams("on"))
    assert forced > 1.3
    _, few = run(always, always, "flat", 1, 400, wish=SpeculationParams(nodes=2))
    assert few.tokens / few.steps <= 3.0


def test_a_restart_keeps_what_was_learnt(tmp_path: Path) -> None:
    """A draft model that never paid is not tried as hard again."""
    _, first = run(never, never, "flat", 1, 2000)
    memory = Memory(tmp_path / "learnt" / "pair.json")
    memory.save(first.drafting.controller)
    again = Controller(StepCosts(CostCurve.measured(FLAT)))
    assert memory.load(again)
    _, second = run(never, never, "flat", 1, 300, controller=again)
    _, fresh = run(never, never, "flat", 1, 300)
    tried, freshly_tried = (machine.drafting.controller.tallies["model"] for machine in (second, fresh))
    assert tried.verified < freshly_tried.verified / 2
    assert tried.seconds < freshly_tried.seconds
    assert second.drafting.controller.calibrator.probability("model", 0.8, "greedy") < 0.4


def test_what_others_save_gives_a_drafter_in_the_red_another_try() -> None:
    """Beside plain decoding it takes thousands of tokens to earn back eight steps."""
    credit = {}
    for name, text in (("saving", often), ("plain", never)):
        controller = Controller(StepCosts(CostCurve.measured(FLAT)))
        controller.standing("model", "greedy").balance = -8 * FLAT[1]
        run(never, text, "flat", 1, 600, controller=controller)
        credit[name] = controller.standing("model", "greedy").balance or 0.0
    assert credit["plain"] < -4 * FLAT[1] < 0.0 < credit["saving"]


def test_every_decision_is_said_in_one_line() -> None:
    _, simulated = run(tempting, often, "flat", 1, 500)
    for name in ("text", "model"):
        for line in (
            simulated.drafting.controller.explain(name),
            simulated.drafting.controller.explain(name, simulated.running[0].id),
        ):
            assert line.startswith(f"{name}: o")
            assert "\n" not in line
    tally = simulated.drafting.statistics()["text"]
    assert tally.proposed >= tally.verified >= tally.accepted > 0
