"""What a request returns: text, tokens, and an honest account of what it cost and who guessed it. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hasten.core.types import FinishReason, TokenLogprob

CutBy = Literal["max_tokens", "cache_tokens", "context_length", "model"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the prompt, those of them that the prefix cache had when the request began, and tokens of all answers together,
    those of thoughts included."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    thought_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. ``load_s`` is what loading the model took (once an engine); ``prefill_s`` lasts from the request's first step
    to its first token; ``decode_s`` from there to its last."""

    load_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Decoding speed of the request, and the speed that plain decoding would have had on this machine at this context,
    from measured one-row steps; steps without drafts count with the time they took. ``speedup`` is their ratio. None where nothing
    was decoded or measured."""

    tokens_per_second: float | None
    plain_tokens_per_second: float | None

    @property
    def speedup(self) -> float | None:
        if not self.tokens_per_second or not self.plain_tokens_per_second:
            return None
        return self.tokens_per_second / self.plain_tokens_per_second


@dataclass(slots=True)
class DraftCount:
    """Nodes that one drafter had verified, and those accepted."""

    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Speculation:
    """Rounds (verification passes) of a request and what drafting brought; a node is counted for the drafter it is credited to.
    ``accepted_at`` counts the rounds that accepted a node at depth 1, 2, ... ``decisions`` says of each drafter why it was on or
    off, where ``EngineConfig.explain`` asks for it."""

    rounds: int = 0
    accepted_at: list[int] = field(default_factory=list)
    by_drafter: dict[str, DraftCount] = field(default_factory=dict)
    decisions: dict[str, str] = field(default_factory=dict)

    @property
    def drafted(self) -> int:
        return sum(count.drafted for count in self.by_drafter.values())

    @property
    def accepted(self) -> int:
        return sum(count.accepted for count in self.by_drafter.values())


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the n answers of a request. ``provenance`` names, token by token, the drafter that guessed it or "model";
    ``stop_string`` is the stop string that ended it, where one did. ``thought`` is what the model thought first, where that was
    told apart: ``text`` is without it then, ``tokens`` are all."""

    index: int
    text: str
    tokens: list[int]
    finish_reason: FinishReason
    provenance: list[str]
    logprobs: list[TokenLogprob] | None = None
    stop_string: str | None = None
    thought: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """The finished request: its answers and its account. ``verify`` is the rule by which drafts were checked; under "coupled" the
    text is that of plain decoding, under the others one of the same law. ``exact``: to the last bit; else (a GPU, or no native
    kernels) up to rounding, which may depend on what is computed together. ``text``, ``thought``, ``tokens``, ``finish_reason``
    and ``cut_by`` are the first answer's: the last one names the setting that ended it where its finish_reason is "length"
    (max_tokens, cache_tokens or context_length), or "model", whose own context was full."""

    id: str
    model: str
    precision: str
    exact: bool
    answers: list[Answer]
    usage: Usage
    timing: Timing
    speed: Speed
    speculation: Speculation
    verify: str = "coupled"
    cut_by: CutBy | None = None

    @property
    def text(self) -> str:
        return self.answers[0].text

    @property
    def thought(self) -> str:
        return self.answers[0].thought

    @property
    def tokens(self) -> list[int]:
        return self.answers[0].tokens

    @property
    def finish_reason(self) -> FinishReason:
        return self.answers[0].finish_reason

    def to_json(self) -> dict[str, Any]:
        """The object that ``hasten generate --json`` prints: the first answer, and all of them under "answers" when n > 1. Keys
        "logprobs" and "decisions" are there where they were asked for."""
        first = self.answers[0]
        out: dict[str, Any] = {
            "id": self.id,
            **_told(first),
            "cut_by": self.cut_by,
            "usage": {
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
                "cached_tokens": self.usage.cached_tokens,
                "thought_tokens": self.usage.thought_tokens,
            },
            "timing": {
                "load_s": round(self.timing.load_s, 4),
                "prefill_s": round(self.timing.prefill_s, 4),
                "decode_s": round(self.timing.decode_s, 4),
            },
            "speed": {
                "tokens_per_second": _rounded(self.speed.tokens_per_second),
                "plain_tokens_per_second": _rounded(self.speed.plain_tokens_per_second),
                "speedup": _rounded(self.speed.speedup),
            },
            "speculation": {
                "rounds": self.speculation.rounds,
                "drafted": self.speculation.drafted,
                "accepted": self.speculation.accepted,
                "by_drafter": {
                    name: {"drafted": count.drafted, "accepted": count.accepted}
                    for name, count in sorted(self.speculation.by_drafter.items())
                },
                **({"decisions": self.speculation.decisions} if self.speculation.decisions else {}),
            },
            "exact": self.exact,
            "verify": self.verify,
            "precision": self.precision,
            "model": self.model,
        }
        if len(self.answers) > 1:
            out["answers"] = [{"index": answer.index, **_told(answer)} for answer in self.answers]
        return out


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """A piece of an answer as it becomes final: whole UTF-8 characters only, and never text that a stop string may still take
    back. ``tokens``, ``provenance``, ``pieces`` and, where asked for, ``logprobs`` have one entry for each token committed since
    the last event of this answer; the pieces, joined, are ``text`` (a piece is empty while its text is held back, and goes to the
    token that lets it go). The last event of an answer carries its ``finish_reason``, that of a request its ``completion``.

    Where the model's thought is told apart, ``thought`` is what the event has of it and ``text`` what it has of the answer;
    ``thought_tokens`` of the tokens, the first ones, are the thought's, and the pieces, joined, are ``thought`` and then
    ``text``."""

    index: int
    text: str
    tokens: list[int]
    provenance: list[str]
    completion: Completion | None = None
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    thought: str = ""
    thought_tokens: int = 0

    @property
    def thinks(self) -> bool:
        """Whether something of it, if only a mark, is the thought's."""
        return bool(self.thought or self.thought_tokens)

    def apart(self) -> list[StreamEvent]:
        """The same as two where it has the end of a thought and more: one of thought only, with its tokens, and the answer's."""
        if not (self.thinks and self.text):
            return [self]
        count = self.thought_tokens
        lists = ("tokens", "provenance", "pieces", "logprobs")
        thought = {name: getattr(self, name)[:count] for name in lists}
        answer = {name: getattr(self, name)[count:] for name in lists}
        return [
            replace(self, text="", completion=None, finish_reason=None, **thought),
            replace(self, thought="", thought_tokens=0, **answer),
        ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _told(answer: Answer) -> dict[str, Any]:
    """One answer, as an object of JSON has it."""
    out: dict[str, Any] = {
        "text": answer.text,
        "thought": answer.thought,
        "tokens": answer.tokens,
        "finish_reason": answer.finish_reason,
        "stop_string": answer.stop_string,
        "provenance": answer.provenance,
    }
    if answer.logprobs is not None:
        out["logprobs"] = [_logprob(entry) for entry in answer.logprobs]
    return out


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    return {
        "token": entry.token,
        "logprob": entry.logprob,
        "top": [{"token": token, "logprob": value} for token, value in entry.top],
    }
