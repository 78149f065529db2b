"""Questions that a model asks itself: given its own chat template up to the place of a user's words, it writes them (Magpie,
arXiv:2406.08464, section 2.1). They are what its training made it expect, so answers to them are like those to come, and no
user's data is in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hasten.core.progress import Progress, silent
from hasten.core.results import Completion
from hasten.core.types import SamplingParams

if TYPE_CHECKING:
    from hasten import LLM

QUESTION_TOKENS = 96
FEWEST_CHARACTERS = 8
BEGINNING_TOKENS = 24
TWO_TURNS = ("Why?", "12 apples")  # that begin differently: what their conversations share ends where a user's words begin


def own_questions(llm: LLM, count: int, progress: Progress = silent) -> list[list[int]]:
    """Prompts, as token ids, of up to ``count`` different questions; fewer where the model repeats itself. The same each time. A
    model without a chat template, or whose template has nothing before a user's words, gets beginnings of texts that it wrote."""
    lead = _before_the_user(llm) if llm.has_chat_template else []
    if not lead:
        return _own_beginnings(llm, count, progress)
    params = [SamplingParams(max_tokens=QUESTION_TOKENS, temperature=1.0, seed=seed) for seed in range(count)]
    written = llm.generate([lead] * count, params, on_done=counted(count, progress))
    texts = dict.fromkeys(completion.text.strip() for completion in written)
    return [llm.render_chat([{"role": "user", "content": text}]) for text in texts if len(text) >= FEWEST_CHARACTERS]


def counted(count: int, progress: Progress) -> Callable[[int, Completion], None]:
    """For ``LLM.generate``: tells ``progress`` how many of ``count`` requests are done."""
    done = 0

    def on_done(index: int, completion: Completion) -> None:
        nonlocal done
        done += 1
        progress("", done, count)

    return on_done


def _before_the_user(llm: LLM) -> list[int]:
    one, other = (llm.render_chat([{"role": "user", "content": text}]) for text in TWO_TURNS)
    length = next(place for place, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs)
    return one[:length]


def _own_beginnings(llm: LLM, count: int, progress: Progress) -> list[list[int]]:
    start = llm.encode("\n")
    params = [SamplingParams(max_tokens=BEGINNING_TOKENS, temperature=1.0, seed=seed) for seed in range(count)]
    written = llm.generate([start] * count, params, on_done=counted(count, progress))
    texts = dict.fromkeys(tuple(completion.answers[0].tokens) for completion in written)
    return [start + list(tokens) for tokens in texts if tokens]
