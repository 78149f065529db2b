"""Quality: solved HumanEval problems (pass@1, arXiv:2107.03374) and perplexity, each with and without drafts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hasten.bench.perplexity import of_losses, token_losses
from hasten.bench.sandbox import Outcome, run_locked
from hasten.core.types import BLOCK_SIZE, ROOT, Batch, DraftTree, Segment
from hasten.model.executor import Executor

FENCE = re.compile(r"```[a-zA-Z]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
ENDS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\n```", "\nassert ")  # where a continued function is over
VERIFIED = 8  # rows of the passes that stand for verification


@dataclass(frozen=True, slots=True)
class Solved:
    """One problem in one mode."""

    task: str
    outcome: Outcome
    tokens: list[int]


def program_of(problem: dict[str, Any], answer: str, chat: bool) -> str:
    """The function that an answer gives, with the problem's own tests behind it.

    A chat model's answer is its first code block that defines the function, else a body for the problem's head; what a model
    continues ends where the function ends. The problem's imports stand before it.
    """
    prompt, name = str(problem["prompt"]), str(problem["entry_point"])
    if chat:
        blocks = FENCE.findall(answer) or [answer]
        whole = next((block for block in blocks if re.search(rf"^\s*def {re.escape(name)}\b", block, re.MULTILINE)), None)
        code = prompt + blocks[0] if whole is None else f"{_imports(prompt)}\n{whole}"
    else:
        code = prompt + answer[: min((at for end in ENDS if (at := answer.find(end)) >= 0), default=len(answer))]
    return f"{code}\n\n{problem['test']}\n\ncheck({name})\n"


def judge(problem: dict[str, Any], answer: str, tokens: list[int], chat: bool, seconds: int = 10) -> Solved:
    """Run an answer's tests, locked in."""
    return Solved(str(problem["task_id"]), run_locked(program_of(problem, answer, chat), seconds), tokens)


def verified_perplexity(executor: Executor, chunks: Sequence[list[int]]) -> float:
    """Perplexity with every token's logits taken from passes such as verification makes: one known token and a chain of guesses,
    here the text itself, accepted and moved into line. Equal to ``perplexity`` bit for bit where drafts change nothing."""
    losses: list[float] = []
    for chunk in chunks:
        blocks = list(range(-(-(len(chunk) + VERIFIED) // BLOCK_SIZE)))
        for start in range(0, len(chunk) - 1, VERIFIED):
            rows = chunk[start : min(start + VERIFIED, len(chunk) - 1)]
            tree = DraftTree()
            for node, token in enumerate(rows[1:]):
                tree.add(node - 1 if node else ROOT, token, 1.0, "text")
            logits = executor.forward(Batch([Segment(blocks, start, rows[:1], tree)]))
            executor.commit(blocks, start, list(range(len(rows))))
            losses += token_losses(logits, chunk[start + 1 : start + 1 + len(rows)])
    return of_losses(losses)


def _imports(prompt: str) -> str:
    return "\n".join(line for line in prompt.splitlines() if line.startswith(("import ", "from ")))
