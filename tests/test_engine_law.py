"""The law of what an engine says under verification by rejection, by exhaustion: every draw, every coin, every plain choice.

The whole engine runs (scheduler, drafters, merging, verification, commit) on models that are tables; chance is replaced by an
enumeration (``rejection_oracles.Chances``), so the law of the text comes out to the last digits. Deliberate mistakes in how the
engine treats draws must change it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy import stats

import hasten.draft.growth as growth_module
import hasten.sampling.rejection as rejection_module
import hasten.sampling.verify as verify_module
from drafters import TestDrafter
from hasten.cache.blocks import BlockManager
from hasten.core.config import SpeculationParams
from hasten.core.types import ROOT, DraftTree, SamplingParams, Sequence
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.growth import Growing
from hasten.engine.drafting import Drafting
from hasten.engine.scheduler import Scheduler
from hasten.sampling.draws import Drawn, keep_best
from hasten.sampling.filters import Logits
from hasten.sampling.laws import DraftLaws, Law, warped_law
from rejection_oracles import Chances, Conditional, Path, enumerate_law, joint, random_conditional
from table_model import after, table_drafter, table_engine, table_speculator

PROMPT: Path = (0, 1)
RULES = ("rejection", "block")


class Certain(TestDrafter):
    """The same small tree each round, without chance."""

    name = "certain"

    def __init__(self, paths: Iterable[Path], score: float = 0.3) -> None:
        self._paths, self._score = list(paths), score

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        tree = DraftTree()
        for path in self._paths:
            at = ROOT
            for token in path[: budget.depth]:
                at = tree.add(at, token, self._score, self.name)
        return tree


class Coins:
    """``draws.Coins`` of one round, enumerated."""

    def __init__(self, chances: Chances, position: int) -> None:
        self._chances, self._position = chances, position

    def below(self, node: int, mass: Any, of: Any) -> bool:
        return self._chances.below(("accept", self._position, node), Fraction(mass), Fraction(of))

    def pick(self, masses: Any) -> int:
        return self._chances.pick(("emit", self._position), masses)


def law_of_text(
    patch: pytest.MonkeyPatch,
    target: Conditional,
    make: Callable[[], list[Drafter]],
    rule: str,
    length: int,
    ends: tuple[int, ...] = (),
    **control: Any,
) -> dict[Path, float]:
    """The exact law of the engine's answer of ``length`` tokens, or of fewer where one of ``ends`` comes."""

    def experiment(chances: Chances) -> Path:
        def drawn(law: Law, count: int, seed: int, position: int, node: int) -> list[Drawn]:
            masses, out = [Fraction(mass) for mass in law.masses], list[Drawn]()
            while len(out) < count and any(masses):
                at = chances.pick(("draw", position, node, len(out)), masses)
                out.append(Drawn(int(law.ids[at]), float(np.log(law.masses[at])), -float(len(out))))
                masses[at] = Fraction(0)
            return out

        def chosen(values: Logits, params: SamplingParams, seed: int, position: int) -> int:
            law = warped_law(values, params)
            return int(law.ids[chances.pick(("choose", position), law.masses)])

        patch.setattr(growth_module, "draw_without_replacement", drawn)
        patch.setattr(verify_module, "choose_adjusted", chosen)
        patch.setattr(rejection_module, "RoundCoins", lambda seed, position: Coins(chances, position))
        engine = table_engine(target, make(), rule, **control)
        params = SamplingParams(temperature=1.0, max_tokens=length, ignore_eos=True, seed=0, stop_token_ids=ends)
        request = engine.submit(list(PROMPT), params)
        while not engine.idle:
            engine.step()
        return tuple(request.answers[0].sequence.output)

    return {path: float(p) for path, p in enumerate_law(experiment).items()}


def distance(law: dict[Path, float], target: Conditional, length: int, ends: tuple[int, ...] = ()) -> float:
    """Total variation between the engine's law and the target's."""
    expected: dict[Path, Fraction] = {}
    for path, p in joint(after(target, PROMPT), length).items():
        size = next((at for at, token in enumerate(path, 1) if token in ends), length)
        expected[path[:size]] = expected.get(path[:size], Fraction(0)) + p
    return sum(abs(law.get(path, 0.0) - float(expected.get(path, 0))) for path in {*law, *expected}) / 2


TWO, DRAFT_TWO = random_conditional(1, 2), random_conditional(2, 2)
THREE, DRAFT_THREE = random_conditional(5, 3), random_conditional(6, 3, zeros=True)
DRAFT = random_conditional(7, 3)
SHAPES: dict[str, dict[str, Any]] = {
    "chain": {"width": 1},
    "chain with runners-up": {"width": 2},
    "rsd-c": {"tree": "rsd-c", "branching": (2, 1)},
    "top-k": {"tree": "top-k", "width": 2},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [table_drafter, table_speculator])
def test_law_of_the_text(make: Callable[..., Drafter], rule: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, draft, length in ((TWO, DRAFT_TWO, 4), (THREE, DRAFT_THREE, 3)):
        law = law_of_text(monkeypatch, target, lambda draft=draft: [make(draft, **SHAPES[shape])], rule, length)
        assert distance(law, target, length) < 1e-12


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("paths", [[(0,)], [(1, 1), (1, 0), (0,)]])
def test_law_of_the_text_with_proposals_without_chance(rule: str, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ("chain", "rsd-c"):
        make = lambda shape=shape: [Certain(paths), table_drafter(DRAFT_TWO, **SHAPES[shape])]  # noqa: E731
        assert distance(law_of_text(monkeypatch, TWO, make, rule, 4), TWO, 4) < 1e-12
    assert distance(law_of_text(monkeypatch, THREE, lambda: [Certain(paths)], rule, 3), THREE, 3) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_law_of_the_text_when_the_controller_chooses(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``fixed`` verifies one chain only: among what was proposed without chance, before anything is drawn."""
    make: Callable[[], list[Drafter]] = lambda: [Certain([(0,), (1,)]), table_drafter(DRAFT_THREE, width=1)]  # noqa: E731
    law = law_of_text(monkeypatch, THREE, make, rule, 3, control="fixed", depth=2)
    assert distance(law, THREE, 3) < 1e-12


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_law_of_a_text_that_ends_early(rule: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was drawn behind an end does not count."""
    make = lambda: [Certain([(0, 1)]), table_drafter(DRAFT_TWO, **SHAPES[shape])]  # noqa: E731
    law = law_of_text(monkeypatch, TWO, make, rule, 4, ends=(1,))
    assert distance(law, TWO, 4, ends=(1,)) < 1e-12


# Mistakes.


def choose_in_view_of_the_draws(patch: pytest.MonkeyPatch) -> None:
    """Everything is merged first, and then the best are chosen."""
    real = Drafting.propose

    def late(self: Drafting, items: list[Any], room: int, running: int) -> None:
        real(self, items, room, running)
        for item in items:
            round = self._rounds.get(item.sequence.id)
            if round is not None and len(round.tree):
                best = max(
                    range(len(round.tree)), key=lambda node: round.tree.scores[node] if round.tree.parents[node] == ROOT else 0
                )
                self._laws[item.sequence.id] = self._laws[item.sequence.id].keep({best})
                item.tree = round.keep({best})

    patch.setattr(Drafting, "propose", late)


def drop_what_is_unlikely(patch: pytest.MonkeyPatch) -> None:
    """Drawn nodes are verified only if their own token is likely under its law."""
    real = Drafting._bid_drawn

    def choosy(self: Drafting, round: Any, drafter: Any, tree: DraftTree, laws: Any, bid: int) -> None:
        kept: set[int] = set()
        for node, parent in enumerate(tree.parents):
            law = laws.at.get(parent)
            likely = law is None or law.of(tree.tokens[node]) * 2 > law.masses.max()
            if likely and (parent == ROOT or parent in kept):
                kept.add(node)
        real(self, round, drafter, tree.keep(kept), laws.keep(kept), len(kept))

    patch.setattr(Drafting, "_bid_drawn", choosy)


def report_another_law(patch: pytest.MonkeyPatch) -> None:
    real = Growing.draw

    def liar(self: Growing, node: int, law: Law) -> Any:
        found = real(self, node, law)
        self.laws.at[node] = Law(law.ids, np.full(len(law.ids), 1 / len(law.ids)))
        return found

    patch.setattr(Growing, "draw", liar)


def hang_siblings_in_another_order(patch: pytest.MonkeyPatch) -> None:
    real = Growing.add_level
    patch.setattr(Growing, "add_level", lambda self, found: real(self, [each[::-1] for each in found]))


def call_the_leaves_certain(patch: pytest.MonkeyPatch) -> None:
    """Runners-up pass for proposals without chance beside a draw from the same law."""
    real = Growing.add_level

    def forgetful(self: Growing, found: Any) -> None:
        before = len(self.tree)
        real(self, found)
        self.laws.drawn -= set(range(before + 1, len(self.tree)))

    patch.setattr(Growing, "add_level", forgetful)


def take_the_draft_for_plain_text(patch: pytest.MonkeyPatch) -> None:
    """Sample and match with the draft's own noise: accepted is what the draft says."""
    patch.setattr(Coins, "below", lambda self, node, mass, of: True)


MISTAKES: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    choose_in_view_of_the_draws: "chain",
    drop_what_is_unlikely: "chain",
    report_another_law: "chain",
    hang_siblings_in_another_order: "rsd-c",
    call_the_leaves_certain: "chain with runners-up",
    take_the_draft_for_plain_text: "chain",
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_caught(rule: str, mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> list[Drafter]:
        if mistake is call_the_leaves_certain:
            return [table_drafter(DRAFT, **SHAPES[MISTAKES[mistake]])]
        return [Certain([(0,)]), table_drafter(DRAFT_THREE, **SHAPES[MISTAKES[mistake]])]

    assert distance(law_of_text(monkeypatch, THREE, make, rule, 3), THREE, 3) < 1e-12
    mistake(monkeypatch)
    assert distance(law_of_text(monkeypatch, THREE, make, rule, 3), THREE, 3) > 1e-3


# With counted chance, as users have it.

ALPHA = 1e-4


def surprise(rule: str, shape: dict[str, Any], answers: int, certain: bool = False) -> float:
    """p-value of the answers of one engine to the same prompt under seeds 0, 1, 2 ..."""
    drafters: list[Drafter] = [table_drafter(DRAFT, **shape)]
    engine = table_engine(THREE, [*([Certain([(0, 1)])] if certain else []), *drafters], rule)
    params = [SamplingParams(temperature=1.0, max_tokens=3, ignore_eos=True, seed=seed) for seed in range(answers)]
    requests = [engine.submit(list(PROMPT), each) for each in params]
    while not engine.idle:
        engine.step()
    counts = Counter(tuple(request.answers[0].sequence.output) for request in requests)
    assert all(request.verify == rule for request in requests)
    expected = joint(after(THREE, PROMPT), 3)
    if set(counts) - set(expected):
        return 0.0
    chances = [(counts[path], float(p) * answers) for path, p in expected.items()]
    return float(stats.chisquare([seen for seen, _ in chances], [mean for _, mean in chances]).pvalue)


@pytest.mark.parametrize("rule", ["coupled", *RULES])
@pytest.mark.parametrize("shape", [{"tree": "rsd-s", "width": 2}, {"tree": "rsd-c"}, {"width": 2}], ids=["rsd-s", "rsd-c", "chain"])
def test_answers_follow_the_law_under_seeds(rule: str, shape: dict[str, Any]) -> None:
    assert surprise(rule, shape, 700, certain=True) > ALPHA


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("certain", [False, True])
@pytest.mark.parametrize("shape", [{"tree": "rsd-s", "width": 3}, {"tree": "rsd-c"}, {"width": 1}], ids=["rsd-s", "rsd-c", "chain"])
def test_answers_follow_the_law_under_many_seeds(rule: str, certain: bool, shape: dict[str, Any]) -> None:
    assert surprise(rule, shape, 12_000, certain) > ALPHA


@pytest.mark.parametrize("rule", RULES)
def test_beams_in_another_order_are_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth_module, "keep_best", lambda beams, found, width: keep_best(beams, found, width)[::-1])
    assert surprise(rule, {"tree": "rsd-s", "width": 3}, 2500) < ALPHA


def test_a_drawn_tree_is_not_dropped_for_its_size() -> None:
    """Blocks are sought for as many rows as the tree might have had, so that what was drawn does not decide."""
    for nodes, room, kept in ((1, 0, True), (1, 100, False)):
        blocks = BlockManager(1)
        scheduler = Scheduler(blocks, 64, 64, 4)
        sequence = Sequence(0, "r", SamplingParams(), 0, [0] * 10, 10, length_limit=60)
        scheduler.add([sequence])
        item = scheduler.plan()[0]
        for _ in range(nodes):
            item.tree.add(ROOT, 1, 0.5, "test")
        item.room = room
        scheduler.pack([item])
        assert bool(len(item.tree)) == kept


def test_at_temperature_0_and_without_drafts_every_rule_is_coupled() -> None:
    texts = []
    for rule in ("coupled", *RULES):
        engine = table_engine(THREE, [table_drafter(DRAFT, tree="rsd-c")], rule)
        greedy = engine.submit(list(PROMPT), SamplingParams(max_tokens=40, ignore_eos=True))
        warm = SamplingParams(temperature=1.0, max_tokens=40, ignore_eos=True, seed=3)
        plain = engine.submit(list(PROMPT), warm, speculation=SpeculationParams("off"))
        while not engine.idle:
            engine.step()
        assert greedy.verify == "coupled"
        assert greedy.speculation.drafted > 0
        texts.append([request.answers[0].sequence.output for request in (greedy, plain)])
    assert texts[0] == texts[1] == texts[2]


def test_two_who_could_draw_share_a_tree() -> None:
    """The second proposes without chance; the law stays what it is."""
    drafters = [table_drafter(DRAFT, width=2), table_drafter(DRAFT_THREE, tree="rsd-s")]
    drafters[1].name = "second"
    engine = table_engine(THREE, [*drafters], "rejection")
    requests = [engine.submit(list(PROMPT), SamplingParams(temperature=1.0, max_tokens=3, seed=seed)) for seed in range(600)]
    while not engine.idle:
        engine.step()
    assert {name for request in requests for name in request.speculation.by_drafter} == {"lm", "second"}
    counts = Counter(tuple(request.answers[0].sequence.output) for request in requests)
    expected = joint(after(THREE, PROMPT), 3)
    pairs = [(counts[path], float(p) * 600) for path, p in expected.items()]
    assert stats.chisquare([seen for seen, _ in pairs], [mean for _, mean in pairs]).pvalue > ALPHA


class Liar(TestDrafter):
    """Says that it draws, and reports laws that cannot be."""

    name, draws = "liar", True

    def draw(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[tuple[DraftTree, DraftLaws]]:
        tree = self.chain([0])
        return [(tree, DraftLaws({ROOT: Law(np.array([1]), np.array([1.0]))}, {0})) for _ in sequences]


def test_impossible_laws_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    engine = table_engine(THREE, [Liar()], "rejection")
    request = engine.submit(list(PROMPT), SamplingParams(temperature=1.0, max_tokens=9, ignore_eos=True, seed=1))
    while not engine.idle:
        engine.step()
    assert request.answers[0].sequence.output_length == 9
    assert request.speculation.drafted == 0
    assert "liar" in caplog.text
