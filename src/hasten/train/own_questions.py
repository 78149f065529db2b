"""Questions that a model asks itself: given its own chat template up to the place of a user's words, it writes them (Magpie,
arXiv:2406.08464, section 2.1), most of them from first words of ordinary tasks on. They are what its training made it expect, so
answers to them are like those to come, and no user's data is in them."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from hasten.core.progress import Progress, counted, silent
from hasten.core.results import Answer
from hasten.core.types import SamplingParams
from hasten.train.openings import OPENINGS

if TYPE_CHECKING:
    from hasten import LLM

QUESTION_TOKENS = 96
FEWEST_CHARACTERS = 8
BEGINNING_TOKENS = 24
FREE = 5  # one question in so many begins with the model's own words
TWO_TURNS = ("Why?", "12 apples")  # that begin differently: what their conversations share ends where a user's words begin


def own_questions(llm: LLM, count: int, progress: Progress = silent, first: int = 0) -> list[list[int]]:
    """Prompts, as token ids, of up to ``count`` different questions; fewer where the model repeats itself. The same each time, and
    others for another ``first``. A model without a chat template, or whose template has nothing before a user's words, gets
    beginnings of texts that it wrote."""
    lead = _before_the_user(llm) if llm.has_chat_template else []
    seeds = range(first, first + count)
    if not lead:
        start = llm.encode("\n")
        beginnings = _written(llm, [start] * count, BEGINNING_TOKENS, seeds, progress)
        return [[*start, *tokens] for tokens in dict.fromkeys(tuple(answer.tokens) for answer in beginnings) if tokens]
    openings = [_opening(seed) for seed in seeds]
    starts = [[*lead, *llm.encode(opening)] if opening else lead for opening in openings]
    answers = _written(llm, starts, QUESTION_TOKENS, seeds, progress)
    texts = dict.fromkeys((opening + answer.text).strip() for opening, answer in zip(openings, answers, strict=True))
    return [llm.render_chat([{"role": "user", "content": text}]) for text in texts if len(text) >= FEWEST_CHARACTERS]


def _opening(seed: int) -> str:
    """Nothing for one question in ``FREE``: of its own accord a model asks about what it was trained on most."""
    return "" if seed % FREE == 0 else OPENINGS[seed % len(OPENINGS)]


def _written(llm: LLM, starts: list[list[int]], tokens: int, seeds: range, progress: Progress) -> list[Answer]:
    """How the model goes on from each of ``starts``, with a seed of its own."""
    params = [SamplingParams(max_tokens=tokens, temperature=1.0, seed=seed) for seed in seeds]
    completions = llm.generate(starts, params, on_done=counted(progress, "", len(seeds)))
    return [completion.answers[0] for completion in completions]


def _before_the_user(llm: LLM) -> list[int]:
    one, other = (llm.render_chat([{"role": "user", "content": text}]) for text in TWO_TURNS)
    return [mine for mine, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]
