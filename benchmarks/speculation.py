"""Is drafted text the plain text, on real prompts, in batches? Every difference is printed.

    python benchmarks/speculation.py smollm2-135m --temperature 0.8 --seed 1 --max-tokens 64

Plain texts are made together in one batch, drafted ones ``--batch`` at a time, which puts batch invariance to the test as well.
Speeds are measured by ``hasten bench``; ``hasten prove`` does this and more on a few prompts.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hasten import LLM, SamplingParams
from hasten.bench.modes import PLAIN, Mode, Subject
from hasten.bench.samples import first_difference
from hasten.bench.workloads import chat_tokens, spec_bench


def equality(
    subject: Subject, name: str, prompts: list[list[int]], params: SamplingParams, questions: list[dict[str, Any]], batch: int
) -> int:
    """Print every difference; returns how many prompts differ."""
    plain = subject.run(PLAIN, prompts, [params] * len(prompts))
    different = tokens = drafted = accepted = 0
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        for at, sample in enumerate(subject.run(Mode("auto"), part, [params] * len(part)), start=start):
            tokens += len(sample.tokens)
            drafted += sum(sample.drafted.values())
            accepted += sum(sample.accepted.values())
            where = first_difference(plain[at].tokens, sample.tokens)
            if where is not None:
                different += 1
                print(f"question {questions[at]['question_id']}: differs at token {where}", flush=True)
    print(
        f"{name}, temperature {params.temperature}: {len(prompts)} prompts, {tokens} tokens, {drafted} drafted, "
        f"{accepted} accepted: {different} prompts differ",
        flush=True,
    )
    return different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--per-category", type=int)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1, help="prompts drafted together")
    args = parser.parse_args()
    params = SamplingParams(temperature=args.temperature, seed=args.seed, max_tokens=args.max_tokens, ignore_eos=True)
    questions = spec_bench(args.per_category)
    llm = LLM(args.model, draft=args.draft, precision=args.precision)
    prompts = [chat_tokens(llm, question["turns"][0]) for question in questions]
    sys.exit(1 if equality(Subject(llm.engine), llm.name, prompts, params, questions, args.batch) else 0)


if __name__ == "__main__":
    main()
