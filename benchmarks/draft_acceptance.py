"""What of a draft model's guesses is accepted: trees, verification rules and draft models of another vocabulary, on real prompts.

    python benchmarks/draft_acceptance.py qwen2.5-coder-0.5b --draft-model smollm2-135m --drafts "foreign(match=strings)" \\
        "foreign(match=tokens)" "foreign(match=merges)"
    python benchmarks/draft_acceptance.py qwen2.5-coder-1.5b --temperature 1 --verify coupled rejection block \\
        --drafts "lm(width=1)" "lm(tree=rsd-c)" "lm(tree=rsd-s)" "lm(tree=top-k)"

    python benchmarks/draft_acceptance.py qwen2.5-coder-1.5b --passes 2 --drafts suffix recycling trie "memory(path=None)"

One line a draft, rule and pass over the prompts (``--passes 2`` asks all of them again, for drafters that remember): tokens a
round (accepted ones and the target's own), nodes verified a round, accepted nodes of them, and of a draft model the passes that a
round took. With ``--no-ahead`` each level takes a pass of its own.
``--depth`` levels are drafted in every round whatever they cost, all nodes are verified, and no clock is read, so the numbers
are the same on any machine. Under "coupled" every text is compared with that of plain decoding.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from common import machine, table
from hasten import LLM, SamplingParams
from hasten.bench.workloads import spec_bench
from hasten.core.config import SpeculationParams
from hasten.core.results import Completion
from hasten.core.types import DraftTree
from hasten.draft.lm import LanguageModelDrafter


def tokens_of(llm: LLM, texts: list[str], most: int) -> list[list[int]]:
    prompts = [
        llm.render_chat([{"role": "user", "content": text}]) if llm.has_chat_template else llm.encode(text) for text in texts
    ]
    return [prompt[:most] for prompt in prompts]


def verify_all(llm: LLM, depth: int) -> None:
    """The controller's costs and choices are left out: every round drafts ``depth`` levels, and every node is verified."""
    controller = llm.engine.controller
    controller.rule, controller.depth = "fixed", depth

    def select(rounds: list, rows: int, seconds: float, room: int, each: int) -> list[DraftTree]:  # type: ignore[type-arg]
        return [round.keep(set(range(len(round.tree)))) for round in rounds]

    type(controller).select = staticmethod(select)  # type: ignore[method-assign, assignment]


def measure(args: argparse.Namespace, draft: str, verify: str, texts: list[str], plain: list[list[int]]) -> list[list[str]]:
    """The rows of one draft: one a pass over the prompts."""
    rows: list[list[str]] = []
    named = {} if args.draft_model is None else {"draft_model": args.draft_model}
    with LLM(args.model, draft=draft, verify=verify, precision=args.precision, cache_tokens=4096, **named) as llm:
        verify_all(llm, args.depth)
        passes = counted_passes(llm, args.no_ahead)
        params = SamplingParams(temperature=args.temperature, seed=args.seed, max_tokens=args.max_tokens, ignore_eos=True)
        for number in range(1, args.passes + 1):
            done: list[Completion] = []
            passes.clear()
            for at, prompt in enumerate(tokens_of(llm, texts, args.most_prompt)):
                completion = llm.generate(prompt, params, speculation=SpeculationParams(nodes=args.nodes))[0]
                done.append(completion)
                if verify == "coupled" and completion.tokens != plain[at]:
                    print(f"{draft}: the text of prompt {at} is not that of plain decoding", flush=True)
            rounds = sum(completion.speculation.rounds for completion in done)
            rows.append([draft, verify, str(number), *counted(done), f"{sum(passes) / rounds:.2f}" if passes else ""])
            print(" | ".join(rows[-1]), flush=True)
    return rows


def counted_passes(llm: LLM, no_ahead: bool) -> list[int]:
    """A list that gets the passes of each call of a draft model."""
    passes: list[int] = []
    if no_ahead:
        type(llm.engine.controller.costs).ahead = lambda *_: []  # type: ignore[method-assign]
    for drafter in llm.engine.drafting.drafters:
        if isinstance(drafter, LanguageModelDrafter):
            draft = drafter._draft

            def counting(sequences: Any, budgets: Any, drawing: bool, draft: Any = draft, drafter: Any = drafter) -> Any:
                out = draft(sequences, budgets, drawing)
                passes.append(drafter.passes)
                return out

            drafter._draft = counting  # type: ignore[method-assign]
    return passes


def counted(done: list[Completion]) -> list[str]:
    """Tokens a round, nodes a round, and the share of nodes that was accepted."""
    rounds = sum(completion.speculation.rounds for completion in done)
    drafted = sum(completion.speculation.drafted for completion in done)
    accepted = sum(completion.speculation.accepted for completion in done)
    emitted = sum(len(completion.tokens) - 1 for completion in done)
    return [f"{emitted / rounds:.2f}", f"{drafted / rounds:.1f}", f"{accepted / max(1, drafted):.2f}"]


def plain_texts(args: argparse.Namespace, texts: list[str]) -> list[list[int]]:
    with LLM(args.model, draft="none", precision=args.precision, cache_tokens=4096) as llm:
        params = SamplingParams(temperature=args.temperature, seed=args.seed, max_tokens=args.max_tokens, ignore_eos=True)
        return [llm.generate(prompt, params)[0].tokens for prompt in tokens_of(llm, texts, args.most_prompt)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--drafts", nargs="+", default=["lm"])
    parser.add_argument("--draft-model")
    parser.add_argument("--verify", nargs="+", default=["coupled"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--step", type=int, default=20, help="every n-th of the Spec-Bench dev prompts")
    parser.add_argument("--most-prompt", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-ahead", action="store_true", help="a draft model's passes hold no guesses at what it will choose")
    parser.add_argument("--passes", type=int, default=1, help="how often all prompts are asked, one after the other")
    args = parser.parse_args()
    texts = [question["turns"][0] for question in spec_bench()[:: args.step]]
    plain = plain_texts(args, texts) if "coupled" in args.verify else []
    rows = [row for draft in args.drafts for verify in args.verify for row in measure(args, draft, verify, texts, plain)]
    print(table(["draft", "verify", "pass", "tokens a round", "nodes a round", "of them accepted", "passes a round"], rows))
    print(json.dumps({**vars(args), **machine()}))


if __name__ == "__main__":
    main()
