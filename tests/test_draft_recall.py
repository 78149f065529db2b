"""What a draft model has read of a conversation is not read again: the next request of its tenant finds it in the pool."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from hasten.cache.blocks import BlockManager
from hasten.control.controller import Controller
from hasten.control.cost import CostCurve
from hasten.control.step_costs import StepCosts
from hasten.core.types import BLOCK_SIZE, Batch, DraftTree, SamplingParams, Sequence
from hasten.draft.base import DraftBudget
from hasten.draft.lm import LanguageModelDrafter
from hasten.engine.drafting import Drafting
from hasten.engine.scheduler import Scheduled
from hasten.model.precision import FP64
from test_exact import prompt_of
from tiny import VOCABULARY, tiny_executor

BLOCKS, DEPTH = 32, 4


class Reader(LanguageModelDrafter):
    """A drafter over a tiny model that counts the tokens that its model is fed, guesses apart."""

    def __init__(self, remembers: bool, blocks: int = BLOCKS, **shape: object) -> None:
        executor = tiny_executor("qwen2", FP64, blocks)
        self.read = 0
        self.manager = BlockManager(blocks, prefix_cache=remembers)

        def forward(batch: Batch) -> object:
            self.read += sum(len(segment.chain) for segment in batch.segments)
            return executor.forward(batch)

        super().__init__(forward, self.manager, VOCABULARY, blocks * BLOCK_SIZE, **shape)  # type: ignore[arg-type]


def text_of(number: int, tokens: list[int], tenant: str = "a", temperature: float = 0.0) -> Sequence:
    params = SamplingParams(temperature=temperature)
    return Sequence(number, f"request-{number}", params, 7, list(tokens), len(tokens), len(tokens) + 400, tenant=tenant)


def conversation(drafter: Reader, tenants: list[str], temperature: float = 0.0) -> tuple[list[DraftTree], list[int]]:
    """Turns of some 70 tokens each, of which every answer is partly what was drafted and partly not; all trees, and how much of its
    text each turn found."""
    rng, text, trees, found = random.Random(3), list(prompt_of(90, 1)), [], []
    for turn, tenant in enumerate(tenants):
        sequence = text_of(turn, text, tenant, temperature)
        drafter.begin(sequence)
        found.append(drafter.recalled(sequence))
        for _ in range(12):
            (tree,) = drafter.propose([sequence], [DraftBudget(3 * DEPTH, DEPTH)])
            trees.append(tree)
            depths = tree.depths()
            kept = tree.tokens[: rng.randrange(max(depths))] if depths[-1] == len(depths) else tree.tokens[: rng.randrange(2)]
            sequence.tokens += [*kept, rng.randrange(VOCABULARY)]
        drafter.end(sequence)
        text = [*sequence.tokens, *prompt_of(50, turn + 2)]
    return trees, found


@pytest.mark.parametrize("shape", [{}, {"width": 1}, {"tree": "rsd-s", "width": 3}, {"tree": "top-k", "width": 3}])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_conversation_is_read_once(shape: dict[str, object], temperature: float) -> None:
    """And what is drafted is the same."""
    with_memory, without = Reader(True, **shape), Reader(False, **shape)
    trees, found = conversation(with_memory, ["a"] * 5, temperature)
    others, nothing = conversation(without, ["a"] * 5, temperature)
    assert nothing == [0] * 5
    assert found[0] == 0
    grown = [90 + 62 * turn for turn in range(5)]  # at least, when the turn begins
    assert all(count >= before // BLOCK_SIZE * BLOCK_SIZE for count, before in zip(found[1:], grown, strict=False))
    assert [(tree.tokens, tree.parents) for tree in trees] == [(tree.tokens, tree.parents) for tree in others]
    assert with_memory.read <= without.read - sum(found)
    with_memory.manager.check_integrity([])
    assert with_memory.manager.used == 0


def test_another_tenant_finds_nothing() -> None:
    drafter = Reader(True)
    _, found = conversation(drafter, ["a", "b", "a", "b"])
    assert found[1] == 0
    assert 0 < found[2] <= found[3]


def test_nothing_is_found_behind_another_beginning() -> None:
    drafter = Reader(True)
    text = list(prompt_of(3 * BLOCK_SIZE, 1))
    for number, changed in enumerate((None, 0, BLOCK_SIZE, 2 * BLOCK_SIZE + 1)):
        tokens = text if changed is None else [*text[:changed], (text[changed] + 1) % VOCABULARY, *text[changed + 1 :]]
        sequence = text_of(number, tokens)
        drafter.begin(sequence)
        assert drafter.recalled(sequence) == (0 if changed is None else changed // BLOCK_SIZE * BLOCK_SIZE)
        drafter.propose([sequence], [DraftBudget(DEPTH, DEPTH)])
        drafter.end(sequence)


def test_what_is_remembered_makes_room() -> None:
    """A pool that is full of what was read serves new texts all the same."""
    drafter = Reader(True, blocks=6)
    for number in range(8):
        sequence = text_of(number, list(prompt_of(3 * BLOCK_SIZE + 5, number)))
        drafter.begin(sequence)
        (tree,) = drafter.propose([sequence], [DraftBudget(DEPTH, DEPTH)])
        assert len(tree)
        drafter.end(sequence)
    drafter.manager.check_integrity([])
    assert drafter.manager.used == 0


def test_only_what_is_unread_is_charged() -> None:
    """Reading the whole conversation would not pay; reading what is new does."""
    curve = {1: 0.050, 8: 0.056, 64: 0.180}
    draft = {1: 0.015, 64: 0.500}
    drafter = Reader(True)
    controller = Controller(StepCosts(CostCurve.measured(curve), {"lm": CostCurve.measured(draft)}))
    drafting = Drafting([drafter], controller, VOCABULARY)
    long = list(prompt_of(20 * BLOCK_SIZE, 1))
    first = text_of(1, long)
    drafter.begin(first)
    drafter.propose([first], [DraftBudget(DEPTH, DEPTH)])
    drafter.end(first)
    asked: dict[str, tuple[bool, str]] = {}
    for number, tenant in ((2, "b"), (3, "a")):  # "b" before passes are seen, which take next to no time here
        sequence = replace(text_of(number, [*long, 5], tenant), prompt_length=len(long))
        drafting.begin(sequence)
        sequence.computed = len(sequence.tokens) - 1
        drafting.propose([Scheduled(sequence, 1)], 64)
        own = controller.own("lm", sequence.id)
        assert own is not None
        asked[tenant] = own.on, own.why
        drafting.end(sequence)
    assert asked["a"][0]
    assert not asked["b"][0]
    assert "reading" in asked["b"][1]
