"""Texts for ``replay_control.py``: what a model answers, what else it found likely, what a draft model would have said, and what
passes of both cost here.

    python benchmarks/replay_recording.py qwen2.5-coder-1.5b --precision int4 --draft-model qwen2.5-coder-0.5b --out pair.json

All Spec-Bench and HumanEval dev questions, greedy, to the model's own end or ``--max-tokens``. Ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common import machine
from hasten import LLM, SamplingParams
from hasten.bench.workloads import loads
from hasten.control import profile
from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.engine.profiling import sample_tokens, timed_passes
from hasten.sampling.likeliest import likeliest

TOGETHER = 8
PIECE = 256
LIKELY = 8
GUESSES = 3
WORKLOADS = ("spec-bench", "humaneval")


def read(llm: LLM, tokens: list[int], first: int, of_logits: Callable[[torch.Tensor], list[Any]]) -> list[Any]:
    """One entry a token of ``tokens`` from ``first`` on, made of the logits behind it."""
    blocks = list(range(-(-len(tokens) // BLOCK_SIZE)))
    out: list[Any] = []
    for at in range(0, len(tokens), PIECE):
        piece = tokens[at : at + PIECE]
        wanted = max(0, min(len(piece), first - at))
        logits = llm.engine.executor.forward(Batch([Segment(blocks, at, piece, first_logit=wanted)]))
        if wanted < len(piece):
            out += of_logits(logits[:, : llm.engine.vocabulary])
    return out


def guesses(logits: torch.Tensor) -> list[list[list[float]]]:
    """Ids and probabilities of the likeliest tokens of each row."""
    best = torch.softmax(logits.float(), -1).topk(GUESSES, -1)
    both = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[ids, [round(chance, 4) for chance in chances]] for ids, chances in both]


def costs(llm: LLM) -> dict[int, float]:
    """Seconds of a pass by rows."""
    executor = llm.engine.executor
    positions = executor.pool.num_blocks * BLOCK_SIZE
    curve = profile.measure(timed_passes(executor, sample_tokens(llm.engine.tokenizer)), positions)
    return {rows: curve.predict(rows) for rows in curve.rows}


def answers(llm: LLM, most: int, per_group: int | None) -> list[dict[str, Any]]:
    params = SamplingParams(max_tokens=most)
    found = [load for name in WORKLOADS for load in loads(llm, name, params, per_group, 1, llm.engine.vocabulary)]
    asked = [(load.name, question.tokens) for load in found for question in load.questions]
    texts: list[dict[str, Any]] = []
    for at in range(0, len(asked), TOGETHER):
        some = asked[at : at + TOGETHER]
        for (group, prompt), done in zip(some, llm.generate([prompt for _, prompt in some], params), strict=True):
            texts.append({"group": group, "prompt": prompt, "answer": done.tokens})
        print(f"{len(texts)} of {len(asked)} answers", flush=True)
    return texts


def behind(text: dict[str, Any]) -> tuple[list[int], int]:
    """All tokens but the last, and where the one before the answer stands."""
    return [*text["prompt"], *text["answer"]][:-1], len(text["prompt"]) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--draft-model")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--per-group", type=int, help="questions of each group; default all")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    out: dict[str, Any] = {"about": machine() | {"model": args.model, "precision": args.precision}, "draft_costs": None}
    with LLM(args.model, precision=args.precision, draft="none", cache_tokens=32768, max_sequences=TOGETHER) as llm:
        texts = out["texts"] = answers(llm, args.max_tokens, args.per_group)
        for text in texts:
            text["likeliest"] = read(llm, *behind(text), lambda logits: likeliest(logits, LIKELY))
        out["costs"] = costs(llm)
    if args.draft_model:
        with LLM(args.draft_model, precision="q4_0", draft="none", cache_tokens=8192) as llm:
            for text in texts:
                text["guesses"] = read(llm, *behind(text), guesses)
            out["draft_costs"] = costs(llm)
    args.out.write_text(json.dumps(out))


if __name__ == "__main__":
    main()
