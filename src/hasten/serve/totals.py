"""What the engines of one model have done: written by the thread of the one that runs when a request ends, read by the metrics."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from hasten.engine.engine import Engine
from hasten.engine.requests import Request
from hasten.serve.tickets import Times

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
SECONDS_A_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
RECENT = 0.95  # of the speed-up's memory that is left after one more request


@dataclass(slots=True)
class Histogram:
    """Counts by upper border, the last one without; and their sum."""

    borders: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.borders) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.borders, value)] += 1
        self.total += value


@dataclass(frozen=True, slots=True)
class EngineCounts:
    """What an engine itself counts. ``queries`` and ``hits``: tokens looked for in the prefix cache and found there."""

    queries: int = 0
    hits: int = 0
    preemptions: int = 0

    @classmethod
    def of(cls, engine: Engine) -> EngineCounts:
        blocks = engine.scheduler.blocks
        statistics = blocks.statistics
        return cls(statistics.queries * blocks.block_size, statistics.hits * blocks.block_size, engine.scheduler.preemptions)

    def __add__(self, other: EngineCounts) -> EngineCounts:
        return EngineCounts(self.queries + other.queries, self.hits + other.hits, self.preemptions + other.preemptions)


@dataclass(slots=True)
class Totals:
    """Sums over all requests that ended, cancelled ones too."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    rounds: int = 0
    drafted: dict[str, int] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    accepted_at: list[int] = field(default_factory=list)
    finished: dict[str, int] = field(default_factory=dict)
    recent_plain: float = 0.0
    recent_decode: float = 0.0
    first_token: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    token: Histogram = field(default_factory=lambda: Histogram(SECONDS_A_TOKEN))
    whole: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    queue: Histogram = field(default_factory=lambda: Histogram(SECONDS))

    @property
    def speedup(self) -> float | None:
        """How many times sooner than plain decoding the requests of late had their tokens."""
        return self.recent_plain / self.recent_decode if self.recent_decode > 0.0 else None

    def add_embedding(self, tokens: int) -> None:
        """The embedding of a text of so many tokens is made."""
        self.prompt_tokens += tokens
        self.end("stop")

    def end(self, reason: str) -> None:
        """A request is over, whether or not it began."""
        self.finished[reason] = self.finished.get(reason, 0) + 1

    def add(self, request: Request, times: Times, reason: str) -> None:
        """A request is over."""
        self.prompt_tokens += request.answers[0].sequence.prompt_length
        self.generation_tokens += sum(answer.sequence.output_length for answer in request.answers)
        self.end(reason)
        account = request.speculation
        self.rounds += account.rounds
        self.accepted_at += [0] * (len(account.accepted_at) - len(self.accepted_at))
        for depth, count in enumerate(account.accepted_at):
            self.accepted_at[depth] += count
        for name, one in account.by_drafter.items():
            self.drafted[name] = self.drafted.get(name, 0) + one.drafted
            self.accepted[name] = self.accepted.get(name, 0) + one.accepted
        self._clock(request, times)

    def _clock(self, request: Request, times: Times) -> None:
        if times.started is not None:
            self.queue.observe(times.started - times.queued)
        if times.first is None or times.last is None:
            return
        self.first_token.observe(times.first - times.arrived)
        self.whole.observe(times.last - times.arrived)
        decode = times.last - times.first
        longest = max(answer.sequence.output_length for answer in request.answers)  # answers go side by side: it takes all the time
        if longest > 1 and decode > 0.0:
            self.token.observe(decode / (longest - 1))
        if request.plain_seconds > 0.0 and request.first_token is not None and request.last_token is not None:
            self.recent_plain = RECENT * self.recent_plain + request.plain_seconds
            self.recent_decode = RECENT * self.recent_decode + request.last_token - request.first_token
