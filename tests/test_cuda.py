"""The same engine on a GPU in bf16 and fp32; skipped where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hasten.core.types import Batch, Segment
from hasten.draft.suffix import SuffixDrafter
from hasten.model.executor import Executor
from hasten.model.precision import BF16, FP32, FP64
from hasten.model.weights import load_decoder
from test_decoder import tokens_of
from test_exact import GREEDY, SAMPLED, prompt_of
from tiny import DESCRIPTIONS, RandomSource, run_all, tiny_engine, tiny_executor

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
GPU = torch.device("cuda")


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_logits_are_those_of_the_cpu(kind: str) -> None:
    tokens = tokens_of(100, 2)
    reference = tiny_executor(kind).forward(Batch([Segment([0, 1], 0, tokens)]))
    for precision, bound in ((FP64, 1e-9), (FP32, 1e-3), (BF16, 0.5)):
        executor = Executor(load_decoder(RandomSource(DESCRIPTIONS[kind]), precision, GPU, None), 4, GPU)
        logits = executor.forward(Batch([Segment([0, 1], 0, tokens)])).cpu().double()
        assert (logits - reference).abs().mean() / reference.std() < bound


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_drafts_change_nothing_in_double_precision(kind: str) -> None:
    prompts = [prompt_of(length, length) for length in (5, 64, 120)]
    for params in (GREEDY, replace(SAMPLED, top_p=0.9)):
        outputs = []
        for drafters in ([], [SuffixDrafter()]):
            engine = tiny_engine(kind, drafters, device=GPU)
            outputs.append(run_all(engine, [engine.submit(list(prompt), params) for prompt in prompts]))
        assert outputs[0] == outputs[1]
