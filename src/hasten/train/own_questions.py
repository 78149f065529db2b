"""Questions that a model asks itself: given its own chat template up to the place of a user's words, it writes them (Magpie,
arXiv:2406.08464, section 2.1). They are what its training made it expect, so answers to them are like those to come, and no
user's data is in them."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from hasten.core.progress import Progress, counted, silent
from hasten.core.results import Answer
from hasten.core.types import SamplingParams

if TYPE_CHECKING:
    from hasten import LLM

QUESTION_TOKENS = 96
FEWEST_CHARACTERS = 8
BEGINNING_TOKENS = 24
TWO_TURNS = ("Why?", "12 apples")  # that begin differently: what their conversations share ends where a user's words begin


def own_questions(llm: LLM, count: int, progress: Progress = silent, first: int = 0) -> list[list[int]]:
    """Prompts, as token ids, of up to ``count`` different questions; fewer where the model repeats itself. The same each time, and
    others for another ``first``. A model without a chat template, or whose template has nothing before a user's words, gets
    beginnings of texts that it wrote."""
    lead = _before_the_user(llm) if llm.has_chat_template else []
    seeds = range(first, first + count)
    if not lead:
        start = llm.encode("\n")
        beginnings = _written(llm, start, BEGINNING_TOKENS, seeds, progress)
        return [[*start, *tokens] for tokens in dict.fromkeys(tuple(answer.tokens) for answer in beginnings) if tokens]
    texts = dict.fromkeys(answer.text.strip() for answer in _written(llm, lead, QUESTION_TOKENS, seeds, progress))
    return [llm.render_chat([{"role": "user", "content": text}]) for text in texts if len(text) >= FEWEST_CHARACTERS]


def _written(llm: LLM, start: list[int], tokens: int, seeds: range, progress: Progress) -> list[Answer]:
    """Ways in which the model goes on from ``start``, one a seed."""
    params = [SamplingParams(max_tokens=tokens, temperature=1.0, seed=seed) for seed in seeds]
    completions = llm.generate([start] * len(seeds), params, on_done=counted(progress, "", len(seeds)))
    return [completion.answers[0] for completion in completions]


def _before_the_user(llm: LLM) -> list[int]:
    one, other = (llm.render_chat([{"role": "user", "content": text}]) for text in TWO_TURNS)
    return [mine for mine, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]
