"""Drafters that wish the engine ill, and one that knows the answer. None of them may change a single token."""

from __future__ import annotations

import random
from collections.abc import Callable

from hasten.core.types import ROOT, DraftTree, Sequence
from hasten.draft.base import DraftBudget, Drafter
from tiny import VOCABULARY

Answers = Callable[[Sequence], list[int]]  # the tokens that plain decoding will produce


class TestDrafter(Drafter):
    """One tree a sequence from ``tree``."""

    __test__ = False
    name = "test"

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        return [self.tree(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        raise NotImplementedError

    def chain(self, tokens: list[int]) -> DraftTree:
        tree, parent = DraftTree(), ROOT
        for token in tokens:
            parent = tree.add(parent, token, 0.9, self.name)
        return tree


class Right(TestDrafter):
    """Always right: it has been told the answers."""

    name = "right"

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        ahead = self._answers(sequence)[sequence.output_length :]
        return self.chain(ahead[: min(budget.depth, budget.nodes)])


class Wrong(Right):
    """Always wrong: off by one from the answer."""

    name = "wrong"

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        ahead = self._answers(sequence)[sequence.output_length :]
        return self.chain([(token + 1) % VOCABULARY for token in ahead][: min(budget.depth, budget.nodes)])


class RightThenWrong(Right):
    """The answer with random twigs around it, in random order of nodes."""

    name = "twigs"

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        rng = random.Random(len(sequence.tokens))
        ahead = self._answers(sequence)[sequence.output_length :][: rng.randrange(1, 6)]
        tree, parent = DraftTree(), ROOT
        for token in ahead[: budget.depth]:
            for _ in range(rng.randrange(3)):
                tree.add(parent, rng.randrange(VOCABULARY), rng.random(), self.name)
            parent = tree.add(parent, token, rng.random(), self.name)
        return tree


class Random(TestDrafter):
    """Random trees of random tokens."""

    name = "random"

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        rng = random.Random(sequence.id * 1000 + len(sequence.tokens))
        tree = DraftTree()
        for _ in range(rng.randrange(12)):
            tree.add(rng.randrange(ROOT, len(tree)), rng.randrange(VOCABULARY), rng.random(), self.name)
        return tree


class OutOfVocabulary(TestDrafter):
    """Ids that do not exist, and scores that are none."""

    name = "foreign"

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        ids = [VOCABULARY, -1, -5, 10**9, 3, VOCABULARY + 1]
        return DraftTree(list(ids), [ROOT, ROOT, 1, 2, ROOT, 4], [float("nan"), 7.0, -3.0, 0.5, float("inf"), 0.1], [self.name] * 6)


class TooLong(TestDrafter):
    """Far beyond every budget, in depth and in number."""

    name = "long"

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        return self.chain([7] * 700)


class Raising(TestDrafter):
    """Fails at the given moments."""

    name = "raising"

    def __init__(self, *moments: str) -> None:
        self._moments = moments

    def begin(self, sequence: Sequence) -> None:
        self._fail("begin")

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        self._fail("propose")
        return self.chain([1, 2, 3])

    def observe(self, sequence: Sequence, tree: object, verdict: object) -> None:
        self._fail("observe")

    def end(self, sequence: Sequence) -> None:
        self._fail("end")

    def _fail(self, moment: str) -> None:
        if moment in self._moments:
            raise RuntimeError(f"deliberate failure in {moment}")


class Malformed(TestDrafter):
    """Not a tree: children before parents, lists of different lengths, or fewer trees than sequences."""

    name = "malformed"

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        if self._kind == "too few":
            return []
        if self._kind == "lengths":
            return [DraftTree([1, 2], [ROOT], [0.5, 0.5], [self.name] * 2) for _ in sequences]
        return [DraftTree([1, 2], [1, ROOT], [0.5, 0.5], [self.name] * 2) for _ in sequences]
