"""Rounds without drafts, of sequences whose drafts are verified by rejection: plain choices under a noise of their own."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

import hasten.sampling.rules as rules_module
from drafters import TestDrafter
from hasten.core.types import ROOT, Batch, DraftTree, SamplingParams, Sequence
from hasten.draft.base import DraftBudget, Drafter
from hasten.sampling.choose import choose_row
from rejection_oracles import Path, joint, random_conditional
from table_model import after, table_engine

PROMPT: Path = (0, 1)
LENGTH = 3
ANSWERS = 2000
TARGET, GUESSES = random_conditional(3, 3), random_conditional(4, 3)


class First(TestDrafter):
    """Behind the first token only: the chain that another law and the noise of plain decoding make."""

    name = "first"

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        tree, at, path = DraftTree(), ROOT, list(sequence.tokens)
        if len(sequence.tokens) != len(PROMPT) + 1:
            return tree
        for _ in range(2):
            logits = torch.tensor(np.log([float(p) + 1e-30 for p in GUESSES(tuple(path[-2:]))]))
            path.append(choose_row(logits, sequence.params, sequence.seed, len(path)))
            at = tree.add(at, path[-1], 0.9, self.name)
        return tree


def chance(rule: str, drafters: list[Drafter]) -> float:
    """How likely the answers of many seeds are under the target's law."""
    engine, told = table_engine(TARGET, drafters, rule, "fixed", 2), Counter[Path]()
    for seed in range(ANSWERS):
        request = engine.submit(list(PROMPT), SamplingParams(temperature=1.0, max_tokens=LENGTH + 2, ignore_eos=True, seed=seed))
        while not engine.idle:
            engine.step()
        told[tuple(request.answers[0].sequence.output[:LENGTH])] += 1
    law = {path: float(p) for path, p in joint(after(TARGET, PROMPT), LENGTH).items() if p}
    assert set(told) <= set(law)
    return float(stats.chisquare([told[path] for path in law], [ANSWERS * p for p in law.values()]).pvalue)


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_the_law_of_the_text(rule: str) -> None:
    assert chance(rule, [First()]) > 1e-3


def test_another_law_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_module, "lone_seed", lambda seed: 7)  # one noise for everybody
    assert chance("block", [First()]) < 1e-6


def test_all_logits_are_wanted_where_drafts_are_verified_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = table_engine(TARGET, [First()], "rejection", "fixed", 2)
    asked: list[tuple[int, int]] = []
    forward = engine.executor.forward

    def seen(batch: Batch) -> torch.Tensor:
        asked.extend((len(segment.tree), segment.leaders) for segment in batch.segments)
        return forward(batch)

    monkeypatch.setattr(engine.executor, "forward", seen)
    engine.submit(list(PROMPT), SamplingParams(temperature=1.0, max_tokens=5, ignore_eos=True, seed=2))
    while not engine.idle:
        engine.step()
    assert {leaders for nodes, leaders in asked if nodes} == {0}
    assert {leaders for nodes, leaders in asked if not nodes} == {1}
