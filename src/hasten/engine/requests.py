"""A request while it runs: its answers, their text, and the account that becomes a ``Completion``."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from hasten.core.config import SpeculationParams
from hasten.core.results import Answer, Completion, CutBy, DraftCount, Speculation, Speed, StreamEvent, Timing, Usage
from hasten.core.types import MODEL_SOURCE, DraftTree, Sequence
from hasten.engine.text import TextStream
from hasten.sampling.constraint import Constraint
from hasten.sampling.filters import History


@dataclass(slots=True)
class AnswerState:
    """One answer: the sequence, the text of its tokens, and what has been delivered of both. ``thought`` is what the model thought
    before it answered, where that is told apart."""

    sequence: Sequence
    stream: TextStream
    history: History | None = None  # kept where penalties ask for it
    constraint: Constraint | None = None
    text: str = ""
    thought: str = ""
    fresh: list[str] = field(default_factory=list)  # text of each token that no event has reported yet
    fresh_thought: list[str] = field(default_factory=list)  # and its part in the thought
    delivered: int = 0  # output tokens already reported in events


@dataclass(slots=True)
class Request:
    """All answers of one request. ``plain_seconds`` adds up what its tokens would have taken without drafts."""

    id: str
    answers: list[AnswerState]
    verify: str = "coupled"  # the rule by which drafts are checked
    stop_tokens: frozenset[int] = frozenset()  # that end an answer
    speculate: SpeculationParams = field(default_factory=SpeculationParams)  # how it wants to be drafted for
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    drafting: float = 0.0  # seconds that it had taken when the last token came
    plain_seconds: float = 0.0
    plain_tokens: int = 0
    speculation: Speculation = field(default_factory=Speculation)
    inbox: deque[StreamEvent] = field(default_factory=deque)  # until whoever asked takes them
    problem: Exception | None = None  # what ended it, where its answers' finish_reason is "error"

    @property
    def finished(self) -> bool:
        return all(answer.sequence.finished for answer in self.answers)

    @property
    def cached(self) -> int:
        """Tokens of the prompt that the prefix cache held when the first answer began."""
        return self.answers[0].sequence.cached or 0

    def account(self, tree: DraftTree, accepted: list[int]) -> None:
        """Count one verification round."""
        self.speculation.rounds += 1
        for drafter in tree.drafters:
            self.speculation.by_drafter.setdefault(drafter, DraftCount()).drafted += 1
        reached = self.speculation.accepted_at
        reached += [0] * (len(accepted) - len(reached))
        for depth, node in enumerate(accepted):
            reached[depth] += 1
            self.speculation.by_drafter[tree.drafters[node]].accepted += 1

    def clock(self, emitted: int, plain: float | None, drafting: float = 0.0, drafted: bool = True) -> None:
        """Tokens arrived now. ``plain`` is what plain decoding takes for one of this request's tokens, whose answers share steps;
        None where it is not measured. ``drafting`` is how long drafting has taken since the engine started. A step without
        ``drafted`` guesses was plain but for that, and counts with the time it took otherwise."""
        now = time.perf_counter()
        if self.first_token is None or self.last_token is None:
            self.first_token = now
        elif not drafted:
            self.plain_seconds += max(0.0, now - self.last_token - (drafting - self.drafting))
            self.plain_tokens += emitted
        elif plain is not None:
            self.plain_seconds += emitted * plain
            self.plain_tokens += emitted
        self.last_token, self.drafting = now, drafting

    def tell(self, answer: AnswerState, completion: Completion | None) -> None:
        """Put what is new of that answer into the inbox."""
        sequence = answer.sequence
        output, append = sequence.output_length, self.inbox.append
        start = sequence.prompt_length + answer.delivered
        event = StreamEvent(
            sequence.index,
            "".join(answer.fresh),
            sequence.tokens[start:],
            sequence.provenance[answer.delivered :],
            completion,
            [thought + text for thought, text in zip(answer.fresh_thought, answer.fresh, strict=True)],
            sequence.logprobs[answer.delivered :],
            sequence.finish_reason,
            "".join(answer.fresh_thought),
            max(0, answer.stream.thought_tokens - answer.delivered),
        )
        # Python hears of signals at calls only: whoever interrupts finds the event there and counted as told, or neither.
        answer.delivered, answer.fresh, answer.fresh_thought = output, [], []
        append(event)

    def completion(
        self, model: str, precision: str, exact: bool, load_seconds: float, drafting: bool, bound: CutBy = "model"
    ) -> Completion:
        """The finished account. Without drafting the request's own speed is the plain speed. ``bound`` is what cuts an answer that
        may have more tokens."""
        produced = sum(answer.sequence.output_length for answer in self.answers)
        thought = sum(answer.stream.thought_tokens for answer in self.answers)
        begun = self.started or 0.0
        first = self.first_token or begun
        decode = (self.last_token or first) - first
        rate = (produced - 1) / decode if decode > 0 and produced > 1 else None
        plain = rate
        if drafting and rate is not None:
            plain = self.plain_tokens / self.plain_seconds if self.plain_seconds > 0 else None
        sequences = [answer.sequence for answer in self.answers]
        return Completion(
            id=self.id,
            model=model,
            precision=precision,
            exact=exact,
            answers=[_answer(state) for state in self.answers],
            usage=Usage(sequences[0].prompt_length, produced, self.cached, thought),
            timing=Timing(load_seconds, first - begun, decode),
            speed=Speed(rate, plain),
            speculation=self.speculation,
            verify=self.verify,
            cut_by=_cut_by(sequences[0], bound),
        )


def provenance_of(tree: DraftTree, path: list[int], emitted: int) -> list[str]:
    """Who guessed each of the ``emitted`` tokens: the accepted nodes' drafters, then the model itself."""
    return ([tree.drafters[node] for node in path] + [MODEL_SOURCE])[:emitted]


def _cut_by(sequence: Sequence, bound: CutBy) -> CutBy | None:
    if sequence.finish_reason != "length":
        return None
    return "max_tokens" if sequence.output_length == sequence.params.max_tokens else bound


def _answer(state: AnswerState) -> Answer:
    sequence = state.sequence
    assert sequence.finish_reason is not None
    return Answer(
        sequence.index,
        state.text,
        sequence.output,
        sequence.finish_reason,
        sequence.provenance,
        sequence.logprobs if sequence.params.logprobs is not None else None,
        state.stream.stop_string,
        state.thought,
    )
