"""One file over HTTP, resumed where it stopped: ranged requests, bounded size, retries. No torch.

Only the bytes are this file's business; whoever asked checks what they hash to. Proxies come from the usual environment
variables, certificates from the system or the file given.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit, urlunsplit

from hasten.core.errors import ConfigError, DownloadError

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 20.0
STALLED_ATTEMPTS = 5
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
GOES_ON = "then run the same command again, which goes on from what is kept."
_ELSEWHERE = "set HASTEN_HOME (HF_HOME for hub models) to a directory on another disk"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskError(DownloadError):
    """The disk is full or refuses writing: no other source helps."""


class Unreachable(DownloadError):
    """The network, a proxy or a server is in the way."""


class NotOnServer(DownloadError):
    """The server answered that it has no such thing, or something that cannot be it."""


class _Broken(Exception):
    """A transfer ended early in a way that is worth another attempt."""


@dataclass(frozen=True, slots=True)
class Address:
    """A URL without credentials, and the value of the Authorization header for it."""

    url: str
    authorization: str | None = None

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc or "this machine"


def address(url: str) -> Address:
    """Take user name and password out of a URL."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return Address(url)
    userinfo, _, host = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    token = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    return Address(urlunsplit(parts._replace(netloc=host)), f"Basic {token}")


class Client:
    """Opens http, https and file URLs. ``certificate`` is a file of certificate authorities (None: the system's)."""

    def __init__(self, certificate: Path | None = None) -> None:
        try:
            context = ssl.create_default_context(cafile=certificate)
        except OSError as problem:
            raise ConfigError(f"The certificate file {certificate} cannot be read; correct pip's 'cert' setting.") from problem
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))

    def open(self, where: Address, headers: dict[str, str]) -> HTTPResponse:
        """The response, whatever it is below 400. Raises NotOnServer, Unreachable, or _Broken for what may pass."""
        request = urllib.request.Request(where.url, headers={"Accept-Encoding": "identity", "User-Agent": "hasten", **headers})
        if where.authorization is not None:
            request.add_unredirected_header("Authorization", where.authorization)
        try:
            return cast(HTTPResponse, self._opener.open(request, timeout=TIMEOUT_SECONDS))
        except urllib.error.HTTPError as problem:
            with problem:
                return self._refused(where, problem)
        except urllib.error.URLError as problem:
            if where.url.startswith("file:"):
                raise NotOnServer(f"There is no file {where.url}.") from problem
            if isinstance(problem.reason, ConnectionResetError | TimeoutError | BrokenPipeError):
                raise _Broken(str(problem.reason)) from problem
            raise Unreachable(_unreachable(where, problem.reason)) from problem
        except (OSError, HTTPException) as problem:
            raise _Broken(str(problem) or type(problem).__name__) from problem

    def _refused(self, where: Address, problem: urllib.error.HTTPError) -> HTTPResponse:
        if problem.code == 416:
            raise _RangeRefused(problem.headers.get("Content-Range", "")) from problem
        if problem.code in _RETRIED:
            raise _Broken(f"HTTP {problem.code}") from problem
        if problem.code in (404, 410):
            raise NotOnServer(f"{where.host} has no {urlsplit(where.url).path}.") from problem
        if problem.code in (401, 403):
            raise Unreachable(f"{where.host} refused access (HTTP {problem.code}); check your credentials for it.") from problem
        raise Unreachable(f"{where.host} answered HTTP {problem.code}; try again later.") from problem

    def read(self, where: Address, headers: dict[str, str], limit: int) -> tuple[bytes, str, str]:
        """A small document: its bytes, content type and final URL. Raises DownloadError."""
        last = ""
        for attempt in range(STALLED_ATTEMPTS):
            _pause(attempt)
            try:
                with self.open(where, headers) as response:
                    body = response.read(limit + 1)
                    expected = response.headers.get("Content-Length")
                    if expected is not None and len(body) < min(int(expected), limit + 1):
                        raise _Broken("the connection closed early")
                    if len(body) > limit:
                        raise NotOnServer(f"{where.host} answered with more than {limit} bytes; check the index address.")
                    return body, response.headers.get_content_type(), response.geturl()
            except (_Broken, OSError, HTTPException, ValueError) as problem:
                last = str(problem)
        raise Unreachable(_unreachable(where, last))


class _RangeRefused(Exception):
    """HTTP 416: nothing lies behind the offset asked for."""


def fetch(client: Client, where: Address, target: Path, limit: int, report: Callable[[int], None]) -> None:
    """Download into ``target``, going on behind the bytes that it already holds; ``report`` gets the bytes now held.

    A server that ignores ranges restarts the file. The result may be wrong bytes: check its hash. At most ``limit`` bytes are
    written. Raises DiskError, NotOnServer, Unreachable; what was written stays, for the next call.
    """
    furthest, stalled, last = _held(target), 0, ""
    while stalled < STALLED_ATTEMPTS:
        _pause(stalled)
        try:
            _attempt(client, where, target, limit, report)
            return
        except _RangeRefused as problem:
            if re.fullmatch(rf"bytes \*/{_held(target)}", str(problem)):
                return
            with disk(target.parent):
                target.write_bytes(b"")
            last = "the server refused to resume"
        except _Broken as problem:
            last = str(problem)
        held = _held(target)
        stalled = 0 if held > furthest else stalled + 1
        furthest = max(furthest, held)
    raise Unreachable(_unreachable(where, last))


def _attempt(client: Client, where: Address, target: Path, limit: int, report: Callable[[int], None]) -> None:
    held = _held(target)
    with client.open(where, {"Range": f"bytes={held}-"} if held else {}) as response:
        start, end = _extent(response, held)
        if max(end or 0, held) > limit:
            raise NotOnServer(f"{where.host} offers a file larger than the {limit} bytes that this model can need.")
        done = start
        report(done)
        with disk(target.parent), target.open("r+b" if start else "wb") as file:
            file.seek(start)
            while chunk := _read(response):
                done += len(chunk)
                if done > limit:
                    raise NotOnServer(f"{where.host} sent more than the {limit} bytes that this model can need.")
                file.write(chunk)
                file.flush()
                report(done)
    if end is not None and done < end:
        raise _Broken("the connection closed early")


def _extent(response: HTTPResponse, held: int) -> tuple[int, int | None]:
    """Where the body of the response starts and ends in the file (end None: not said)."""
    length = response.headers.get("Content-Length", "")
    size = int(length) if re.fullmatch(r"\d{1,18}", length) else None
    if held and response.status == 206:
        match = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != held:
            raise _RangeRefused
        return held, None if size is None else held + size
    return 0, size


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK_BYTES)  # what has arrived, so that a slow transfer that is killed keeps it
    except (OSError, HTTPException) as problem:
        raise _Broken(str(problem) or type(problem).__name__) from problem


@contextmanager
def disk(directory: Path) -> Iterator[None]:
    """Turn the errors of writing into ``directory`` into a DiskError."""
    try:
        yield
    except OSError as problem:
        if problem.errno in _FULL:
            raise DiskError(f"The disk that holds {directory} is full; free some space or {_ELSEWHERE}, {GOES_ON}") from problem
        raise DiskError(f"{directory} cannot be written ({problem.strerror or problem}); {_ELSEWHERE}.") from problem


def _held(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _pause(stalled: int) -> None:
    if stalled:
        time.sleep(min(8.0, 0.5 * 2 ** (stalled - 1)))


def _unreachable(where: Address, reason: object) -> str:
    return f"{where.host} could not be reached ({reason}); check the network and the proxy settings (HTTPS_PROXY), {GOES_ON}"


def need_space(directory: Path, needed: int, what: str) -> None:
    """Raise DiskError when the disk of ``directory`` (or of its nearest ancestor that exists) has less than ``needed`` free."""
    existing = next((path for path in (directory, *directory.parents) if path.exists()), directory)
    with disk(directory):
        free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskError(
            f"{what} needs {needed / 1e6:.0f} MB free in {directory} and there are {free / 1e6:.0f} MB; free some space or "
            f"{_ELSEWHERE}."
        )
