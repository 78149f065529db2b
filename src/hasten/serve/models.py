"""The models of one server: loaded when first asked for, within a budget of memory, the least recently used one let go."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError, HastenError
from hasten.engine.llm import LLM
from hasten.serve.errors import ApiError, stopping
from hasten.serve.interruptible import interruptible
from hasten.serve.provenance import Legend
from hasten.serve.totals import EngineCounts, Totals
from hasten.serve.worker import Worker, too_long

log = logging.getLogger(__name__)
_ALIAS = re.compile(r"(?P<alias>[A-Za-z0-9][\w.:/-]{0,127})=(?P<model>.+)")


@dataclass(slots=True, eq=False)
class Host:
    """One model, loaded or not. ``users`` are HTTP requests that use it now, ``tickets`` the engine's requests behind them by
    tenant, one a request for embeddings; ``bytes`` is what it is expected to take in memory. ``totals`` and ``earlier``, the counts
    of engines that were let go, last as long as the process: counters never go back."""

    name: str
    config: EngineConfig
    bytes: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    llm: LLM | None = None
    worker: Worker | None = None
    legend: Legend = field(default_factory=Legend)
    failures: int = 0  # to load it
    users: int = 0
    tickets: Counter[str] = field(default_factory=Counter)
    last_used: float = 0.0
    totals: Totals = field(default_factory=Totals)
    earlier: EngineCounts = field(default_factory=EngineCounts)

    @property
    def loaded(self) -> bool:
        return self.worker is not None

    @property
    def ready(self) -> tuple[LLM, Worker]:
        assert self.llm is not None, "a host is used while it is loaded"
        assert self.worker is not None, "a host is used while it is loaded"
        return self.llm, self.worker

    @property
    def chats(self) -> bool:
        return self.llm is not None and self.llm.has_chat_template

    @property
    def counts(self) -> EngineCounts:
        """Of all its engines so far."""
        return self.earlier if self.llm is None else self.earlier + EngineCounts.of(self.llm.engine)


class Models:
    """Finds hosts by name and brings them into memory. Belongs to the event loop; loading happens in a thread.

    ``budget``: bytes that all loaded models may take together by estimate, 0 for no bound. ``load`` makes an ``LLM`` of a
    configuration, ``estimate`` the bytes that it will take. ``patience``: seconds that a request waits for a model at most.
    """

    def __init__(
        self,
        hosts: list[Host],
        budget: int = 0,
        load: Callable[[EngineConfig], LLM] = LLM,
        estimate: Callable[[EngineConfig], int] | None = None,
    ) -> None:
        self.hosts = {host.name: host for host in hosts}
        self.default = hosts[0]
        self._budget = budget
        self._load = load
        self._estimate = estimate
        self.patience = math.inf
        self._lock = asyncio.Lock()
        self._loading: set[asyncio.Task[None]] = set()
        self._preloaded = self._over = False

    def find(self, name: str | None) -> Host:
        """The host of that name, the first one where none is given. Raises ApiError (404)."""
        if name is None:
            return self.default
        host = self.hosts.get(name)
        if host is None:
            known = ", ".join(f"'{known}'" for known in self.hosts)
            raise ApiError(
                404, f"The model {name[:80]!r} is not served here; there is {known}.", param="model", code="model_not_found"
            )
        return host

    async def acquire(self, name: str | None) -> Host:
        """A loaded host, which stays loaded until ``release``. Raises ApiError: 404, 408 after ``patience``, or 503 when there is
        no room for it now, it cannot be loaded or the server ends."""
        host = self.find(name)
        host.users += 1
        try:
            if not host.loaded:
                await self._wait_for(host)
        except BaseException:
            self.release(host)
            raise
        return host

    async def _wait_for(self, host: Host) -> None:
        """In a task of its own: where this request gives up, what it has begun goes on, for others were let go for it."""
        loading = asyncio.ensure_future(self._loaded(host))
        self._loading.add(loading)
        loading.add_done_callback(self._ended)
        done, _ = await asyncio.wait({loading}, timeout=None if math.isinf(self.patience) else self.patience)
        if not done:
            raise too_long(self.patience)
        if loading.cancelled():
            raise stopping()
        loading.result()

    def _ended(self, loading: asyncio.Task[None]) -> None:
        self._loading.discard(loading)
        if not loading.cancelled():
            loading.exception()  # told to whoever still waits; asyncio would say that nobody asked

    async def _loaded(self, host: Host) -> None:
        failures = host.failures
        async with self._lock:
            if self._over:
                raise stopping()
            if host.failures > failures:  # while this request waited for its turn: it would fail again
                raise _unavailable(host)
            if host.loaded or not host.users:  # there now, or nobody waits any more
                return
            try:
                await self._bring_in(host)
            except HastenError as problem:  # its sentence is the operator's: it names files of this machine
                log.error("The model %s could not be loaded: %s", host.name, problem)
                raise _unavailable(host) from None

    def release(self, host: Host) -> None:
        """One use of a host is over."""
        host.users -= 1
        host.last_used = time.monotonic()

    @property
    def ready(self) -> bool:
        """Whether the first model has been loaded; later ones come and go."""
        return self._preloaded

    async def preload(self) -> None:
        """Load the first model. Raises HastenError when it cannot be."""
        self.default.users += 1
        try:
            async with self._lock:
                try:
                    await self._bring_in(self.default)
                except BaseException:  # the server ends; whoever waits for a model must not begin anew
                    self._over = True
                    raise
        finally:
            self.release(self.default)
        self._preloaded = True

    async def close(self) -> None:
        """Let all models go. Requests that still run are told so."""
        for loading in self._loading:
            loading.cancel()
        async with self._lock:
            for host in self.hosts.values():
                await _let_go(host)

    async def _bring_in(self, host: Host) -> None:
        try:
            if self._estimate is not None and not host.bytes:
                host.bytes = await interruptible(self._estimate, host.config)
            if not host.users:  # nobody waits any more: no other model goes for that
                return
            await self._make_room(host)
            log.info("Loading model %s.", host.name)
            llm = await interruptible(self._load, host.config)
        except HastenError:
            host.failures += 1
            raise
        drafters = [drafter.name for drafter in llm.engine.drafting.drafters]
        for name in drafters:
            host.totals.drafted.setdefault(name, 0)
        host.llm = llm
        host.legend = Legend(drafters)
        host.worker = Worker(llm, host.config.max_sequences)
        host.worker.totals = host.totals
        host.worker.start()

    async def _make_room(self, wanted: Host) -> None:
        """Let models go, least recently used first, until ``wanted`` fits. One that is in use stays."""
        if not self._budget:
            return
        if wanted.bytes > self._budget:
            raise ApiError(
                503,
                f"The model '{wanted.name}' takes about {wanted.bytes / 1e9:.3g} GB and all models together may take "
                f"{self._budget / 1e9:.3g} GB; raise --memory-budget.",
                code="out_of_memory",
            )
        while sum(host.bytes for host in self.hosts.values() if host.loaded) + wanted.bytes > self._budget:
            # Asked anew each time: while one is let go another may come into use.
            idle = [host for host in self.hosts.values() if host.loaded and not host.users]
            if not idle:
                raise ApiError(
                    503,
                    f"There is no room for the model '{wanted.name}' while the others are in use; try again soon.",
                    code="out_of_memory",
                    retry_after=5,
                )
            host = min(idle, key=lambda host: host.last_used)
            log.info("Letting model %s go to make room for %s.", host.name, wanted.name)
            await _let_go(host)


def _unavailable(host: Host) -> ApiError:
    """Official clients would try again at once, and the model be loaded again."""
    return ApiError(
        503,
        f"The model '{host.name}' could not be loaded; the operator finds the cause in the log.",
        code="model_unavailable",
        headers={"x-should-retry": "false"},
    )


async def _let_go(host: Host) -> None:
    host.earlier = host.counts
    worker, host.worker, host.llm = host.worker, None, None
    if worker is not None:
        worker.close()
        await asyncio.to_thread(worker.join)
        del worker
        gc.collect()


def hosts_of(models: tuple[str, ...], config: EngineConfig) -> list[Host]:
    """One host for each ``NAME`` or ``ALIAS=NAME``. Raises ConfigError when two have the same name."""
    hosts: list[Host] = []
    for text in models:
        found = _ALIAS.fullmatch(text)
        name, model = (found["alias"], found["model"]) if found else (text, text)
        if any(host.name == name for host in hosts):
            raise ConfigError(f"Two models are called '{name}'; give one of them an alias, as in --model other={model}.")
        hosts.append(Host(name, replace(config, model=model)))
    return hosts
