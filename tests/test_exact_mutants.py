"""The exactness tests must be able to fail: deliberate mistakes in the engine, each of which has to change some text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import hasten.model.attention as attention_module
import hasten.model.layout as layout_module
import hasten.sampling.rules as rules_module
from drafters import RightThenWrong
from hasten.core.types import SamplingParams, Segment
from hasten.engine.scheduler import Scheduler
from hasten.model.executor import Executor
from hasten.sampling.filters import History
from test_exact import GREEDY, PENALISED, SAMPLED, answers, foretell, prompt_of
from tiny import DOUBLE, naive_text, run_all, tiny_engine

Patch = Callable[[pytest.MonkeyPatch], None]


def forget_the_move(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Executor, "commit", lambda self, blocks, context, kept: None)


def let_nodes_see_siblings(patch: pytest.MonkeyPatch) -> None:
    real = layout_module.visibility

    def seeing(segment: Segment, window: int, device: torch.device) -> torch.Tensor:
        mask = real(segment, window, device)
        if len(segment.tree):
            rows = mask.shape[0]
            mask[:, -rows:] = torch.ones(rows, rows, dtype=torch.bool).tril()
        return mask

    patch.setattr(attention_module, "visibility", seeing)


def stand_one_position_too_far(patch: pytest.MonkeyPatch) -> None:
    real = layout_module.lay_out

    def shifted(batch: Any, device: torch.device) -> Any:
        layout = real(batch, device)
        return replace(layout, positions=layout.positions + (layout.depths > 0), highest_position=layout.highest_position + 1)

    patch.setattr("hasten.model.executor.lay_out", shifted)


def read_the_bonus_from_the_wrong_row(patch: pytest.MonkeyPatch) -> None:
    real = rules_module.verify_tree

    def rotated(tree: Any, logits: torch.Tensor, *args: Any, **named: Any) -> Any:
        return real(tree, torch.cat([logits[:1], logits[1:].roll(1, 0)]), *args, **named)

    patch.setattr(rules_module, "verify_tree", rotated)


def forget_the_path_in_the_history(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(History, "with_path", lambda self, tokens: self)


def draw_noise_by_round(patch: pytest.MonkeyPatch) -> None:
    real = rules_module.verify_tree
    calls = iter(range(10**9))

    def by_round(tree: Any, logits: Any, params: Any, seed: int, position: int, **named: Any) -> Any:
        return real(tree, logits, params, seed, next(calls), **named)

    patch.setattr(rules_module, "verify_tree", by_round)


def share_across_tenants_and_texts(patch: pytest.MonkeyPatch) -> None:
    real = Scheduler._take_prefix

    def confused(self: Scheduler, sequence: Any, source: Any) -> bool:
        true_tokens = sequence.tokens
        sequence.tokens = [0] * len(true_tokens)
        try:
            return real(self, sequence, source)
        finally:
            sequence.tokens = true_tokens

    patch.setattr(Scheduler, "_take_prefix", confused)


MUTANTS: list[Patch] = [
    forget_the_move,
    let_nodes_see_siblings,
    stand_one_position_too_far,
    read_the_bonus_from_the_wrong_row,
    forget_the_path_in_the_history,
    draw_noise_by_round,
    share_across_tenants_and_texts,
]


KIND = "qwen3"
PROMPTS = [prompt_of(length, length) for length in (20, 60, 100)] + [(0,) * 70, (1,) + (0,) * 69 + prompt_of(30, 1)]


def outputs_are_exact() -> bool:
    """A compact form of the tests in test_exact: trees, penalties, noise, and a prompt of the token that a mutant looks for."""
    for params, expected in reference_texts():
        engine = tiny_engine(KIND, [RightThenWrong(answers(KIND))], max_sequences=2)
        if run_all(engine, [engine.submit(list(prompt), params) for prompt in PROMPTS]) != expected:
            return False
    return True


def reference_texts() -> list[tuple[SamplingParams, list[list[int]]]]:
    settings = (GREEDY, SAMPLED, PENALISED)
    foretell(KIND, tuple(PROMPTS), ("greedy", "sampled", "penalised"), DOUBLE)
    return [
        (params, [naive_text(KIND, prompt, replace(params, seed=params.seed or 0)) for prompt in PROMPTS]) for params in settings
    ]


def test_the_unbroken_engine_passes() -> None:
    assert outputs_are_exact()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_broken_engine_is_caught(mutant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    reference_texts()  # computed before anything is broken, and remembered
    mutant(monkeypatch)
    assert not outputs_are_exact()
