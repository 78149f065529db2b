"""What is asked: Spec-Bench and HumanEval questions, files of prompts, mere shapes, and loads that are hard on drafters."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from hasten.bench.example_prompts import EXAMPLES
from hasten.bench.hostile_prompts import CREATIVE, UNKNOWN_LANGUAGE, UNRELATED
from hasten.core.errors import ConfigError, InvalidRequest
from hasten.core.registry import nearest
from hasten.core.types import SamplingParams

ANSWER_ROOM = 512  # positions that are kept free for the answer when a prompt is cut
WORKLOADS = ("examples", "spec-bench", "humaneval", "hostile")
FILES = {"spec-bench": "spec_bench_dev.jsonl", "humaneval": "humaneval_dev.jsonl"}
TEXT_FILE = "wikitext2_test_part.txt"  # whose perplexity is measured
OWN_QUESTIONS = "take --workload examples or --prompts FILE"
GROUPS = {
    **dict.fromkeys(
        ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"), "multi-turn conversation"
    ),
    "translation": "translation",
    "summarization": "summarization",
    "qa": "qa",
    "math_reasoning": "math_reasoning",
    "rag": "rag",
}
RANDOM_TEXTS, RANDOM_TOKENS = 24, 128  # most answers to nonsense are short, and one tells little
HOT = 1.2


class ChatModel(Protocol):
    """What is asked of an LLM here."""

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def context_length(self) -> int: ...

    def render_chat(self, messages: list[dict[str, Any]]) -> list[int]: ...

    def encode(self, prompt: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Question:
    """Token ids of one prompt, under a name that is its own within its load."""

    name: str
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Load:
    """Questions that are asked alike and reported together: ``batch`` of them at a time, with the same parameters."""

    name: str
    questions: list[Question]
    params: SamplingParams
    batch: int = 1

    def tasks(self) -> list[list[Question]]:
        """The questions, ``batch`` at a time; what does not fill a batch is left out."""
        whole = len(self.questions) - len(self.questions) % self.batch
        return [self.questions[at : at + self.batch] for at in range(0, whole, self.batch)]


def data_file(name: str, instead: str = "") -> Path:
    """A file of the measuring data. Raises ConfigError when HASTEN_SHARED_DATA does not lead to it; ``instead`` is what else its
    user can do, as "give --text FILE"."""
    folder = os.environ.get("HASTEN_SHARED_DATA")
    path = Path(folder or ".") / name
    if not folder or not path.is_file():
        where = f"not in '{folder}'" if folder else "not part of Hasten"
        raise ConfigError(
            f"{name} is {where}; set HASTEN_SHARED_DATA to a folder that holds it "
            f"(docs/bench.md, 'Questions and texts', says what it is){', or ' if instead else ''}{instead}."
        )
    return path


def check_workload(name: str) -> None:
    """Raise ConfigError for a workload that there is not."""
    if name not in WORKLOADS and _shape(name) is None:
        raise ConfigError(f"There is no workload called '{name}'{nearest(name, [*WORKLOADS, 'synthetic:128x64'])}")


def _shape(workload: str) -> tuple[int, int] | None:
    """Lengths of prompt and answer of a synthetic workload, None of another. Raises ConfigError."""
    written = re.fullmatch(r"synthetic:(\d{1,6})x(\d{1,6})", workload)
    if written is None:
        return None
    prompt, answer = int(written[1]), int(written[2])
    if prompt < 1 or answer < 2:  # one token alone has no speed
        raise ConfigError("A synthetic workload is written synthetic:PROMPTxANSWER, at least 1 token and at least 2.")
    return prompt, answer


def usual_workloads(never_slower: bool) -> tuple[str, ...]:
    """What is asked where nobody says: public questions where HASTEN_SHARED_DATA is set, else those that come with Hasten."""
    public = bool(os.environ.get("HASTEN_SHARED_DATA"))
    if never_slower:
        return ("spec-bench", "humaneval", "hostile") if public else ("examples", "hostile")
    return ("spec-bench",) if public else ("examples",)


def spec_bench(per_category: int | None = None) -> list[dict[str, Any]]:
    """The dev questions, optionally the first few of each category."""
    taken: dict[str, int] = {}
    out = []
    for question in _rows(data_file(FILES["spec-bench"], OWN_QUESTIONS)):
        taken[question["category"]] = taken.get(question["category"], 0) + 1
        if per_category is None or taken[question["category"]] <= per_category:
            out.append(question)
    return out


def humaneval(count: int | None = None, instead: str = OWN_QUESTIONS) -> list[dict[str, Any]]:
    """The dev problems: task_id, prompt, entry_point, test. ``instead`` as in ``data_file``."""
    return _rows(data_file(FILES["humaneval"], instead))[:count]


def chat_tokens(llm: ChatModel, text: str) -> list[int]:
    """A user's message as the model wants it, cut so that an answer fits behind."""
    tokens = llm.render_chat([{"role": "user", "content": text}]) if llm.has_chat_template else llm.encode(text)
    return tokens[: max(1, llm.context_length - ANSWER_ROOM)]


def loads(llm: ChatModel, workload: str, params: SamplingParams, per_group: int | None, batch: int, vocabulary: int) -> list[Load]:
    """The loads of one workload: "examples" and "spec-bench" have one a group, "hostile" its four, the others one.

    In batches all groups of a workload make one load, shuffled, so that what runs together is unrelated. Raises ConfigError for an
    unknown workload and where there are fewer questions than a batch holds.
    """
    check_workload(workload)
    shape = _shape(workload)
    if workload == "hostile":
        return hostile(llm, params, per_group, vocabulary)
    if workload == "spec-bench":
        found = [*_spec_bench_loads(llm, params, per_group)]
    elif workload == "examples":
        found = [Load(name, _asked(llm, texts[:per_group]), params) for name, texts in EXAMPLES.items()]
    elif workload == "humaneval":
        found = [
            Load("humaneval", [Question(row["task_id"], code_tokens(llm, row["prompt"])) for row in humaneval(per_group)], params)
        ]
    else:
        assert shape is not None, "workloads are checked before"
        found = [_synthetic(*shape, params, max(per_group or 4, batch), vocabulary)]
    return [_batched(workload, found, batch)] if batch > 1 else found


def from_prompts(llm: ChatModel, name: str, prompts: Sequence[str | list[int]], params: SamplingParams, batch: int) -> list[Load]:
    """A load of a user's own prompts, as ``cli.prompts`` reads them."""
    questions = [Question(f"{at + 1}", llm.encode(p) if isinstance(p, str) else p) for at, p in enumerate(prompts)]
    own = Load(name, questions, params)
    return [_batched(name, [own], batch)] if batch > 1 else [own]


def code_tokens(llm: ChatModel, prompt: str) -> list[int]:
    """A programming problem as a message to a chat model, or as text to be continued."""
    if not llm.has_chat_template:
        return llm.encode(prompt)
    return chat_tokens(
        llm, f"Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{prompt}```"
    )


def hostile(llm: ChatModel, params: SamplingParams, count: int | None, vocabulary: int) -> list[Load]:
    """Four loads on which guessing should fail: free writing at high temperature, random tokens, a language that small models do
    not know, and sixteen unrelated requests at once."""
    sampled = replace(params, temperature=HOT, seed=params.seed or 0)
    draw = random.Random(7)
    noise = [[draw.randrange(vocabulary) for _ in range(RANDOM_TOKENS)] for _ in range(RANDOM_TEXTS)][:count]
    mixed = random.Random(16).sample(UNRELATED, len(UNRELATED))
    meaningless = [Question(f"{at + 1}", tokens) for at, tokens in enumerate(noise)]
    return [
        Load("creative", _asked(llm, CREATIVE[:count]), sampled),
        Load("random tokens", meaningless, replace(sampled, temperature=1.0)),
        Load("unknown language", _asked(llm, UNKNOWN_LANGUAGE[:count]), params),
        Load("16 unrelated at once", _asked(llm, mixed), params, batch=16),
    ]


def _asked(llm: ChatModel, texts: Sequence[str]) -> list[Question]:
    return [Question(f"{at + 1}", chat_tokens(llm, text)) for at, text in enumerate(texts)]


def _spec_bench_loads(llm: ChatModel, params: SamplingParams, per_group: int | None) -> list[Load]:
    """One load a group. The first of a group come from different categories where it has several."""
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in spec_bench():
        grouped.setdefault(GROUPS[row["category"]], {}).setdefault(row["category"], []).append(row)
    out = []
    for group, categories in grouped.items():
        longest = max(map(len, categories.values()))
        mixed = [rows[at] for at in range(longest) for rows in categories.values() if at < len(rows)]
        questions = [Question(str(row["question_id"]), chat_tokens(llm, row["turns"][0])) for row in mixed[:per_group]]
        out.append(Load(group, questions, params))
    return out


def _synthetic(prompt: int, answer: int, params: SamplingParams, count: int, vocabulary: int) -> Load:
    """``count`` prompts of random tokens: shapes whose cost is to be measured, not texts."""
    draw = random.Random(prompt)
    questions = [Question(f"{at + 1}", [draw.randrange(vocabulary) for _ in range(prompt)]) for at in range(count)]
    return Load(f"{prompt} + {answer} random tokens", questions, replace(params, max_tokens=answer, ignore_eos=True))


def _batched(name: str, parts: list[Load], batch: int) -> Load:
    questions = [replace(question, name=f"{part.name} {question.name}") for part in parts for question in part.questions]
    if len(questions) < batch:
        raise ConfigError(f"'{name}' has {len(questions)} questions here, too few for a batch of {batch}; take more of each group.")
    random.Random(batch).shuffle(questions)
    return Load(f"{name}, {batch} at once", questions, parts[0].params, batch)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as problem:
        raise InvalidRequest(f"'{path}' cannot be read as JSON lines ({problem}).") from problem
