"""Show on a user's own models that nothing but weights, prompt, parameters and seed decides a text.

Everything is compared with the plainest way of decoding: no drafts, one prompt at a time, prompts in one piece, no prefix cache.
A promise is shown by tokens: those that were compared and equal. What the other way did differently (guesses that were verified,
prompt tokens that came out of the cache) is counted too, for a way that did nothing different shows nothing. Of its prompts only
those count in which it did something: a token that differs in another one is held against the promise that it does break, for
drafts are made in all ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from hasten.bench.modes import ALWAYS, PLAIN, Mode, Subject, run
from hasten.bench.samples import Sample, first_difference
from hasten.core.errors import ConfigError
from hasten.core.types import BLOCK_SIZE, Batch, SamplingParams, Segment
from hasten.engine.engine import Engine

TEMPERATURE = 0.8
DRAFTS, SEED = ("drafts change nothing", "guesses verified"), ("a seed repeats its text", "tokens drawn")
CHUNKS = (16, 61)  # rows of a step: less than a prompt, and no divisor of a block
AUTO_MODE, DRAFTED = Mode("auto"), Mode("drafted in every round", None, "auto", ALWAYS)


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token that differs. ``logits`` are those of both tokens in one fresh pass of the model over everything before."""

    prompt: int
    position: int
    expected: int | None
    found: int | None
    logits: tuple[float | None, float | None]


@dataclass(slots=True)
class Shown:
    """One promise and what it was put to: ``tokens`` compared, ``evidence`` what was done differently (0: nothing, so that nothing
    is shown), ``unit`` in words."""

    promise: str
    way: str
    unit: str
    tokens: int = 0
    evidence: int = 0
    difference: Difference | None = None

    @property
    def result(self) -> str:
        if self.difference is not None:
            return "broken"
        return "shown" if self.tokens and self.evidence else "not shown"

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "promise": self.promise, "way": self.way, "result": self.result, "tokens": self.tokens, self.unit: self.evidence,
        }  # fmt: skip
        if self.difference is not None:
            found = self.difference
            out["difference"] = {
                "prompt": found.prompt, "position": found.position, "expected": found.expected, "found": found.found,
                "logits": list(found.logits),
            }  # fmt: skip
        return out


@dataclass(slots=True)
class _Case:
    """One way of sampling: parameters and what the plainest decoding says."""

    name: str
    params: SamplingParams
    plain: list[Sample] = field(default_factory=list)


class Proof:
    """Puts an engine's promises to the test. The engine must be idle, and its prefix cache is forgotten."""

    def __init__(self, engine: Engine, prompts: Sequence[list[int]], tokens: int = 64, seed: int = 1) -> None:
        if not engine.drafting.drafters:
            raise ConfigError("Without drafters there is no promise to prove; give --draft auto or another choice than none.")
        engine.scheduler.blocks.clear_cache()
        self.subject = Subject(engine, most_together=max(16, len(prompts)))
        self.prompts = [list(prompt) for prompt in prompts]
        base = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=seed)
        self.cases = [_Case("greedy", base), _Case(f"temperature {TEMPERATURE:g}", replace(base, temperature=TEMPERATURE))]

    def run(self, each: Callable[[str], None] = lambda _: None) -> Iterator[Shown]:
        """One ``Shown`` a comparison, in a fixed order; ``each`` hears of it as it starts."""
        for case in self.cases:
            each(f"plain decoding, {case.name}")
            # Asked for logprobs, the model's whole head says what follows: that its sketch changes nothing is shown, too.
            whole = replace(case.params, logprobs=0)
            case.plain = self._alone(self.subject.variant(PLAIN), whole, Mode("plain"))
        for case in self.cases:
            for shown, compare in self._comparisons(case):
                each(f"{shown.promise}: {shown.way}")
                other = compare(shown)
                yield shown
                if other is not None:
                    yield other

    def _comparisons(self, case: _Case) -> Iterator[tuple[Shown, Callable[[Shown], Shown | None]]]:
        def shown(promise: str, way: str, unit: str) -> Shown:
            return Shown(promise, f"{case.name}, {way}", unit)

        for mode in (AUTO_MODE, DRAFTED):
            yield shown(DRAFTS[0], mode.name, DRAFTS[1]), partial(self._drafts, case, mode)
        if not case.params.greedy:
            yield shown(SEED[0], "plain again", SEED[1]), partial(self._again, case)
        count = len(self.prompts)
        way = f"{count} prompt{'' if count == 1 else 's'} at once"
        yield shown("a batch changes nothing", way, "prompts beside"), partial(self._batch, case)
        for rows in CHUNKS:
            way = f"prompts in chunks of at most {rows}"
            yield shown("chunks change nothing", way, "chunks"), partial(self._chunks, case, rows)
        way = "prompts found in the prefix cache"
        yield shown("cache hits change nothing", way, "tokens cached"), partial(self._cache, case)

    def _drafts(self, case: _Case, mode: Mode, out: Shown) -> Shown | None:
        samples = self._alone(self.subject.variant(mode), case.params, mode)
        return self._compare(case, samples, list(map(_guesses, samples)), out)

    def _again(self, case: _Case, out: Shown) -> Shown | None:
        samples = self._alone(self.subject.variant(PLAIN), case.params, PLAIN)
        return self._compare(case, samples, [len(sample.tokens) for sample in samples], out)

    def _batch(self, case: _Case, out: Shown) -> Shown | None:
        params, beside = [case.params] * len(self.prompts), len(self.prompts) - 1
        samples = run(self.subject.variant(DRAFTED), self.prompts, params, "batch", ALWAYS)
        other = self._compare(case, samples, [beside] * len(samples), out)
        out.evidence = beside
        return other

    def _chunks(self, case: _Case, rows: int, out: Shown) -> Shown | None:
        samples = self._alone(self.subject.variant(DRAFTED, max_rows=rows), case.params, DRAFTED)
        chunks = [-(-len(prompt) // rows) if len(prompt) > rows else 0 for prompt in self.prompts]
        return self._compare(case, samples, chunks, out)

    def _cache(self, case: _Case, out: Shown) -> Shown | None:
        """All prompts twice: the second time the beginnings of those that fill a block are found."""
        engine = self.subject.variant(AUTO_MODE, prefix_cache=True)
        for _ in range(2):
            samples = self._alone(engine, case.params, AUTO_MODE, "cache")
        return self._compare(case, samples, [sample.cached for sample in samples], out)

    def _alone(self, engine: Engine, params: SamplingParams, mode: Mode, tenant: str = "") -> list[Sample]:
        return [run(engine, [prompt], [params], f"{mode.name} {tenant}", mode.wish)[0] for prompt in self.prompts]

    def _compare(self, case: _Case, samples: list[Sample], done: list[int], out: Shown) -> Shown | None:
        """Count the equal tokens of each prompt in which something was ``done`` differently, and note the first difference. That of
        another prompt breaks another promise: returned is the first such."""
        out.evidence, elsewhere = sum(done), None
        for at, (plain, other, count) in enumerate(zip(case.plain, samples, done, strict=True)):
            where = first_difference(plain.tokens, other.tokens)
            if count:
                out.tokens += len(plain.tokens) if where is None else where
            if where is None or (out.difference if count else elsewhere) is not None:
                continue
            found = self._difference(at, where, plain.tokens, other.tokens)
            if count:
                out.difference = found
            else:
                guesses = _guesses(other)
                promise, unit = DRAFTS if guesses else SEED
                elsewhere = Shown(promise, out.way, unit, where, guesses or len(other.tokens), found)
        return elsewhere

    def _difference(self, prompt: int, where: int, plain: list[int], other: list[int]) -> Difference:
        expected = plain[where] if where < len(plain) else None
        found = other[where] if where < len(other) else None
        logits = fresh_logits(self.subject.engine, [*self.prompts[prompt], *plain[:where]])
        both = tuple(None if token is None else logits[token] for token in (expected, found))
        return Difference(prompt, where, expected, found, (both[0], both[1]))


def _guesses(sample: Sample) -> int:
    return sum(sample.drafted.values())


def fresh_logits(engine: Engine, tokens: list[int]) -> list[float]:
    """The model's logits after ``tokens``, in passes of nothing else, over blocks that nobody uses now."""
    blocks = list(range(-(-len(tokens) // BLOCK_SIZE)))
    for start in range(0, len(tokens), engine.max_rows):
        chain = tokens[start : start + engine.max_rows]
        logits = engine.executor.forward(Batch([Segment(blocks, start, chain, first_logit=len(chain) - 1)]))
    return [float(value) for value in logits[0].tolist()]
