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

from hasten.core.types import ROOT, DraftTree, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.children import Text, as_the_model_says, children, likeliest_children, too_unsure
from hasten.draft.growth import Growing, Shape
from hasten.draft.shortlist import Shortlists
from hasten.model.head import TrimmedHead
from hasten.sampling.guess import Guess
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
    """A tree that is being drafted from ``state``. ``rows`` says by node which of the last level's states is there."""

    growing: Growing
    text: Text
    state: Tensor
    rows: dict[int, int] = field(default_factory=dict)

    def inputs(self) -> list[tuple[int, int]]:
        """For each node of the frontier the row of its parent's state, and its token."""
        growing, tree = self.growing, self.growing.tree
        if growing.level == 0:
            return [(self.rows[ROOT], growing.sequence.tokens[-1])]
        return [(self.rows[tree.parents[beam.node]], tree.tokens[beam.node]) for beam in growing.frontier]


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
            states = torch.stack([feed.state for feed in active])
            for row, feed in enumerate(active):
                feed.rows[ROOT] = row
        while active:
            rows, tokens = zip(*(pair for feed in active for pair in feed.inputs()), strict=True)
            states, logits = self._network(
                states if rows == tuple(range(len(states))) else states[list(rows)], torch.tensor(tokens)
            )
            self.passes += 1
            self._grow(active, logits)
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
        return Feeding(Growing(sequence, budget, self._shape, self.name, drawn), followed.text, followed.state)

    def _grow(self, feeds: list[Feeding], logits: Tensor) -> None:
        """One level below the frontiers, whose logits these are, one after the other."""
        whose = [feed.growing for feed in feeds for _ in feed.growing.frontier]
        simple = all(as_the_model_says(feed.growing) for feed in feeds)
        likeliest = likeliest_children(self._shortlists, whose, logits) if simple else None
        row = 0
        for feed in feeds:
            growing, first = feed.growing, row
            row += len(growing.frontier)
            if too_unsure(growing, logits[first:row]):
                growing.unsure = True
                continue
            feed.rows = {beam.node: first + at for at, beam in enumerate(growing.frontier)}
            growing.add_level(self._children(feed, logits[first:row]) if likeliest is None else likeliest[first:row])

    def _children(self, feed: Feeding, logits: Tensor) -> list[list[Guess]]:
        """Of each node of the frontier."""
        growing, found = feed.growing, []
        for beam, row in zip(growing.frontier, logits, strict=True):
            own, ids = self._shortlists.pick(growing.sequence.id, row)
            found.append(children(growing, beam.node, own, ids, feed.text.history, self._vocabulary))
        return found
