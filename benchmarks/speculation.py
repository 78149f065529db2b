"""Speculative against plain decoding on real prompts: same text? how much sooner? Paired, alternating, in one process.

    python benchmarks/speculation.py qwen2.5-coder-1.5b --per-category 1 --max-tokens 128
    python benchmarks/speculation.py smollm2-135m --temperature 0.8 --seed 1 --max-tokens 64 --equality-only

Speed is decoding speed (prompt left out). Plain runs in the same engine with drafting switched off, so that both modes share
weights, memory and moment; every difference between the two texts is printed. ``--equality-only`` runs the plain texts in one
batch and the drafted ones in batches of ``--batch``, which puts batch invariance to the test as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from typing import Any

from common import GROUPS, machine, read_bandwidth, spec_bench, table
from hasten import LLM, SamplingParams
from hasten.core.results import Completion
from hasten.draft.base import Drafter


def first_difference(left: list[int], right: list[int]) -> int | None:
    for at, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return at
    return None if len(left) == len(right) else min(len(left), len(right))


class Modes:
    """One engine in two modes."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self._drafters = llm.engine.drafting.drafters
        self._none: list[Drafter] = []

    def run(self, prompts: list[list[int]], params: SamplingParams, drafting: bool) -> list[Completion]:
        self.llm.engine.drafting.drafters = self._drafters if drafting else self._none
        self.llm.engine.scheduler.blocks.clear_cache()
        return self.llm.generate(prompts, params)


def prompts_of(llm: LLM, questions: list[dict[str, Any]]) -> list[list[int]]:
    room = llm.context_length
    out = []
    for question in questions:
        text = question["turns"][0]
        tokens = llm.render_chat([{"role": "user", "content": text}]) if llm.has_chat_template else llm.encode(text)
        out.append(tokens[: room - 512] if len(tokens) > room - 512 else tokens)
    return out


def equality(modes: Modes, prompts: list[list[int]], params: SamplingParams, questions: list[dict[str, Any]], batch: int) -> int:
    """Print every difference; returns how many prompts differ. Plain all together, drafted ``batch`` prompts at a time."""
    plain = modes.run(prompts, params, drafting=False)
    different = tokens = drafted = accepted = 0
    for start in range(0, len(prompts), batch):
        for at, spec in enumerate(modes.run(prompts[start : start + batch], params, drafting=True), start=start):
            tokens += len(spec.tokens)
            drafted += spec.speculation.drafted
            accepted += spec.speculation.accepted
            where = first_difference(plain[at].tokens, spec.tokens)
            if where is not None:
                different += 1
                print(f"question {questions[at]['question_id']}: differs at token {where}", flush=True)
    print(
        f"{modes.llm.name}, temperature {params.temperature}: {len(prompts)} prompts, {tokens} tokens, {drafted} drafted, "
        f"{accepted} accepted: {different} prompts differ",
        flush=True,
    )
    return different


def speeds(modes: Modes, prompts: list[list[int]], params: SamplingParams, questions: list[dict[str, Any]]) -> list[list[str]]:
    """One row a group: plain and speculative tokens a second, ratio, tokens a round."""
    by_group: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for at, prompt in enumerate(prompts):
        order = (False, True) if at % 2 else (True, False)
        results = {drafting: modes.run([prompt], params, drafting)[0] for drafting in order}
        where = first_difference(results[False].tokens, results[True].tokens)
        if where is not None:
            print(f"question {questions[at]['question_id']}: differs at token {where}", flush=True)
        plain, spec = results[False].speed.tokens_per_second, results[True].speed.tokens_per_second
        if plain is None or spec is None:
            continue
        rounds = max(1, results[True].speculation.rounds)
        claimed = results[True].speed.speedup or 0.0
        by_group[GROUPS[questions[at]["category"]]].append((plain, spec, (len(results[True].tokens) - 1) / rounds, claimed))
        print(
            f"{questions[at]['question_id']:>4} {questions[at]['category']:<16} {plain:6.2f} {spec:6.2f} {spec / plain:5.2f}",
            file=sys.stderr,
        )
    rows = []
    for group, values in by_group.items():
        rows.append([group, *_columns(values)])
    rows.append(["**all groups**", *_columns([value for values in by_group.values() for value in values])])
    return rows


def _columns(values: list[tuple[float, float, float, float]]) -> list[str]:
    plain = statistics.fmean(value[0] for value in values)
    spec = statistics.fmean(value[1] for value in values)
    ratio = statistics.geometric_mean(value[1] / value[0] for value in values)
    claimed = statistics.geometric_mean(max(value[3], 1e-9) for value in values)
    return [
        f"{plain:.2f}",
        f"{spec:.2f}",
        f"{ratio:.2f}",
        f"{statistics.fmean(v[2] for v in values):.2f}",
        f"{claimed:.2f}",
        str(len(values)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--per-category", type=int)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--equality-only", action="store_true")
    parser.add_argument("--batch", type=int, default=1, help="prompts drafted together with --equality-only")
    args = parser.parse_args()
    params = SamplingParams(temperature=args.temperature, seed=args.seed, max_tokens=args.max_tokens, ignore_eos=True)
    questions = spec_bench(args.per_category)
    llm = LLM(args.model, draft=args.draft, precision=args.precision)
    modes, prompts = Modes(llm), prompts_of(llm, questions)
    if args.equality_only:
        sys.exit(1 if equality(modes, prompts, params, questions, args.batch) else 0)
    rows = speeds(modes, prompts, params, questions)
    print(table(["group", "plain tok/s", "speculative tok/s", "ratio", "tokens a round", "speed-up as reported", "prompts"], rows))
    print(json.dumps({"model": args.model, "read_GB_s": round(read_bandwidth() / 1e9, 2), **vars(args), **machine()}))


if __name__ == "__main__":
    main()
