"""Token recycling: a first-order target is guessed right after one visit, tenants are strangers, tables are bounded."""

from __future__ import annotations

import random
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hasten import LLM
from hasten.core.config import SpeculationParams
from hasten.core.errors import ConfigError
from hasten.core.types import ROOT, Batch, DraftTree, SamplingParams, Segment, Sequence, Verdict
from hasten.draft.base import DraftBudget
from hasten.draft.recycled_rows import LONGEST_KEY, RankAcceptance, RecentRows
from hasten.draft.recycling import RecyclingDrafter
from serving import write_model
from tiny import naive_text, run_all, tiny_engine

GENEROUS = DraftBudget(nodes=24, depth=12)
STATES = 40


class MarkovTarget:
    """Chooses by the last token alone: ``order[t]`` are all tokens by their likelihood after t. Every first choice leads on through
    all states."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        cycle = rng.sample(range(STATES), STATES)
        first = {cycle[at - 1]: cycle[at] for at in range(STATES)}
        self.order = []
        for token in range(STATES):
            others = [other for other in range(STATES) if other != first[token]]
            self.order.append([first[token], *rng.sample(others, len(others))])

    def verify(self, sequence: Sequence, tree: DraftTree) -> Verdict:
        """Greedy verification, as the engine does it; the sequence grows."""
        path: list[int] = []
        chosen = [self.order[sequence.tokens[-1]][0]]
        while (node := tree.child(path[-1] if path else ROOT, chosen[-1])) is not None:
            path.append(node)
            chosen.append(self.order[chosen[-1]][0])
        likeliest = [self.order[token][:8] for token in (sequence.tokens[-1], *tree.tokens)]
        sequence.tokens.extend(chosen)
        return Verdict(path, chosen, likeliest=likeliest)


def sequence_of(tokens: list[int], number: int = 0, tenant: str = "") -> Sequence:
    return Sequence(number, "request", SamplingParams(), 0, list(tokens), len(tokens), length_limit=4096, tenant=tenant)


def one_round(drafter: RecyclingDrafter, target: MarkovTarget, sequence: Sequence, budget: DraftBudget = GENEROUS) -> Verdict:
    tree = drafter.propose([sequence], [budget])[0]
    verdict = target.verify(sequence, tree)
    drafter.observe(sequence, tree, verdict)
    return verdict


def taught(target: MarkovTarget, rounds: int = 200, tenant: str = "", drafter: RecyclingDrafter | None = None) -> RecyclingDrafter:
    drafter = drafter or RecyclingDrafter()
    sequence = sequence_of([0], tenant=tenant)
    for _ in range(rounds):
        one_round(drafter, target, sequence)
    return drafter


@pytest.mark.parametrize("seed", range(5))
def test_a_first_order_target_is_guessed_right_after_one_visit_of_each_token(seed: int) -> None:
    target, drafter = MarkovTarget(seed), RecyclingDrafter()
    sequence = sequence_of([0])
    while len(sequence.tokens) <= STATES:
        one_round(drafter, target, sequence, DraftBudget(0, 0))  # plain decoding: each token is visited once
    for depth in range(1, 13):
        verdict = one_round(drafter, target, sequence, DraftBudget(nodes=200, depth=depth))
        assert verdict.path, "the first choice is always drafted, and right"
        assert len(verdict.path) == depth or depth > 2, "priors of single tokens let no long chain survive"
    for _ in range(30):
        one_round(drafter, target, sequence)
    assert all(len(one_round(drafter, target, sequence).path) == GENEROUS.depth for _ in range(10)), "acceptance is learnt"


def test_scores_become_what_is_true() -> None:
    """After many rounds the first choice is certain and no sibling stands beside it."""
    target = MarkovTarget(1)
    drafter = taught(target, 400)
    tokens = [7]
    while len(tokens) < LONGEST_KEY:
        tokens.append(target.order[tokens[-1]][0])
    tree = drafter.propose([sequence_of(tokens)], [GENEROUS])[0]
    assert tree.parents == list(range(-1, GENEROUS.depth - 1)), "one chain"
    assert all(token == target.order[before][0] for before, token in zip([tokens[-1], *tree.tokens], tree.tokens, strict=False))
    assert min(tree.scores) > 0.97


def test_the_longest_known_key_decides_and_the_single_token_stands_behind() -> None:
    drafter = RecyclingDrafter()
    for tokens, successors in (([9, 1, 2, 3], [30, 31]), ([9, 4, 2, 3], [50, 30]), ([8, 8, 7, 3], [40, 30, 41])):
        sequence = sequence_of([*tokens, successors[0]])
        drafter.observe(sequence, DraftTree(), Verdict([], [successors[0]], likeliest=[successors]))

    def first_level(tokens: list[int]) -> list[int]:
        tree = drafter.propose([sequence_of(tokens)], [DraftBudget(24, 1)])[0]
        return tree.tokens

    assert first_level([1, 2, 3])[:2] == [30, 31]
    assert sorted(first_level([1, 2, 3])) == [30, 31, 40, 41]
    assert first_level([5, 2, 3])[:2] == [50, 30], "two tokens are known: the last write wins"
    assert first_level([5, 5, 3]) == [40, 30, 41], "one token: the last write wins"
    assert first_level([3, 5]) == []


def test_rows_of_rejected_nodes_are_learnt_and_accepted_rows_win() -> None:
    drafter = RecyclingDrafter()
    tree = DraftTree([5, 6, 5], [ROOT, ROOT, 1], [0.5, 0.3, 0.3], ["recycling"] * 3)
    sequence = sequence_of([1, 5, 10])  # node 0 accepted; node 2 carries the same token after another one
    drafter.observe(sequence, tree, Verdict([0], [5, 10], likeliest=[[5, 6], [10, 11], [12, 13], [14, 15]]))
    first = {token: drafter.propose([sequence_of([token])], [DraftBudget(1, 1)])[0].tokens for token in (1, 5, 6)}
    assert first == {1: [5], 5: [10], 6: [12]}
    assert drafter.propose([sequence_of([6, 5])], [DraftBudget(1, 1)])[0].tokens == [14], "node 2 stands after 6"
    assert drafter.propose([sequence_of([1, 5])], [DraftBudget(1, 1)])[0].tokens == [10]


def test_an_answer_that_ends_among_the_accepted_tokens() -> None:
    drafter = RecyclingDrafter()
    tree = DraftTree([5, 6, 7], [ROOT, 0, 1], [0.5] * 3, ["recycling"] * 3)
    verdict = Verdict([0, 1, 2], [5, 6, 7, 8], likeliest=[[5], [6], [7], [8]])
    drafter.observe(sequence_of([1, 2, 5, 6]), tree, verdict)  # a stop token: 7 and 8 were never added
    assert drafter.propose([sequence_of([2])], [DraftBudget(1, 1)])[0].tokens == [5]
    drafter.observe(sequence_of([9]), DraftTree(), verdict)  # nothing of it stands there: nothing is learnt
    assert drafter.propose([sequence_of([9])], [GENEROUS])[0].tokens == []


def test_a_verdict_without_likeliest_tokens_teaches_nothing() -> None:
    drafter = RecyclingDrafter()
    drafter.observe(sequence_of([1, 2]), DraftTree(), Verdict([], [2]))
    assert len(drafter.propose([sequence_of([1])], [GENEROUS])[0]) == 0


def test_tenants_see_neither_rows_nor_acceptance_of_each_other() -> None:
    target = MarkovTarget(2)
    drafter = taught(target, tenant="a")
    fresh = RecyclingDrafter()
    stranger = sequence_of([0], tenant="b")
    assert len(drafter.propose([stranger], [GENEROUS])[0]) == 0
    for _ in range(30):  # and what b learns afterwards is what it would have learnt alone
        alone, beside = sequence_of([0], tenant="b"), sequence_of([0], tenant="b")
        assert one_round(drafter, target, beside) == one_round(fresh, target, alone)
        assert drafter.propose([beside], [GENEROUS]) == fresh.propose([alone], [GENEROUS])


def test_what_a_tenant_taught_outlives_its_requests() -> None:
    target = MarkovTarget(3)
    drafter = taught(target)
    drafter.end(sequence_of([0]))
    assert len(one_round(drafter, target, sequence_of([5], number=9)).path) == GENEROUS.depth


def test_tables_are_bounded_and_the_oldest_rows_go() -> None:
    rows = RecentRows(100)
    for key in range(1000):
        rows.write((key,), array("i", [key]))
        rows.write((0,), array("i", [key]))
        assert len(rows) <= 100
    assert [rows.get((key,)) is not None for key in (0, 500, 999)] == [True, False, True]
    drafter, rng = RecyclingDrafter(most_rows=64, most_tenants=3), random.Random(4)
    for number in range(2000):
        tokens = [rng.randrange(5000) for _ in range(5)]
        sequence = sequence_of(tokens, tenant=f"tenant {number % 7}")
        drafter.observe(sequence, DraftTree(), Verdict([], tokens[-1:], likeliest=[tokens[:3]]))
    kept = drafter.rows._tenants.values()
    assert len(kept) == 3
    assert all(len(table) <= 64 for tenant in kept for table in tenant.tables)


def test_seeded_rows_answer_until_something_better_is_known() -> None:
    drafter = RecyclingDrafter()
    drafter.seed({1: [2, 2, 3], 2: [4]})
    for tenant in ("a", "b"):
        tree = drafter.propose([sequence_of([1], tenant=tenant)], [DraftBudget(8, 1)])[0]
        assert tree.tokens == [2, 3]
    drafter.observe(sequence_of([1, 9], tenant="a"), DraftTree(), Verdict([], [9], likeliest=[[9, 8]]))
    assert drafter.propose([sequence_of([1], tenant="a")], [DraftBudget(8, 1)])[0].tokens == [9, 8]
    assert drafter.propose([sequence_of([1], tenant="b")], [DraftBudget(8, 1)])[0].tokens == [2, 3]


def test_rank_acceptance_follows_a_known_frequency() -> None:
    rng, acceptance = random.Random(6), RankAcceptance()
    candidates = [(10, "1 same", 0), (11, "1 same", 1), (12, "1 same", 2)]
    for _ in range(4000):
        acceptance.observe(candidates, rng.choices([10, 11, 12, 99], [0.1, 0.5, 0.2, 0.2])[0])
    chances = [acceptance.chance("1 same", rank) for rank in range(3)]
    assert chances == pytest.approx([0.1, 0.5, 0.2], abs=0.06)
    assert acceptance.chance("2 same", 0) == pytest.approx(0.5), "another kind has learnt nothing"


@pytest.mark.parametrize(
    "arguments",
    [{"most_rows": 0}, {"most_rows": True}, {"most_tenants": -1}, {"most_rows": 1.5}, {"most_tenants": 1 << 20}, {"seeds": -1}],
)
def test_bad_parameters_are_named(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(arguments))} of the recycling drafter must be a whole number from [01] to"):
        RecyclingDrafter(**arguments)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_engine_feeds_it_and_the_text_stays(temperature: float) -> None:
    """A repetitive tiny model: drafts are accepted, also for a second request, and never for another tenant's first round."""
    params = SamplingParams(max_tokens=40, ignore_eos=True, temperature=temperature, seed=3)
    prompt = [5, 6, 7, 8] * 3
    expected = naive_text("llama", tuple(prompt), replace(params, seed=3))
    drafter = RecyclingDrafter()
    engine = tiny_engine("llama", [drafter])
    rounds = []
    for tenant in ("a", "a", "b"):
        request = engine.submit(list(prompt), params, tenant=tenant)
        assert run_all(engine, [request]) == [expected]
        rounds.append(request.speculation.rounds)
    assert rounds[1] < rounds[0], "the second request profits from the first"
    assert rounds[2] == rounds[0], "another tenant does not"


def test_the_target_is_asked_what_follows_single_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a text of its own behind a line's end; and drafts from it change nothing."""
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("hasten.engine.seeding.TOGETHER", 50)
    path = str(write_model(tmp_path / "tiny.gguf"))
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    with LLM(path, draft="none", threads=1, cache_tokens=256) as llm:
        expected = llm.generate("once", params)[0].tokens
        blocks, lead = [0], llm.encode("\n")
        alone = {}
        for token in range(120):
            logits = llm.engine.executor.forward(Batch([Segment(blocks, 0, [*lead, token], first_logit=len(lead))]))
            alone[token] = torch.topk(logits[0, : llm.engine.vocabulary], 8).indices.tolist()
    with LLM(path, draft="recycling(seeds=120)", threads=1, cache_tokens=256) as llm:
        (drafter,) = llm.engine.drafting.drafters
        assert isinstance(drafter, RecyclingDrafter)
        assert {token: list(row) for token, row in drafter.rows.seeded.items()} == alone
        answer = llm.generate("once", params, speculation=SpeculationParams("on"))[0]
        assert answer.tokens == expected
        assert answer.speculation.drafted > 20
