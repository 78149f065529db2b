"""Start, signals, end: a server from its settings to its exit status."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import math
import re
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError, HastenError
from hasten.engine.footprint import footprint
from hasten.engine.llm import LLM
from hasten.serve.app import make_app
from hasten.serve.connection import AT_ONCE, BACKLOG, allow_files, connection_of
from hasten.serve.errors import ApiError
from hasten.serve.fleet import Fleet
from hasten.serve.front import Front, make_front
from hasten.serve.guard import LOOPBACK_NAMES, Guard, Policy, is_loopback
from hasten.serve.hangup import Hangups
from hasten.serve.keys import Keys
from hasten.serve.limits import Limits
from hasten.serve.logs import set_up_logging
from hasten.serve.models import Models, hosts_of
from hasten.serve.replica import Contents
from hasten.serve.server import Server
from hasten.serve.tracing import tracing_of

HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*://)?(?P<host>[^/:@?#]*)(:\d*)?(/.*)?")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*,]+")
UNTRACED = "Traces are taken where one process serves; leave --replicas out, or the trace endpoint."
PORT_FAULTS = (errno.EADDRINUSE, errno.EACCES)  # of a socket that cannot be bound; the others are of its address
log = logging.getLogger(__name__)
LAST_WORDS_SECONDS = 2  # from the end of the drain to uvicorn's own: for errors to reach those who wait


@dataclass(frozen=True, slots=True)
class Settings:
    """``models``: names, or ALIAS=NAME; the first is loaded at once and the default. ``memory_budget``: bytes, of each replica;
    0: no bound. ``replicas``: processes with an engine each; 1: this process is the only one. ``trace_endpoint``: where traces go
    by OTLP over HTTP; None leaves that to OpenTelemetry's variables."""

    models: tuple[str, ...]
    engine: EngineConfig
    limits: Limits = field(default_factory=Limits)
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    memory_budget: int = 0
    log_format: str = "text"
    replicas: int = 1
    trace_endpoint: str | None = None


def check_access(settings: Settings) -> None:
    """Raises ConfigError where anybody on the network could come in, and for a host or an origin that is none. Reads no file."""
    if not is_loopback(settings.host) and settings.api_key_file is None:
        raise ConfigError(
            f"Listening on {settings.host} would let anybody on the network in; give --api-key-file FILE "
            "(make keys with `hasten serve --new-key TENANT --api-key-file FILE`), or stay on 127.0.0.1."
        )
    for text in settings.allow_hosts:
        host_name(text)
    for origin in settings.allow_origins:
        if not ORIGIN.fullmatch(origin):
            raise ConfigError(f"An origin is written https://name, https://name:port or, of an app, scheme://name, not {origin!r}.")


def host_name(text: str) -> str:
    """A name or an address as clients write it into a Host header, lower case. Raises ConfigError for what cannot stand there, or
    only with a port, which the door leaves out."""
    name = text.lower()
    try:
        return _bracketed(ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).compressed)
    except ValueError:
        pass
    if HOST.fullmatch(name):
        return name
    found = ADDRESS.fullmatch(name)
    meant = f"write {found['host']}" if found is not None and HOST.fullmatch(found["host"]) else "write it as llm.example.com"
    raise ConfigError(
        f"--allow-host takes a name or an address alone, in ASCII, without scheme, port, path or '*': {meant}, not {text!r}."
    )


def _bracketed(host: str) -> str:
    """As it stands in an address: IPv6 between brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def policy_of(settings: Settings) -> Policy:
    """Who may come in. Raises ConfigError as ``check_access`` does, and for a key file that is none."""
    check_access(settings)
    keys = Keys(settings.api_key_file) if settings.api_key_file is not None else None
    named = frozenset(map(host_name, settings.allow_hosts))
    # With keys a page that rebinds its name still has no key, so any name will do unless the operator says otherwise.
    hosts = named | LOOPBACK_NAMES | {_bracketed(settings.host.lower())} if is_loopback(settings.host) or named else None
    return Policy(keys, hosts, frozenset(settings.allow_origins), max_connections=settings.limits.max_connections)


@dataclass(frozen=True, slots=True)
class Service:
    """What is served: the application, and what has to be done before it is ready."""

    app: Guard
    start: Callable[[], Awaitable[None]]
    names: list[str]


def serve(settings: Settings, load: Callable[[EngineConfig], LLM] = LLM) -> int:
    """Serve until told to stop. SIGTERM and SIGINT drain and end it, SIGHUP reads the keys anew. Returns the exit status.

    Raises a HastenError when it cannot start.
    """
    set_up_logging(settings.log_format)
    with Hangups() as hangups:
        policy = policy_of(settings)
        allow_files(settings.limits)
        with (
            closing(_listen(settings.host, settings.port)) as listener,
            _alone(settings, policy, load) if settings.replicas == 1 else _several(settings, policy) as service,
        ):
            return asyncio.run(_serve(service, policy, settings, listener, hangups))


@contextmanager
def _alone(settings: Settings, policy: Policy, load: Callable[[EngineConfig], LLM]) -> Iterator[Service]:
    """One engine a model, in this process."""
    models = Models(hosts_of(settings.models, settings.engine), settings.memory_budget, load, footprint)
    server = Server(models, settings.limits, tracing=tracing_of(settings.trace_endpoint))
    yield Service(make_app(server, policy), models.preload, list(models.hosts))


@contextmanager
def _several(settings: Settings, policy: Policy) -> Iterator[Service]:
    """The door in this process, the engines in others."""
    from hasten.serve.ray_replicas import ray_links

    if tracing_of(settings.trace_endpoint) is not None:
        raise ConfigError(UNTRACED)
    hosts = hosts_of(settings.models, settings.engine)
    footprint(hosts[0].config)  # fetched once, before several replicas want it, and a wrong name is told here
    contents = Contents(settings.models, settings.engine, settings.limits, settings.memory_budget)
    with ray_links(contents, settings.replicas) as begin:
        front = Front(Fleet(settings.limits.request_timeout), settings.limits)

        async def start() -> None:
            await front.fleet.start(await asyncio.to_thread(begin))

        yield Service(make_front(front, policy), start, [host.name for host in hosts])


async def _serve(service: Service, policy: Policy, settings: Settings, listener: socket.socket, hangups: Hangups) -> int:
    config = uvicorn.Config(
        service.app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=math.ceil(settings.limits.drain_timeout) + LAST_WORDS_SECONDS,
        h11_max_incomplete_event_size=64 << 10,
        http=connection_of(settings.limits),
        backlog=AT_ONCE,
        ws="none",
        lifespan="on",
    )
    loading = asyncio.ensure_future(service.start())
    web = _Web(config, service.app, settings.limits.drain_timeout, loading)
    loop = asyncio.get_running_loop()
    with hangups.told(lambda: loop.call_soon_threadsafe(_reload, policy.keys)):
        host, port = listener.getsockname()[:2]
        serving = asyncio.ensure_future(web.serve(sockets=[listener]))
        await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and not loading.cancelled():
            if _failed(loading):
                web.should_exit = True
                await serving
                _tell_operator(loading)
            log.info("Serving %s at http://%s:%d (interface at /v1).", ", ".join(service.names), _bracketed(host), port)
        await serving
    return 0


def _failed(loading: asyncio.Future[None]) -> bool:
    return loading.done() and not loading.cancelled() and loading.exception() is not None


def _tell_operator(loading: asyncio.Future[None]) -> None:
    """Raises what loading failed of; what would have been a client's answer is the operator's error here."""
    try:
        loading.result()
    except ApiError as problem:
        raise HastenError(problem.message) from problem


class _Web(uvicorn.Server):
    """Ends what still runs ``seconds`` after it was told to stop, in a way that clients understand; uvicorn itself would cut it.
    ``loading`` it ends at once: nobody is served by that any more."""

    def __init__(self, config: uvicorn.Config, app: Guard, seconds: float, loading: asyncio.Future[None]) -> None:
        super().__init__(config)
        self._app = app
        self._seconds = seconds
        self._loading = loading

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A signal ends the serving, not the process: uvicorn would raise it again once all is done."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # asyncio has one number for this and for what it accepts in a turn

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if not _failed(self._loading):
            log.info("Stopping: finishing what runs, taking nothing new.")
        self._loading.cancel()
        timer = asyncio.get_running_loop().call_later(self._seconds, self._app.break_off)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def _reload(keys: Keys | None) -> None:
    if keys is None:
        log.info("There is no key file to read again (--api-key-file).")
        return
    try:
        keys.reload()
    except ConfigError as problem:
        log.error("The keys stay as they were: %s", problem)
        return
    if len(keys):
        log.info("The key file was read again; it has %d keys.", len(keys))
    else:
        log.warning("The key file was read again and has no keys: nobody comes in until it has one and SIGHUP comes again.")


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises ConfigError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as problem:
        listener.close()
        mend = "choose another --port" if problem.errno in PORT_FAULTS else "give an address of this machine as --host"
        raise ConfigError(f"Cannot listen on {host}:{port} ({problem.strerror or problem}); {mend}.") from problem
    return listener
