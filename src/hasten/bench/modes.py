"""One loaded model, several ways of decoding with it: the same weights and the same moment for all that are compared.

A *mode* is written ``plain`` (no drafters at all), ``off`` (all that are loaded, and requests that switch them off), ``auto``,
drafters (``suffix``, ``suffix+lm``), or any of the last two with a rule of drafting behind an at sign (``lm@fixed(4)``, see
``control`` in ``EngineConfig``). Modes share weights and pool: they run one after another, or step in turns with a part of the
pool each. Nothing that one learns reaches another: each has its own controller, and asks the drafters as a tenant of its own.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from hasten.bench.samples import Sample
from hasten.bench.workloads import Load
from hasten.cache.blocks import BlockManager
from hasten.control.controller import Controller
from hasten.core.config import SpeculationParams, parse_control
from hasten.core.errors import ConfigError
from hasten.core.registry import nearest
from hasten.core.results import Completion
from hasten.core.types import BLOCK_SIZE, DraftTree, SamplingParams, Verdict
from hasten.core.types import Sequence as TokenSequence
from hasten.engine.drafting import AUTO, Drafting
from hasten.engine.engine import Engine
from hasten.engine.requests import Request
from hasten.engine.scheduler import Scheduler

NEEDS_MORE = ("prediction",)  # drafters that have nothing to say without what a benchmark does not give
ALWAYS = SpeculationParams(mode="on")


@dataclass(frozen=True, slots=True)
class Mode:
    """``drafters`` None: all that are loaded. ``control`` as in ``EngineConfig``; ``wish`` as in a request."""

    name: str
    drafters: tuple[str, ...] | None = None
    control: str = "auto"
    wish: SpeculationParams = AUTO


PLAIN = Mode("plain", ())
OFF = Mode("off", wish=SpeculationParams(mode="off"))


def parse_mode(text: str, loaded: Sequence[str], automatic: tuple[str, ...] | None = None) -> Mode:
    """``automatic``: what "auto" stands for where that is not all that are loaded. Raises ConfigError where the text is no mode, or
    names a drafter that is not loaded."""
    names, _, control = text.partition("@")
    control = control or "auto"
    parse_control(control)
    for mode in (PLAIN, OFF):
        if names == mode.name:
            return mode
    if names == "auto":
        return Mode(text, automatic, control)
    chosen = tuple(names.split("+"))
    for name in chosen:
        if name not in loaded:
            known = nearest(name, ["plain", "off", "auto", *loaded])
            raise ConfigError(f"The mode '{text}' names '{name}', which is not loaded{known}")
    return Mode(text, chosen, control)


def names_of(mode: Mode, loaded: Sequence[str]) -> Sequence[str]:
    """Drafters of the mode."""
    return loaded if mode.drafters is None else mode.drafters


def single_drafters(loaded: Sequence[str]) -> list[str]:
    """Those that can draft by themselves in a benchmark."""
    return [name for name in loaded if name not in NEEDS_MORE]


@dataclass(slots=True)
class CountedDrafting(Drafting):
    """Drafting that also counts, by sequence, how deep trees went and how deep they were accepted."""

    by_position: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def observe(
        self, sequence: TokenSequence, tree: DraftTree, verdict: Verdict, logits: Tensor, states: Tensor | None = None
    ) -> None:
        if len(tree):
            counts = self.by_position.setdefault(sequence.id, [])
            accepted = len(verdict.path)
            for depth in range(max(tree.depths())):
                if depth == len(counts):
                    counts.append((0, 0))
                tried, right = counts[depth]
                counts[depth] = (tried + 1, right + (depth < accepted))
        Drafting.observe(self, sequence, tree, verdict, logits, states)


class Subject:
    """A loaded engine under test. Its own drafting and scheduler are left alone; every mode gets its own."""

    def __init__(self, engine: Engine, most_together: int = 16) -> None:
        self.engine = engine
        self.most_together = most_together
        self.loaded = [drafter.name for drafter in engine.drafting.drafters]
        self._engines: dict[Mode, Engine] = {}
        self._sharing: dict[tuple[Mode, int, int], Engine] = {}
        self._drafted: dict[Mode, CountedDrafting] = {}

    def run(self, mode: Mode, prompts: Sequence[list[int]], params: Sequence[SamplingParams], tenant: str = "") -> list[Sample]:
        """Answer all prompts at once in that mode; samples in the order of the prompts. ``tenant`` beyond the mode's own keeps
        drafters from remembering an earlier repetition."""
        if mode not in self._engines:
            self._engines[mode] = self.variant(mode)
        engine = self._engines[mode]
        return run(engine, prompts, params, f"{mode.name} {tenant}", mode.wish)

    def run_in_step(
        self, modes: Sequence[Mode], prompts: Sequence[list[int]], params: Sequence[SamplingParams], tenant: str = ""
    ) -> list[list[Sample]]:
        """Like ``run``, in all these modes at once, which take turns step by step. Each has its own share of the pool."""
        shares = len(modes)
        if not self._sharing:  # a mode's first steps in a part that nobody has written to would take longer
            self.engine.executor.pool.touch()
        for place, mode in enumerate(modes):
            if (mode, place, shares) not in self._sharing:
                self._sharing[mode, place, shares] = self.variant(mode, share=(place, shares))
        engines = [self._sharing[mode, place, shares] for place, mode in enumerate(modes)]
        return run_in_step(
            [
                Run.begin(engine, prompts, params, f"{mode.name} {tenant}", mode.wish)
                for engine, mode in zip(engines, modes, strict=True)
            ]
        )

    def room_in_step(self, modes: int, load: Load) -> tuple[int, int]:
        """Positions of a mode's share of the pool where so many step in turns, and the most that the load needs of it."""
        room = self.engine.scheduler.blocks.num_blocks // modes * BLOCK_SIZE
        longest = max((len(question.tokens) for question in load.questions), default=0)
        whole = longest + (load.params.max_tokens or self.engine.scheduler.capacity) + self.engine.controller.most_nodes
        return room, load.batch * -(-whole // BLOCK_SIZE) * BLOCK_SIZE

    def variant(
        self, mode: Mode, max_rows: int | None = None, prefix_cache: bool = False, share: tuple[int, int] = (0, 1)
    ) -> Engine:
        """An engine of its own over the same weights and pool. Not to be used while another one works, but for those that were
        given other shares (place, of so many) of the pool."""
        base = self.engine
        rows = max_rows or base.max_rows
        blocks = BlockManager(base.scheduler.blocks.num_blocks, prefix_cache=prefix_cache)
        place, shares = share
        own = blocks.num_blocks // shares
        everything = blocks.allocate(blocks.num_blocks)
        blocks.free(everything[place * own : (place + 1) * own] if shares > 1 else everything)
        scheduler = Scheduler(blocks, min(base.scheduler.capacity, own * BLOCK_SIZE), rows, self.most_together)
        drafting = self._drafting(mode)
        return replace(base, scheduler=scheduler, drafting=drafting, controller=drafting.controller, max_rows=rows, _requests={})

    def _drafting(self, mode: Mode) -> CountedDrafting:
        chosen = names_of(mode, self.loaded)
        drafters = [drafter for drafter in self.engine.drafting.drafters if drafter.name in chosen]
        rule, depth = parse_control(mode.control)
        old = self.engine.controller
        controller = Controller(copy.deepcopy(old.costs), most_nodes=old.most_nodes, rule=rule, depth=depth)
        drafting = self.engine.drafting
        return CountedDrafting(drafters, controller, drafting.vocabulary, rule=drafting.rule)


@dataclass(slots=True)
class Run:
    """Requests handed to an engine at once, and the seconds of the engine's own steps for them: what happens between two steps
    does not count."""

    engine: Engine
    requests: list[Request]
    seconds: float
    first: dict[int, float] = field(default_factory=dict)  # seconds at the first token, by place of the request
    last: dict[int, float] = field(default_factory=dict)
    done: dict[int, Completion] = field(default_factory=dict)

    @classmethod
    def begin(
        cls,
        engine: Engine,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        tenant: str = "",
        wish: SpeculationParams = AUTO,
    ) -> Run:
        """Raises InvalidRequest before anything runs."""
        started = time.perf_counter()
        requests = [engine.submit(prompt, own, tenant, speculation=wish) for prompt, own in zip(prompts, params, strict=True)]
        return cls(engine, requests, time.perf_counter() - started)

    @property
    def going(self) -> bool:
        return len(self.done) < len(self.requests)

    def step(self) -> None:
        started = time.perf_counter()
        told = self.engine.step()
        self.seconds += time.perf_counter() - started
        for request in told:
            place = self.requests.index(request)
            _read(request, place, self.done)
            if request.problem is not None:
                raise request.problem
            self.first.setdefault(place, self.seconds)
            self.last[place] = self.seconds

    def samples(self) -> list[Sample]:
        """In the order of the prompts, once all are done."""
        counts = self.engine.drafting.by_position if isinstance(self.engine.drafting, CountedDrafting) else {}
        ids = [request.answers[0].sequence.id for request in self.requests]
        return [
            _sample(self.done[at], self.first[at], self.last[at] - self.first[at], counts.pop(ids[at], []))
            for at in range(len(self.requests))
        ]

    def end(self) -> None:
        for request in self.requests:
            self.engine.cancel(request)


def run(
    engine: Engine,
    prompts: Sequence[list[int]],
    params: Sequence[SamplingParams],
    tenant: str = "",
    wish: SpeculationParams = AUTO,
) -> list[Sample]:
    """Hand all requests over at once and step until they are done. Raises InvalidRequest before anything runs."""
    return run_in_step([Run.begin(engine, prompts, params, tenant, wish)])[0]


def run_in_step(runs: Sequence[Run]) -> list[list[Sample]]:
    """Step all runs in turns, one step each, until they are done; the samples of each. What disturbs the machine for longer than a
    step disturbs all of them alike; another one begins each turn, so that each follows every other equally often."""
    try:
        turns = 0
        while any(each.going for each in runs):
            first = turns % len(runs)
            turns += 1
            for each in (*runs[first:], *runs[:first]):
                if each.going:
                    each.step()
        return [each.samples() for each in runs]
    finally:
        for each in runs:
            each.end()


def _read(request: Request, place: int, done: dict[int, Completion]) -> None:
    while request.inbox:
        completion = request.inbox.popleft().completion
        if completion is not None:
            done[place] = completion


def _sample(completion: Completion, first: float, decode: float, by_position: list[tuple[int, int]]) -> Sample:
    speculation = completion.speculation
    return Sample(
        tokens=completion.tokens,
        prompt_tokens=completion.usage.prompt_tokens,
        first_s=first,
        decode_s=decode,
        rounds=speculation.rounds,
        drafted={name: count.drafted for name, count in speculation.by_drafter.items()},
        accepted={name: count.accepted for name, count in speculation.by_drafter.items()},
        by_position=by_position,
        cached=completion.usage.cached_tokens,
        text=completion.text,
    )
