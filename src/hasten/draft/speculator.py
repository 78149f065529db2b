"""Speculator: a small network, trained for the target, goes on from its hidden state (arXiv:2404.19124, section 2).

What it is: ``model.speculator``. A level costs a few hundredths of a step.

Its trees, its choices under the target's noise and what is different where drafts are verified by rejection are those of a draft
model (``lm``, ``growth``). It reads nothing: it can guess from an answer's first token on, and after any rest, because the target's
state where it chose the last token is at hand after every step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from hasten.core.types import DraftTree, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.children import Text, children, too_unsure
from hasten.draft.growth import Growing, Shape
from hasten.draft.shortlist import Shortlists
from hasten.model.head import TrimmedHead
from hasten.sampling.laws import DraftLaws


class Network(Protocol):
    """``model.speculator.Speculator``."""

    def blank(self, rows: int) -> Tensor: ...

    def __call__(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(slots=True)
class Followed:
    """A sequence: the target's ``state`` [hidden] where it chose the last of ``length`` tokens."""

    state: Tensor | None = None
    length: int = 0
    text: Text = field(default_factory=Text)


@dataclass(slots=True)
class Feeding:
    """A tree that is being drafted. ``states`` are the network's by node."""

    growing: Growing
    followed: Followed
    states: dict[int, Tensor] = field(default_factory=dict)

    def inputs(self) -> list[tuple[Tensor, int]]:
        """State and token for each node of the frontier."""
        growing, tree = self.growing, self.growing.tree
        if growing.level == 0:
            assert self.followed.state is not None
            return [(self.followed.state, growing.sequence.tokens[-1])]
        return [(self.states[tree.parents[beam.node]], tree.tokens[beam.node]) for beam in growing.frontier]


class SpeculatorDrafter(Drafter):
    """``network`` makes one level, with ``head``; ``vocabulary`` is the number of ids the target may choose; ``tree``, ``width``
    and ``branching`` as in ``growth.Shape``. Raises ConfigError for values out of range."""

    name = "speculator"
    paid = True
    draws = True
    reads = False
    follows = True
    likeliest_wanted = Shortlists.likeliest_wanted

    def __init__(
        self,
        network: Network,
        head: TrimmedHead,
        vocabulary: int,
        context_length: int,
        width: int = 3,
        tree: str = "chain",
        branching: tuple[int, ...] = (2, 2),
    ) -> None:
        self.seconds_per_pass: float | None = None
        self._network = network
        self._vocabulary = vocabulary
        self._shape = Shape(tree, width, branching)
        self._shortlists = Shortlists(head, vocabulary)
        self._sequences: dict[int, Followed] = {}
        self.positions = context_length

    def begin(self, sequence: Sequence) -> None:
        self._sequences[sequence.id] = Followed()
        self._shortlists.begin(sequence.id)

    def follow(self, sequence: Sequence, state: Tensor) -> None:
        followed = self._sequences[sequence.id]
        followed.state, followed.length = state, len(sequence.tokens)

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        self._shortlists.note(sequence.id, (token for row in verdict.likeliest for token in row))

    def end(self, sequence: Sequence) -> None:
        self._sequences.pop(sequence.id, None)
        self._shortlists.end(sequence.id)

    def pass_seconds(self, rows: int, context: int) -> float:
        states, tokens = self._network.blank(rows), torch.zeros(rows, dtype=torch.int64)
        started = time.perf_counter()
        self._network(states, tokens)[1].sum().item()
        return time.perf_counter() - started

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        return [tree for tree, _ in self._draft(sequences, budgets, drawing=False)]

    def draw(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[tuple[DraftTree, DraftLaws]]:
        return self._draft(sequences, budgets, drawing=True)

    def _draft(self, sequences: list[Sequence], budgets: list[DraftBudget], drawing: bool) -> list[tuple[DraftTree, DraftLaws]]:
        feeds = [self._start(sequence, budget, drawing) for sequence, budget in zip(sequences, budgets, strict=True)]
        active = [feed for feed in feeds if feed is not None]
        began, self.passes = time.perf_counter(), 0
        if active:
            self._shortlists.prepare()
        while active:
            inputs = [feed.inputs() for feed in active]
            whole = [pair for each in inputs for pair in each]
            states, logits = self._network(torch.stack([state for state, _ in whole]), torch.tensor([token for _, token in whole]))
            self.passes += 1
            row = 0
            for feed, each in zip(active, inputs, strict=True):
                self._grow(feed, states[row : row + len(each)], logits[row : row + len(each)])
                row += len(each)
            active = [feed for feed in active if feed.growing.continues]
        self.seconds_per_pass = (time.perf_counter() - began) / self.passes if self.passes else None
        return [(DraftTree(), DraftLaws()) if feed is None else (feed.growing.tree, feed.growing.laws) for feed in feeds]

    def _start(self, sequence: Sequence, budget: DraftBudget, drawing: bool) -> Feeding | None:
        """None where there is nothing to draft, or nothing to draft from."""
        followed = self._sequences[sequence.id]
        if budget.nodes < 1 or budget.depth < 1 or followed.state is None or followed.length != len(sequence.tokens):
            return None
        followed.text.catch_up(sequence, self._shortlists)
        drawn = drawing and self._shape.tree != "top-k" and not sequence.params.greedy
        return Feeding(Growing(sequence, budget, self._shape, self.name, drawn), followed)

    def _grow(self, feed: Feeding, states: Tensor, logits: Tensor) -> None:
        """One level below the frontier, whose states and logits these are."""
        growing = feed.growing
        if too_unsure(growing, logits):
            growing.unsure = True
            return
        found = []
        for beam, state, row in zip(growing.frontier, states, logits, strict=True):
            feed.states[beam.node] = state
            own, ids = self._shortlists.pick(growing.sequence.id, row)
            found.append(children(growing, beam.node, own, ids, feed.followed.text.history, self._vocabulary))
        growing.add_level(found)
