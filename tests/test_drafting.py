"""What drafting owes to everybody else in a step: rows, blocks, accounts, and the other requests of a drafter that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drafters import Right, TestDrafter, Wrong
from hasten import LLM
from hasten.control.cost import CostCurve
from hasten.control.memory import Memory
from hasten.core.config import SpeculationParams
from hasten.core.errors import ConfigError
from hasten.core.types import ROOT, Batch, DraftTree, SamplingParams, Sequence
from hasten.draft.base import DraftBudget
from hasten.sampling.laws import DraftLaws
from serving import write_model
from tiny import VOCABULARY, FrozenCurve, naive_text, run_all, tiny_engine

KIND = "qwen2"
PROMPT = tuple(range(5, 35))
ON = SpeculationParams("on")
ROWS = {1: 1e-3, 2: 1.1e-3, 4: 1.3e-3, 8: 2e-3, 16: 3e-3, 32: 6e-3, 64: 12e-3}


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True)


def curve() -> CostCurve:
    return CostCurve.measured(ROWS, {1: 0.0}, 128)


class Guess(TestDrafter):
    """Whatever ``make`` says."""

    name = "guess"

    def __init__(self, make: Callable[[Sequence], list[int]]) -> None:
        self._make = make
        self.asked: list[int] = []

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        self.asked.append(sequence.id)
        return self.chain(self._make(sequence)[: min(budget.depth, budget.nodes)])


class Wide(TestDrafter):
    """Ten guesses at the next token."""

    def __init__(self, name: str, first: int) -> None:
        self.name, self._first = name, first

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        tree = DraftTree()
        for place in range(min(10, budget.nodes) if budget.depth else 0):
            tree.add(ROOT, (self._first + place) % VOCABULARY, 0.5, self.name)
        return tree


@pytest.mark.parametrize("rule", ["auto", "fixed"])
def test_what_nobody_chose_is_on_no_account(rule: str) -> None:
    """Three answers with wrong guesses that somebody insisted on must not keep ``auto`` from drafting for others."""
    engine = tiny_engine(KIND, [Wrong(lambda _: [1] * 200)], curve=curve())
    engine.controller.rule, engine.controller.depth = rule, 8
    for _ in range(3):
        engine.submit(list(PROMPT), greedy(100), speculation=ON if rule == "auto" else SpeculationParams())
        while not engine.idle:
            engine.step()
    assert engine.drafting.statistics()["wrong"].verified > 100
    assert all(standing.balance is None or standing.balance >= 0.0 for standing in engine.controller.standings.values())


def test_drafts_preempt_nobody() -> None:
    """Two answers of two blocks each in a pool of four; drafts reach into a third one."""
    for length in range(40, 64, 4):
        engine = tiny_engine(KIND, [Guess(lambda _: [1] * 12)], num_blocks=4, max_rows=256, prefix_cache=False)
        engine.submit([5] * (length + 50), greedy(128 - length - 50), speculation=ON)
        engine.submit([6] * length, greedy(128 - length), speculation=ON)
        while not engine.idle:
            engine.step()
            engine.scheduler.check_integrity()
        assert engine.scheduler.preemptions == 0


def test_a_text_that_is_computed_again_teaches_nothing_about_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(KIND, [Right(lambda _: [1] * 400)], curve=curve(), num_blocks=4, prefix_cache=False)
    learn, steps = engine.controller.costs.learn, []

    def told(shapes: list[tuple[int, int]], rows: int, forward: float, whole: float) -> None:
        steps.append(rows)
        assert rows == sum(row for row, _ in shapes)
        learn(shapes, rows, forward, whole)

    monkeypatch.setattr(type(engine.controller.costs), "learn", lambda _, *arguments: told(*arguments))
    for seed in range(2):
        engine.submit([*PROMPT] * 4, SamplingParams(max_tokens=80, ignore_eos=True, seed=seed, temperature=0.5), speculation=ON)
    while not engine.idle:
        engine.step()
    assert engine.scheduler.preemptions > 0
    assert steps


@pytest.mark.parametrize("n", [1, 2, 8])
def test_answers_that_wait_for_a_place_take_no_share_of_a_step(n: int) -> None:
    fixed = FrozenCurve.measured({1: 5.0, 2: 8.0, 64: 8.0}, {1: 0.0}, 128)  # far beyond what a step really takes
    engine = tiny_engine(KIND, [Guess(lambda _: [1])], curve=fixed, max_sequences=2, num_blocks=40)
    request = engine.submit(
        list(PROMPT), SamplingParams(max_tokens=40, ignore_eos=True, temperature=1.0, seed=1, n=n), speculation=ON
    )
    while not engine.idle:
        engine.step()
    completion = list(request.inbox)[-1].completion
    assert completion is not None
    assert completion.speed.plain_tokens_per_second is not None
    assert completion.speed.plain_tokens_per_second == pytest.approx(1 / 5.0 if n == 1 else 2 / 8.0, rel=0.3)


def test_drafters_begin_with_a_request_when_its_turn_has_come() -> None:
    """However many wait, only those that run are indexed; and one that is cancelled before leaves nothing behind."""

    class Counting(Guess):
        def __init__(self) -> None:
            super().__init__(lambda _: [1])
            self.lives: dict[int, int] = {}

        def begin(self, sequence: Sequence) -> None:
            self.lives[sequence.id] = self.lives.get(sequence.id, 0) + 1

        def end(self, sequence: Sequence) -> None:
            assert self.lives.pop(sequence.id) == 1

    drafter = Counting()
    engine = tiny_engine(KIND, [drafter], max_sequences=2, num_blocks=40)
    requests = [engine.submit(list(PROMPT), greedy(5)) for _ in range(20)]
    assert drafter.lives == {}
    engine.step()
    assert len(drafter.lives) == 2
    engine.cancel(requests[-1])
    while not engine.idle:
        engine.step()
        assert len(drafter.lives) <= 2
    assert drafter.lives == {}


def test_drafts_are_verified_beside_prompts_that_are_read() -> None:
    truth = naive_text(KIND, PROMPT, greedy(300))
    engine = tiny_engine(KIND, [Right(lambda _: list(truth))], curve=curve(), num_blocks=64)
    answer = engine.submit(list(PROMPT), greedy(300))
    steps = 0
    while not answer.finished:
        if len(engine.scheduler.running) < 2 and steps > 20:
            engine.submit([place % VOCABULARY for place in range(400)], greedy(1))
        engine.step()
        steps += 1
    assert steps < 200


def test_a_text_that_was_not_read_has_still_to_be_read() -> None:
    class Full(Right):
        name, paid = "lm", True

        def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
            self.passed_over = frozenset({sequence.id}) if sequence.output_length < 5 else frozenset()
            return DraftTree()

    engine = tiny_engine(KIND, [Full(lambda _: [])])
    engine.submit(list(PROMPT), greedy(20), speculation=ON)
    seen = engine.drafting._seen
    for _ in range(4):
        engine.step()
    assert seen["lm", 0] == 0
    for _ in range(4):
        engine.step()
    assert seen["lm", 0] > len(PROMPT)


def test_a_look_up_counts_once_however_long_a_request_waits() -> None:
    engine = tiny_engine(KIND, [], num_blocks=6, max_rows=512)
    text = [place % VOCABULARY for place in range(260)]
    first = engine.submit(text, greedy(100))
    for _ in range(3):
        engine.step()
    engine.submit(text[:200] + [7] * 60, greedy(100))
    while not first.finished:
        engine.step()
    assert engine.scheduler.blocks.statistics.queries == 4
    while not engine.idle:
        engine.step()
    assert (engine.scheduler.blocks.statistics.queries, engine.scheduler.blocks.statistics.hits) == (8, 3)


def test_guesses_that_are_no_whole_numbers_are_refused() -> None:
    engine = tiny_engine(KIND, [Guess(lambda _: [3.0])])  # type: ignore[list-item]
    requests = [
        engine.submit(list(PROMPT), greedy(8)),
        engine.submit(list(PROMPT), greedy(8), speculation=SpeculationParams("off")),
    ]
    assert run_all(engine, requests) == [naive_text(KIND, PROMPT, greedy(8))] * 2


def test_who_fails_for_one_request_goes_on_for_the_others() -> None:
    class Bent(Guess):
        def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
            tree = super().tree(sequence, budget)
            if sequence.id == 1 and len(tree):
                tree.parents[0] = 5  # before its parent
            return tree

    drafter = Bent(lambda _: [1])
    engine = tiny_engine(KIND, [drafter])
    for place in range(3):
        engine.submit([*PROMPT, place], greedy(20), speculation=ON)
    while not engine.idle:
        engine.step()
    assert min(drafter.asked.count(0), drafter.asked.count(2)) > 10
    assert drafter.asked.count(1) == 1


def test_an_account_that_was_never_opened_still_has_its_credit_after_a_restart(tmp_path: Path) -> None:
    engine = tiny_engine(KIND, [Wrong(lambda _: [1] * 200)], curve=curve())
    engine.submit(list(PROMPT), greedy(30), speculation=ON)
    while not engine.idle:
        engine.step()
    memory = Memory(tmp_path / "drafting.json")
    memory.save(engine.controller)
    later = tiny_engine(KIND, curve=curve()).controller
    assert memory.load(later)
    assert all(standing.balance is None for standing in later.standings.values())


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_a_step_has_no_more_rows_than_it_may(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drafters = [Wide(name, 12 * place) for place, name in enumerate("abcd")]
    engine = tiny_engine(KIND, [*drafters], max_rows=16)
    most, forward = 0, engine.executor.forward

    def counted(batch: Batch) -> object:
        nonlocal most
        most = max(most, batch.rows)
        return forward(batch)

    monkeypatch.setattr(engine.executor, "forward", counted)
    requests = [
        engine.submit([*PROMPT, place], greedy(20), speculation=SpeculationParams(mode))
        for place in range(4)  # type: ignore[arg-type]
    ]
    assert run_all(engine, requests) == [naive_text(KIND, (*PROMPT, place), greedy(20)) for place in range(4)]
    assert 12 < most <= 16


class Drawer(TestDrafter):
    """Draws nothing, and keeps what it was allowed."""

    name, draws = "drawer", True

    def __init__(self) -> None:
        self.allowed: list[list[int]] = []

    def draw(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[tuple[DraftTree, DraftLaws]]:
        self.allowed.append([budget.nodes for budget in budgets])
        return [(DraftTree(), DraftLaws()) for _ in sequences]


def test_who_draws_is_given_what_others_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one request has all the guesses of the others, too: drawn nodes are verified without being chosen among."""

    class OfOne(Wide):
        def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
            return super().tree(sequence, budget) if sequence.id == 0 else DraftTree()

    drawer = Drawer()
    engine = tiny_engine(KIND, [OfOne("a", 0), OfOne("b", 12), drawer], max_rows=16, rule="rejection")
    sampled = SamplingParams(max_tokens=20, ignore_eos=True, temperature=1.0, seed=3)
    for place in range(4):
        engine.submit([*PROMPT, place], sampled, speculation=ON)
    rows, forward = [], engine.executor.forward
    monkeypatch.setattr(engine.executor, "forward", lambda batch: (rows.append(batch.rows), forward(batch))[1])
    while not engine.idle:
        engine.step()
    assert len(drawer.allowed) > 10
    assert min(map(min, drawer.allowed)) >= 0
    assert all(4 + 3 + sum(each) <= 16 for each in drawer.allowed if len(each) == 4)
    assert max(rows) <= 16


def test_who_reads_nothing_is_charged_for_all_that_it_takes() -> None:
    """What it does beside its levels is no reading, and must not fall to whoever else was asked."""
    now = 0.0

    class Slow(Right):
        name, paid, reads, seconds_per_pass, passes = "slow", True, False, 1e-4, 1

        def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
            nonlocal now
            now += 5e-4
            return super().tree(sequence, budget)

    text = naive_text(KIND, PROMPT, greedy(40))
    slow, free = Slow(lambda sequence: text), Wide("free", 0)
    engine = tiny_engine(KIND, [slow, free], curve=curve())
    engine.drafting.clock = lambda: now
    run_all(engine, [engine.submit([*PROMPT], greedy(40))])
    tallies = engine.controller.tallies
    assert tallies["slow"].rounds >= 3
    assert tallies["slow"].seconds == pytest.approx(5e-4 * tallies["slow"].rounds)
    assert tallies["free"].seconds == pytest.approx(0.0)


def test_a_drawer_that_forgets_its_laws_is_switched_off() -> None:
    class Bare(Drawer):
        def draw(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[tuple[DraftTree, DraftLaws]]:
            return [DraftTree() for _ in sequences]  # type: ignore[misc]

    engine = tiny_engine(KIND, [Bare()], rule="rejection")
    request = engine.submit(list(PROMPT), SamplingParams(max_tokens=8, ignore_eos=True, temperature=1.0, seed=3))
    assert len(run_all(engine, [request])[0]) == 8


def test_drafts_on_begin_at_once_whoever_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = Guess(lambda _: [1])
    engine = tiny_engine(KIND, [drafter], curve=curve(), num_blocks=40)
    engine.submit([1, 2, 3], greedy(300))
    for _ in range(100):
        engine.step()
    request = engine.submit([*range(50)] * 4, greedy(30), speculation=ON)
    while not engine.idle:
        engine.step()
    # The first token comes with the prompt, and behind the last one there is nothing to guess.
    assert drafter.asked.count(request.answers[0].sequence.id) == 29


def test_a_drafter_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'suffix' is named twice"):
        LLM(str(tmp_path), draft="suffix+recycling+suffix")


def test_a_draft_model_may_have_less_context_than_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))
    target, draft = tmp_path / "target.gguf", tmp_path / "draft.gguf"
    write_model(target, context=1024)
    write_model(draft, context=256)
    with LLM(str(target), draft="lm", draft_model=str(draft), context_length=512, threads=1) as llm:
        assert llm.context_length == 512
        assert len(llm.generate("a" * 300, SamplingParams(max_tokens=8, ignore_eos=True))[0].tokens) == 8
    with pytest.raises(ConfigError, match="context_length 2048 is more than the 1024"):
        LLM(str(target), draft="none", context_length=2048, threads=1)
