"""What a model says, and its hidden states while it says it: what a speculator learns from.

The model answers questions that it asks itself (``own_questions``), plainly, and beside each token of an answer stands the state in
which it was chosen. Portion by portion it goes to disk, so that an interrupted recording goes on where it was.
"""

from __future__ import annotations

import gc
import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
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
PORTIONS = 4  # that are asked at once: while the last answers end, few are written in a step
TOGETHER = 64  # answers that are written at once
ROOM = 512  # tokens of one, question and answer
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
        self._ended: dict[int, Heard] = {}
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
        self._ended[sequence.id] = self._running.pop(sequence.id)

    def ended(self) -> list[Heard]:
        """Of each sequence that ended since the last call, in the order in which they were asked for."""
        out = [heard for _, heard in sorted(self._ended.items())]
        self._ended.clear()
        return out

    def recording(self, heard: list[Heard]) -> Recording:
        """What was heard, of those of which anything was."""
        tokens = [token for each in heard for token in each.tokens]
        places = [place for each in heard for place in each.places]
        return Recording(
            torch.tensor(tokens, dtype=torch.int64),
            torch.cat(self._states)[places] if places else torch.empty(0),  # a model may have no question to ask
            [len(each.tokens) for each in heard if each.tokens],
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
            cache_tokens=TOGETHER * ROOM,
            max_sequences=TOGETHER,
            prefix_cache=False,
        )
        with LLM(settings, progress=progress) as llm:
            missing = [start for start in starts if start not in parts]
            for first in range(0, len(missing), PORTIONS):
                some = {start: min(PORTION, questions - start) for start in missing[first : first + PORTIONS]}

                def told(label: str, done: int, total: int, before: int = min(some)) -> None:
                    progress(label, before + done, questions)

                parts |= _answered(llm, some, told)
                for start in some:
                    _keep(_part(folder, start), parts[start])
        del llm
        gc.collect()
    recorded = [parts[start] for start in starts]
    return Recording(
        torch.cat([part.tokens for part in recorded]),
        torch.cat([part.states for part in recorded]),
        [length for part in recorded for length in part.lengths],
    )


def _answered(llm: LLM, portions: dict[int, int], progress: Progress) -> dict[int, Recording]:
    """The answers to so many questions from each of these on."""
    recorder, drafting = Recorder(), llm.engine.drafting
    drafting.drafters = [recorder]
    total = sum(portions.values())
    heard: dict[int, list[Heard]] = {}
    prompts: list[list[int]] = []
    params: list[SamplingParams] = []
    counts: list[int] = []
    try:
        for first, count in portions.items():
            progress("asking itself", len(prompts), total)
            asked = own_questions(llm, count, first=first)
            heard[first] = recorder.ended()
            counts.append(len(asked))
            prompts += asked
            params += [
                SamplingParams(max_tokens=ANSWER_TOKENS, temperature=TEMPERATURES[at % len(TEMPERATURES)], seed=first + at)
                for at in range(len(asked))
            ]
        llm.generate(prompts, params, on_done=counted(progress, "answering itself", len(prompts)))
        answers = iter(recorder.ended())
    finally:
        drafting.drafters = []
    return {
        first: recorder.recording(heard[first] + list(islice(answers, count)))
        for first, count in zip(portions, counts, strict=True)
    }


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
