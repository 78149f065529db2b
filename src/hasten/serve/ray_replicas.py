"""Replicas on Ray Serve: an application of one replica each, which Serve starts, watches and replaces. Only this file imports ray.

One application each, not one with N replicas: the door chooses by prefix and tenant, and has to know which process ended.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hasten.core.errors import ConfigError
from hasten.model.kernels import threads_and_level
from hasten.serve.fleet import Call, Link, Lost, Message
from hasten.serve.logs import set_up_logging
from hasten.serve.replica import Contents, Replica, loaded

log = logging.getLogger(__name__)

# Serve's checks of a process that does not answer; one that ends is noticed at once.
HEALTH_PERIOD, HEALTH_TIMEOUT = 5.0, 30.0
MOST_AT_ONCE = 100_000  # calls of one replica; the replica's own limits are what counts
QUIET = {"log_level": "WARNING", "enable_access_log": False}


@contextmanager
def ray_links(contents: Contents, count: int) -> Iterator[Callable[[], list[Link]]]:
    """Ray for as long as this is open, its own one on loopback unless RAY_ADDRESS names another. What is yielded asks Serve for
    ``count`` replicas and does not wait for them.

    Raises ConfigError when ray is not installed.
    """
    ray, serve = _import()
    contents = replace(contents, engine=replace(contents.engine, threads=threads_of(contents.engine.threads, count)))
    threads = contents.engine.threads
    here = "RAY_ADDRESS" not in os.environ
    own: dict[str, Any] = {"address": "local", "num_cpus": count * threads, "include_dashboard": False} if here else {}
    ray.init(**own, logging_level="warning", configure_logging=False, log_to_driver=True)
    names = [f"hasten-{secrets.token_hex(4)}-{number}" for number in range(count)]
    begun: list[str] = []

    def begin() -> list[Link]:
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        deployment = serve.deployment(_Deployed).options(
            name="replica",
            num_replicas=1,
            max_ongoing_requests=MOST_AT_ONCE,
            health_check_period_s=HEALTH_PERIOD,
            health_check_timeout_s=HEALTH_TIMEOUT,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=1.0,  # the door has drained already
            max_constructor_retry_count=2,
            ray_actor_options={"num_cpus": threads},
            logging_config=QUIET,
        )
        begun.extend(names)
        targets = [serve.RunTarget(deployment.bind(contents), name=name, route_prefix=None) for name in names]
        handles = serve.run_many(targets, wait_for_applications_running=False)
        return [_RayLink(handle) for handle in handles]

    try:
        yield begin
    finally:
        if here and begun:
            serve.shutdown()
        else:
            for name in begun:
                serve.delete(name)
        ray.shutdown()


def threads_of(asked: int, count: int) -> int:
    """Threads of one replica: what was asked for, or this machine's divided among all."""
    return asked or max(1, threads_and_level()[0] // count)


def _import() -> tuple[Any, Any]:
    """ray and ray.serve, told before they look to keep to this machine: no statistics of use, and where the cluster is our own only
    loopback, with a token that other users of the machine do not have."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # an engine is no background work
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine needs more than its 30 s
    os.environ.setdefault("RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "2")  # instead of 0.1 s
    if "RAY_ADDRESS" not in os.environ:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # its name for: nodes of other machines may join
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
        from ray import serve
    except ImportError as problem:
        raise ConfigError("Several replicas need ray; install it with `pip install 'hasten[ray]'`.") from problem
    return ray, serve


class _Deployed(Replica):
    """A replica as Serve makes and checks it."""

    async def __init__(self, contents: Contents) -> None:  # type: ignore[misc]  # Serve awaits it
        set_up_logging("text")
        super().__init__(await loaded(contents))

    async def check_health(self) -> None:
        self.check_alive()


class _RayLink:
    """``fleet.Link`` over a Serve handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def stay(self) -> AsyncGenerator[int, None]:
        return self._streamed("stay")

    def ask(self, call: Call) -> AsyncGenerator[list[Message], None]:
        return self._streamed("ask", call)

    async def metrics(self) -> str:
        with _lost():
            found: str = await self._handle.metrics.remote()
            return found

    async def _streamed(self, method: str, *arguments: Any) -> AsyncGenerator[Any, None]:
        with _lost():
            answer = getattr(self._handle.options(stream=True), method).remote(*arguments)
            try:
                async for item in answer:
                    yield item
            finally:
                answer.cancel()


@contextmanager
def _lost() -> Iterator[None]:
    """What Ray raises when a replica cannot be reached, as ``Lost``."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        yield
    except (RayError, RayServeException) as problem:
        raise Lost(str(problem).splitlines()[0]) from problem
