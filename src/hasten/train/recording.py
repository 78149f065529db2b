"""What a model says, and its hidden states while it says it: what a speculator learns from.

The model answers questions that it asks itself (``own_questions``), plainly, and beside each token of an answer stands the state in
which it was chosen. Portion by portion it goes to disk, so that an interrupted recording goes on where it was.
"""

from __future__ import annotations

import gc
import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from hasten.core.config import EngineConfig
from hasten.core.errors import HastenError
from hasten.core.progress import Progress, counted, silent
from hasten.core.replacement import Replacement, refusal
from hasten.core.types import SamplingParams, Sequence
from hasten.draft.base import Drafter
from hasten.train.own_questions import own_questions

if TYPE_CHECKING:
    from hasten import LLM

PORTION = 128  # questions of one file
TOGETHER = 32  # answers that are written at once
ANSWER_TOKENS = 320
STATES = 8192  # of one piece of memory
TEMPERATURES = (0.0, 0.8)  # in turns
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Heard:
    """An answer's tokens, and which of the recorder's states are theirs."""

    tokens: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Answers one after the other: ``tokens`` int64 [n], ``states`` bfloat16 [n, hidden] in which they were chosen, ``lengths``
    of the answers."""

    tokens: Tensor
    states: Tensor
    lengths: list[int]

    @property
    def left(self) -> Tensor:
        """For each token how many of its answer come behind it, int64 [n]."""
        return torch.cat([torch.arange(length - 1, -1, -1) for length in self.lengths])


class Recorder(Drafter):
    """Drafts nothing and keeps the state behind every token, while each step gives one.

    States go to pieces of memory that take thousands. Each in its own would lie between one step's logits and the next one's, and
    the allocator's heap would grow to many times what it holds.
    """

    name = "recorder"
    follows = True

    def __init__(self) -> None:
        self.ended: list[Heard] = []
        self._states: list[Tensor] = []  # bfloat16 [STATES, hidden] each
        self._used = 0  # places, of all pieces
        self._running: dict[int, Heard] = {}

    def begin(self, sequence: Sequence) -> None:
        self._running[sequence.id] = Heard()

    def follow(self, sequence: Sequence, state: Tensor) -> None:
        place = self._used % STATES
        if place == 0:
            self._states.append(torch.empty((STATES, len(state)), dtype=torch.bfloat16))
        heard = self._running[sequence.id]
        heard.tokens.append(sequence.tokens[-1])
        heard.places.append(self._used)
        self._states[-1][place] = state
        self._used += 1

    def end(self, sequence: Sequence) -> None:
        heard = self._running.pop(sequence.id)
        if heard.tokens:
            self.ended.append(heard)

    def recording(self) -> Recording:
        """What was heard of sequences that have ended."""
        tokens = [token for heard in self.ended for token in heard.tokens]
        places = [place for heard in self.ended for place in heard.places]
        return Recording(
            torch.tensor(tokens, dtype=torch.int64),
            torch.cat(self._states)[places] if places else torch.empty(0),  # a model may have no question to ask
            [len(heard.tokens) for heard in self.ended],
        )


def record(config: EngineConfig, folder: Path, questions: int, progress: Progress = silent) -> Recording:
    """What ``config.model`` answers to so many questions, or a few less. ``folder`` keeps finished portions,
    and none of them is made twice.

    Raises HastenError, one sentence, when the folder cannot be written.
    """
    starts = range(0, questions, PORTION)
    parts = {start: found for start in starts if (found := _kept(_part(folder, start))) is not None}
    if len(parts) < len(starts):
        from hasten import LLM

        settings = replace(
            config,
            draft="none",
            control="fixed(1)",  # who records is never let go, whatever that costs
            context_length=0,
            cache_tokens=TOGETHER * 1024,
            max_sequences=TOGETHER,
            prefix_cache=False,
        )
        with LLM(settings, progress=progress) as llm:
            for start in starts:
                if start not in parts:

                    def told(label: str, done: int, total: int, start: int = start) -> None:
                        progress(label, start + done, questions)

                    parts[start] = _portion(llm, start, min(PORTION, questions - start), told)
                    _keep(_part(folder, start), parts[start])
        del llm
        gc.collect()
    recorded = [parts[start] for start in starts]
    return Recording(
        torch.cat([part.tokens for part in recorded]),
        torch.cat([part.states for part in recorded]),
        [length for part in recorded for length in part.lengths],
    )


def _portion(llm: LLM, first: int, count: int, progress: Progress) -> Recording:
    """The answers to ``count`` questions."""
    recorder, drafting = Recorder(), llm.engine.drafting
    drafting.drafters = [recorder]
    try:
        progress("asking itself", 0, count)
        prompts = own_questions(llm, count, first=first)
        params = [
            SamplingParams(max_tokens=ANSWER_TOKENS, temperature=TEMPERATURES[at % len(TEMPERATURES)], seed=first + at)
            for at in range(len(prompts))
        ]
        llm.generate(prompts, params, on_done=counted(progress, "answering itself", len(prompts)))
    finally:
        drafting.drafters = []
    return recorder.recording()


def _part(folder: Path, start: int) -> Path:
    return folder / f"{start:06d}.safetensors"


def _keep(path: Path, part: Recording) -> None:
    tensors = {"tokens": part.tokens, "states": part.states, "lengths": torch.tensor(part.lengths)}
    try:
        with Replacement(path) as replacement:
            replacement.file.write(safetensors.torch.save(tensors))
    except OSError as problem:
        raise HastenError(refusal(path, problem)) from problem


def _kept(path: Path) -> Recording | None:
    """A portion from disk; None where it is not there, or not whole."""
    try:
        tensors = safetensors.torch.load_file(path)
        return Recording(tensors["tokens"], tensors["states"], tensors["lengths"].tolist())
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError) as problem:
        log.warning("%s is not whole (%s) and is made anew.", path, problem)
        with suppress(OSError):
            path.unlink()
        return None
