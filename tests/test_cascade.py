"""Guesses ahead of a draft model change how many passes a tree takes, never the tree; they come from a tenant's own rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hasten.cache.blocks import BlockManager
from hasten.control.cost import CostCurve
from hasten.control.step_costs import MOST_AHEAD, StepCosts, least_chances
from hasten.core.types import ROOT, Batch, DraftTree, SamplingParams, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.cascade import MOST_TENANTS, Cascade
from hasten.draft.lm import LanguageModelDrafter
from hasten.draft.recycled_rows import TenantRows
from hasten.draft.recycling import RecyclingDrafter
from hasten.model.precision import FP64, INT8, Precision
from test_exact import SETTINGS, prompt_of
from tiny import VOCABULARY, tiny_executor

AHEAD = (0.0,) * MOST_AHEAD
DEPTH = 5


class Counted(LanguageModelDrafter):
    """A drafter over a tiny model that counts the model's passes."""

    def __init__(self, blocks: int = 48, commits: bool = True, precision: Precision = FP64, **shape: object) -> None:
        executor = tiny_executor("qwen2", precision, blocks)
        self.calls = 0

        def forward(batch: Batch) -> object:
            self.calls += 1
            return executor.forward(batch)

        def commit(table: list[int], context: int, kept: list[int]) -> None:
            if commits:
                executor.commit(table, context, kept)

        manager = BlockManager(blocks, prefix_cache=False)
        super().__init__(forward, manager, VOCABULARY, 512, commit=commit, **shape)  # type: ignore[arg-type]


class Told(Cascade):
    """Guesses whatever a test has it guess: ``trees(sequence, path)``."""

    def __init__(self, trees: object) -> None:
        super().__init__()
        self.trees = trees

    def guess(self, sequence: Sequence, path: list[int], floors: object, depth: int) -> DraftTree:
        tree: DraftTree = self.trees(sequence, path, depth)  # type: ignore[operator]
        return tree


def text_of(number: int, params: SamplingParams, length: int = 20, tenant: str = "") -> Sequence:
    return Sequence(number, f"request-{number}", params, number, list(prompt_of(length, number)), length, 400, tenant=tenant)


def rounds(
    drafter: LanguageModelDrafter, texts: list[Sequence], ahead: tuple[float, ...], draws: bool = False
) -> Iterator[list[DraftTree]]:
    """Trees of eight rounds; texts go on by some of what was drafted and then by a token of their own."""
    rng = random.Random(5)
    for text in texts:
        drafter.begin(text)
    for _ in range(8):
        budgets = [DraftBudget(3 * DEPTH, DEPTH, ahead=ahead) for _ in texts]
        trees = [tree for tree, _ in drafter.draw(texts, budgets)] if draws else drafter.propose(texts, budgets)
        yield trees
        for text, tree in zip(texts, trees, strict=True):
            kept = [tree.tokens[node] for node in tree.path(chain_of(tree)[rng.randrange(DEPTH)])] if len(tree) else []
            text.tokens += [*kept, rng.randrange(VOCABULARY)]


def chain_of(tree: DraftTree) -> list[int]:
    """The nodes that are drafted on, and the last one that could have been: the first of each level."""
    depths = tree.depths()
    return [depths.index(depth) for depth in range(1, max(depths) + 1)]


def answers_of(trees: Iterator[list[DraftTree]]) -> list[list[DraftTree]]:
    return [list(each) for each in trees]


def check_same(ones: list[list[DraftTree]], others: list[list[DraftTree]]) -> None:
    for one, other in zip([t for each in ones for t in each], [t for each in others for t in each], strict=True):
        assert (one.tokens, one.parents) == (other.tokens, other.parents)
        assert one.scores == pytest.approx(other.scores, abs=1e-9)


def ahead_of(trees: list[list[DraftTree]], number: int, rng: random.Random, wrong: float) -> object:
    """Guesses that know what will be drafted: the true chain under distractors, or, with chance ``wrong``, other tokens."""
    at = iter([each[number] for each in trees])
    state: dict[str, DraftTree] = {}

    def guess(sequence: Sequence, path: list[int], depth: int) -> DraftTree:
        if not path:
            state["tree"] = next(at)
        true = [state["tree"].tokens[node] for node in chain_of(state["tree"])][len(path) : len(path) + depth]
        tree, parent = DraftTree(), ROOT
        for token in true:
            for other in rng.sample([other for other in range(VOCABULARY) if other != token], rng.randrange(3)):
                tree.add(parent, other, 0.5, "cascade")
            if rng.random() < wrong:
                break
            parent = tree.add(parent, token, 0.5, "cascade")
        return tree

    return guess


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("wrong", [0.0, 0.4, 1.0])
def test_what_is_drafted_does_not_depend_on_guesses_ahead(name: str, wrong: float) -> None:
    """Right guesses that have to be moved into line, half-right ones, wrong ones."""
    plain, guessed = Counted(), Counted()
    expected = answers_of(rounds(plain, [text_of(3, SETTINGS[name])], ()))
    guessed._cascade = Told(ahead_of(expected, 0, random.Random(1), wrong))
    check_same(answers_of(rounds(guessed, [text_of(3, SETTINGS[name])], AHEAD)), expected)
    assert plain.calls == 8 * DEPTH
    assert guessed.calls == 8 if wrong == 0.0 else guessed.calls == 8 * DEPTH if wrong == 1.0 else 8 < guessed.calls < 8 * DEPTH


@pytest.mark.parametrize("name", ["sampled", "greedy"])
def test_draws_do_not_depend_on_guesses_ahead(name: str) -> None:
    """Verification by rejection: the laws and draws of a tree are the same."""
    expected = answers_of(rounds(Counted(), [text_of(3, SETTINGS[name])], (), draws=True))
    guessed = Counted()
    guessed._cascade = Told(ahead_of(expected, 0, random.Random(1), 0.2))
    check_same(answers_of(rounds(guessed, [text_of(3, SETTINGS[name])], AHEAD, draws=True)), expected)
    assert guessed.calls < 8 * DEPTH


@pytest.mark.parametrize("precision", [FP64, INT8], ids=lambda precision: precision.name)
def test_sequences_of_a_batch_go_their_own_ways(precision: Precision) -> None:
    """Passes are as many as the one that is guessed worst needs."""
    texts = lambda: [text_of(number, SETTINGS["greedy"], 10 + 30 * number) for number in range(4)]  # noqa: E731
    expected = answers_of(rounds(Counted(precision=precision), texts(), ()))
    guessed = Counted(precision=precision)
    guesses = [ahead_of(expected, number, random.Random(number), 0.3) for number in range(4)]
    guessed._cascade = Told(lambda sequence, path, depth: guesses[sequence.id](sequence, path, depth))  # type: ignore[operator]
    check_same(answers_of(rounds(guessed, texts(), AHEAD)), expected)


def test_rows_that_are_not_moved_into_line_are_noticed() -> None:
    """The mutant that these tests are there for."""
    expected = answers_of(rounds(Counted(), [text_of(3, SETTINGS["greedy"])], ()))
    guessed = Counted(commits=False)
    guessed._cascade = Told(ahead_of(expected, 0, random.Random(1), 0.0))
    with pytest.raises((AssertionError, StopIteration, RuntimeError)):
        check_same(answers_of(rounds(guessed, [text_of(3, SETTINGS["greedy"])], AHEAD)), expected)


class Both:
    def __init__(self, *learners: Cascade | Drafter) -> None:
        self._learners = learners

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        for learner in self._learners:
            learner.observe(sequence, tree, verdict)


def learn(learner: Cascade | Drafter | Both, text: Sequence, chain: list[int]) -> None:
    """The target chose ``chain`` behind the text; nothing else was likely."""
    length, nodes = len(text.tokens), len(chain) - 1
    text.tokens += chain
    tree = DraftTree(chain[:-1], [at - 1 for at in range(nodes)], [0.5] * nodes, ["lm"] * nodes)
    learner.observe(text, tree, Verdict([*range(nodes)], chain, likeliest=[[token] for token in chain]))
    del text.tokens[length:]


@pytest.mark.parametrize("shared", [False, True])
def test_what_the_target_chose_before_saves_passes(shared: bool) -> None:
    """Without anything made up, and for nobody but the tenant."""
    (chain,) = next(rounds(Counted(width=1), [text_of(1, SETTINGS["greedy"])], ()))
    for tenant in ("same", "other"):
        drafter, recycling = Counted(width=1), RecyclingDrafter()
        if shared:
            drafter.share_rows(recycling.rows)
        learn(recycling if shared else drafter._cascade, text_of(1, SETTINGS["greedy"], tenant="same"), chain.tokens)
        again = text_of(1, SETTINGS["greedy"], tenant=tenant)
        drafter.begin(again)
        (tree,) = drafter.propose([again], [DraftBudget(DEPTH, DEPTH, ahead=AHEAD)])
        assert tree.tokens == chain.tokens
        assert drafter.calls <= 2 if tenant == "same" else drafter.calls == DEPTH


def test_what_two_tell_of_is_written_once() -> None:
    """A recycling drafter looks its candidates up before it learns; a draft model beside it must not learn them a second time."""
    recycling, text = RecyclingDrafter(), text_of(1, SETTINGS["greedy"])
    cascade = Cascade(recycling.rows)
    learn(cascade, text, [1, 2, 3])  # the recycling drafter was not asked in this round
    assert cascade.guess(text, [], AHEAD, 4).tokens == [1, 2, 3]
    written, write = [], TenantRows.learn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TenantRows, "learn", lambda self, *told: (written.append(told), write(self, *told)))
        learn(Both(recycling, cascade), text, [4, 5, 6])
    assert len(written) == 1
    assert cascade.guess(text, [], AHEAD, 4).tokens == [4, 5, 6]


def test_the_draft_models_choices_say_how_often_candidates_are_right() -> None:
    """Rows that are always wrong lose their chances, and then their place in a pass; those of sampled answers keep theirs."""
    cascade, text = Cascade(), text_of(1, SETTINGS["greedy"])
    learn(cascade, text, [1, 2, 3])
    assert len(cascade.guess(text, [], (0.1,) * 4, 4)) > 0
    for _ in range(400):
        cascade.chosen(text, [], 9, AHEAD)
    assert len(cascade.guess(text, [], (0.1,) * 4, 4)) == 0
    assert len(cascade.guess(replace(text, params=SETTINGS["sampled"]), [], (0.1,) * 4, 4)) > 0
    assert len(cascade.guess(replace(text, tenant="other"), [], (0.0,) * 4, 4)) == 0


def test_tenants_are_bounded() -> None:
    cascade = Cascade()
    for number in range(5 * MOST_TENANTS):
        learn(cascade, text := text_of(1, SETTINGS["greedy"], tenant=str(number)), [1, 2])
        cascade.chosen(text, [], 1, AHEAD)
    assert len(cascade._acceptance) <= 2 * MOST_TENANTS


def test_no_more_levels_than_the_budget_and_no_rows_where_nothing_can_be_saved() -> None:
    drafter = Counted()
    drafter._cascade = Told(lambda sequence, path, depth: pytest.fail("asked for guesses at a last level"))
    text = text_of(1, SETTINGS["greedy"])
    drafter.begin(text)
    (tree,) = drafter.propose([text], [DraftBudget(6, 1, ahead=AHEAD)])
    assert max(tree.depths()) == 1


def test_blocks_come_back() -> None:
    drafter = Counted(blocks=6)
    text = text_of(1, SETTINGS["greedy"], 60)
    expected = answers_of(rounds(drafter, [text], AHEAD))
    assert any(len(tree) for each in expected for tree in each)
    drafter.end(text)
    assert len(drafter._blocks.allocate(6)) == 6


def test_a_rows_worth_follows_from_the_draft_models_curve() -> None:
    costs = StepCosts(CostCurve.measured({1: 1.0, 8: 1.7}), {"lm": CostCurve.measured({1: 1.0, 3: 1.1, 7: 2.1})})
    costs.open([0])
    assert costs.ahead("lm", 1) == pytest.approx([0.05, 0.05, 0.25, 0.25, 0.25, 0.25])
    assert costs.ahead("lm", 3)[0] == pytest.approx((2.1 - 0.25 - 1.1) / 1.1)  # six rows for three
    assert costs.ahead("suffix", 1) == costs.ahead("lm", 0) == []
    assert StepCosts(CostCurve(), {"lm": CostCurve()}).ahead("lm", 1) == []


def test_least_chances_are_the_slopes_of_the_lower_hull() -> None:
    assert least_chances([0.0, 0.3, 0.4]) == pytest.approx([0.2, 0.1])
    assert least_chances([0.0, 0.1, 0.4]) == pytest.approx([0.1, 0.3])
    assert least_chances([0.0]) == []


def test_deeper_levels_are_cheaper_where_they_are_foreseen_and_reading_is_not() -> None:
    curve = CostCurve.measured({1: 1.0, 64: 4.0})
    costs = StepCosts(CostCurve.measured({1: 4.0, 8: 5.0}), {"lm": curve})
    costs.open([0, 0])
    before = costs.reading("lm", 640)
    assert costs.levels("lm", 1, 3) == pytest.approx(3.0)
    for _ in range(200):
        costs.charge("lm", 1.1, 0.5, 0.0, 0, 1)
    assert costs.levels("lm", 1, 1) == pytest.approx(1.1)
    assert costs.levels("lm", 1, 3) == pytest.approx(1.1 * (1 + 2 * 0.5), rel=0.01)
    assert costs.deeper("lm", 2) == pytest.approx(costs.one_pass("lm", 2) * 0.75, rel=0.01)  # both must have been foreseen
    assert costs.reading("lm", 640) == before, "passes of levels hold more rows than one, and wait for memory"
    costs.charge("lm", 1.1, 0.5, 3 * before, 640, 1)
    assert costs.reading("lm", 640) == pytest.approx(3 * before)


def test_what_would_have_been_guessed_is_counted_where_nothing_is_asked() -> None:
    """So that one level at a time is not taken as a reason to draft one level at a time."""
    (chain,) = next(rounds(Counted(width=1), [text_of(1, SETTINGS["greedy"])], ()))
    for known, foreseen in ((chain.tokens, 1.0), ([], 0.0)):
        drafter, text = Counted(width=1), text_of(1, SETTINGS["greedy"])
        if known:
            learn(drafter._cascade, text, known)
        drafter.begin(text)
        drafter.propose([text], [DraftBudget(1, 1, ahead=AHEAD)])
        assert (drafter.passes, drafter.foreseen) == (1, foreseen)
