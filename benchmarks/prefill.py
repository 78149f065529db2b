"""Time to the first token of a long prompt: Hasten beside other engines on the same weights, in turns in one run.

    python benchmarks/prefill.py qwen2.5-coder-1.5b
    python benchmarks/prefill.py smollm2-135m --tokens 1000 --against openvino,llama.cpp

Every engine decodes plainly and is handed the same token ids, a new text each round. Perplexities stand
beside ``hasten bench --against``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict

from common import data_file, machine, table
from hasten import LLM
from hasten.bench.contestants import ModeContestant
from hasten.bench.modes import PLAIN, Subject
from hasten.bench.peers import check_names, make_peers
from hasten.bench.perplexity import chunks_of
from hasten.bench.session import Contestant, ContestantFailed, turn
from hasten.bench.statistics import Estimate, geometric_mean, median
from hasten.bench.tables import interval
from hasten.core.types import SamplingParams
from hasten.model.catalogue import resolve
from hasten.model.kernels import threads_and_level

ONE = SamplingParams(max_tokens=2, ignore_eos=True)


def measured(contestants: Sequence[Contestant], prompts: Sequence[list[int]]) -> dict[str, list[float]]:
    """Seconds to the first token by contestant, a number a prompt; who fails is left out, and it is said."""
    working, found = list(contestants), {contestant.name: list[float]() for contestant in contestants}
    for number, prompt in enumerate([prompts[0][:64], *prompts]):
        for contestant in list(turn(working, number)):
            try:
                (sample,) = contestant.answer([prompt], ONE, number)
            except ContestantFailed as problem:
                print(problem)
                working.remove(contestant)
                del found[contestant.name]
                continue
            if number:  # the first is a short one that warms up
                found[contestant.name].append(sample.first_s)
    return found


def compared(own: str, found: dict[str, list[float]]) -> dict[str, tuple[Estimate, Estimate]]:
    """By contestant the median of its seconds, and how many times as fast as that the first one is on the same prompts."""
    return {
        name: (median(spent), geometric_mean([other / first for other, first in zip(spent, found[own], strict=True)]))
        for name, spent in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--against", default="openvino")
    args = parser.parse_args()
    with ExitStack() as stack:
        llm = stack.enter_context(closing(LLM(args.model, draft="none", precision=args.precision)))
        text = data_file("wikitext2_test_part.txt").read_text(encoding="utf-8")
        prompts = chunks_of(llm.engine.tokenizer, text, args.tokens, args.rounds)
        path, threads = resolve(args.model).path, threads_and_level()[0]
        peers = make_peers(check_names(args.against), path, None, threads, args.tokens + 64, print, stack)
        own = ModeContestant(Subject(llm.engine), PLAIN)
        found = compared(own.name, measured([own, *(peer for peer in peers if peer.mode == "plain")], prompts))
    rows = []
    for name, (spent, ratio) in found.items():
        title = f"hasten {args.precision}" if name == own.name else name
        rows.append([title, f"{1e3 * spent.value:.0f}", f"{args.tokens / spent.value:.0f}", interval(ratio)])
    print(f"{args.tokens} tokens, {len(prompts)} rounds in turns\n")
    print(table(["engine", "first token ms (median)", "tok/s", "time over Hasten's [95 %]"], rows))
    values = {name: [asdict(estimate) for estimate in pair] for name, pair in found.items()}
    print(json.dumps({"model": args.model, "tokens": args.tokens, "seconds and ratios": values, **machine()}))


if __name__ == "__main__":
    main()
