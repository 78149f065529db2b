"""The door: who may come in, before any route is looked at. Where there are keys, all but the open paths need one."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hasten.serve.errors import ApiError, api_error, error_response, is_anthropics, stopping
from hasten.serve.keys import Holder, Keys

log = logging.getLogger(__name__)
access = logging.getLogger("hasten.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
HEALTH = frozenset({"/health", "/health/live", "/health/ready"})
METRICS = "/metrics"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
ALLOWED_METHODS = "GET, POST, OPTIONS"
HEADER_NAMES = re.compile(r"(?=.{1,2000}$)[!#$%&'*+.^_`|~0-9A-Za-z-]+(?: *, *[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
ABSOLUTE = re.compile(r"https?://(?P<host>[^/]*)(?P<path>/.*)?", re.IGNORECASE | re.DOTALL)
ALLOWED_HEADERS = "authorization, content-type, x-api-key, x-request-id, anthropic-version, anthropic-beta"
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
        "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """``hosts``: the names a client may call the server by, lower case, without port; None: any (a key is then required).
    ``origins``: web origins besides the server's own that may call it from a browser. ``open_paths`` need no key. The health
    routes may be asked by any name: who watches over servers asks by their addresses, and learns nothing that is secret."""

    keys: Keys | None
    hosts: frozenset[str] | None
    origins: frozenset[str] = frozenset()
    open_paths: frozenset[str] = frozenset()
    max_connections: int = 512


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(slots=True, eq=False)
class Guard:
    """ASGI middleware. Gives every request an id, a tenant and a line in the log; puts safe headers on every answer; turns what
    routes raise into errors of the right shape. ``ended`` is told each request's status and when it began (monotonic seconds).
    A request's state has ``sees_all``, too: whether it may be told of all tenants."""

    app: ASGIApp
    policy: Policy
    ended: Callable[[Scope, int, float], None] = lambda scope, status, began: None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)  # one a request
    _stopping: bool = field(default=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # websockets are not spoken here
            await send({"type": "websocket.close", "code": 1008})
            return
        _to_origin_form(scope)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        noted: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=request_id, tenant="", sees_all=False, log=noted)
        began, status = time.monotonic(), 0
        origin = headers.get("origin")

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                finished = MutableHeaders(scope=message)
                _finish_headers(finished, request_id, origin if origin in self.policy.origins else None)
                if is_anthropics(scope["path"]):
                    finished["request-id"] = request_id  # where Anthropic's clients look for it
            await send(message)

        task = asyncio.current_task()
        assert task is not None, "a request is served by a task"
        self._tasks.add(task)
        try:
            await self._serve(scope, receive, answer, headers, lambda: status)
        finally:
            self._tasks.discard(task)
            self.ended(scope, noted.get("status", status), began)  # what is noted was seen after the answer began
            self._record(scope, status, time.monotonic() - began, noted)

    def break_off(self) -> None:
        """End what still runs: an answer that has not begun becomes an error, in a stream the error is an event."""
        self._stopping = True
        if self._tasks:
            log.warning("Stopping: requests that outlived --drain-timeout end here: %d.", len(self._tasks))
        for task in self._tasks:
            task.cancel()

    async def _serve(self, scope: Scope, receive: Receive, send: Send, headers: Headers, status: Callable[[], int]) -> None:
        try:
            self._check(scope, headers)
            if scope["method"] == "OPTIONS" and headers.get("origin") in self.policy.origins:
                await _preflight(send, headers.get("access-control-request-headers", ""))
                return
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            error = stopping()
            scope["state"]["log"].setdefault("error", error.code)
            if not status():
                await error_response(error, scope["path"])(scope, receive, send)
        except Exception as problem:
            error = api_error(problem)
            noted = scope["state"]["log"]
            if error.status == 500 and "error" not in noted:  # who noted it has logged it, too
                log.error("Request %s failed.", scope["state"]["request_id"], exc_info=problem)
            noted.setdefault("error", error.code or type(problem).__name__)
            if not status():
                await error_response(error, scope["path"])(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raise ApiError where the request may not come in; else note its tenant."""
        if len(self._tasks) > self.policy.max_connections:
            raise ApiError(503, "The server has as many connections as it takes; try again soon.", code="busy", retry_after=1)
        if "content-length" in headers and "transfer-encoding" in headers:
            # Where a proxy goes by the one and this server by the other, the rest of the body would be somebody's next request.
            raise ApiError(
                400,
                "The request gives its length twice; send Content-Length or Transfer-Encoding.",
                headers={"Connection": "close"},
            )
        host, origin = headers.get("host", ""), headers.get("origin")
        if (named := scope["state"].get("authority")) is not None and named.lower() != host.lower():
            raise ApiError(400, "The request names one server in its first line and another in its Host header.")
        if self.policy.hosts is not None and not (_is_read(scope) and scope["path"] in HEALTH):
            _check_name(host, self.policy.hosts)
        if origin is not None and origin not in self.policy.origins and not _is_own(origin, host):
            raise ApiError(
                403, f"Pages of {origin[:80]!r} may not call this server; the operator can allow them with --allow-origin."
            )
        keys = self.policy.keys
        if keys is None:
            scope["state"]["sees_all"] = True
            return
        if _is_read(scope) and scope["path"] in self.policy.open_paths:
            return
        if scope["method"] == "OPTIONS" and origin in self.policy.origins:
            return  # a browser sends no key with a preflight
        holder = _holder(keys, _key_of(headers))
        if holder.metrics_only and not (_is_read(scope) and scope["path"] == METRICS):
            raise ApiError(403, f"This key is for reading {METRICS} only; send a tenant's key.")
        scope["state"].update(tenant=holder.tenant, sees_all=holder.metrics_only or not keys.several_tenants)

    def _record(self, scope: Scope, status: int, seconds: float, noted: dict[str, Any]) -> None:
        state = scope["state"]
        line = {
            "request": state["request_id"],
            "tenant": state["tenant"],
            "client": _client_of(scope),
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "seconds": round(seconds, 4),
            **noted,
        }
        routine = _is_read(scope) and scope["path"] in self.policy.open_paths and status < 400
        access.log(logging.DEBUG if routine else logging.INFO, json.dumps(line))


def _finish_headers(headers: MutableHeaders, request_id: str, origin: str | None) -> None:
    headers["x-request-id"] = request_id
    for name, value in HEADERS.items():
        headers[name] = value
    headers.add_vary_header("origin")
    if origin is not None:
        headers["access-control-allow-origin"] = origin
        headers["access-control-expose-headers"] = "x-request-id, request-id, retry-after, x-should-retry"
        headers["cross-origin-resource-policy"] = "cross-origin"


async def _preflight(send: Send, asked: str) -> None:
    """What an allowed origin may send: all the headers it ``asked`` for, of which clients have many of their own."""
    allowed = asked if HEADER_NAMES.fullmatch(asked) else ALLOWED_HEADERS
    headers = [
        (b"access-control-allow-methods", ALLOWED_METHODS.encode()),
        (b"access-control-allow-headers", allowed.encode()),
        (b"vary", b"access-control-request-headers"),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _to_origin_form(scope: Scope) -> None:
    """A target that names the server, too, as clients write it for a proxy, becomes the path that all else looks at."""
    found = ABSOLUTE.fullmatch(scope["path"])
    if found is not None:
        scope["path"] = found["path"] or "/"
        scope["raw_path"] = quote(scope["path"]).encode()
        scope.setdefault("state", {})["authority"] = found["host"]


def _is_own(origin: str, host: str) -> bool:
    """Whether a page is one of this server's."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _is_read(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD")


def _client_of(scope: Scope) -> str:
    """The address that the request came from, or where uvicorn trusts a proxy's word that of the proxy's client; "" where that is
    no address: the log has no words of clients."""
    host = (scope.get("client") or ("",))[0]
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return ""


def _check_name(host: str, known: frozenset[str]) -> None:
    """Raise ApiError where a Host header names none of these."""
    if not host:
        raise ApiError(403, "The request does not say whom it is for; send the header Host with this server's address.")
    if _name_of(host) not in known:
        raise ApiError(403, f"This server is not called {host[:80]!r}; use its own address, or allow the name with --allow-host.")


def _holder(keys: Keys, key: str) -> Holder:
    """Raises ApiError where it is nobody's."""
    found = keys.holder_of(key) if key else None
    if found is None:
        what = "Incorrect API key provided" if key else "No API key provided; send one as Authorization: Bearer KEY"
        raise ApiError(401, f"{what}.", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
    return found


def _key_of(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    name = host.lower()
    if name.startswith("["):
        return name[: name.find("]") + 1]
    return name.rsplit(":", 1)[0] if name.count(":") == 1 else name
