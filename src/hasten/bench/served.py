"""Engines behind servers as contestants: as many clients as there are prompts, each a thread that reads its own stream."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import IO, Any

from hasten.bench.samples import UNSENT, Sample
from hasten.bench.session import ContestantFailed
from hasten.core.types import SamplingParams

START_SECONDS, ANSWER_SECONDS = 900.0, 1200.0
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server is asked for one stream, and where in its events the token ids are. ``body(prompt, params, mode)``. ``made``:
    how many tokens it says it has made, where an event tells."""

    path: str
    body: Callable[[list[int], SamplingParams, str], dict[str, Any]]
    tokens: Callable[[Event], list[int]]
    made: Callable[[Event], int | None] = lambda event: None


@dataclass(slots=True, eq=False)
class Server:
    """A server in a process of its own, started when it is first asked. ``command`` makes its command line from a port; it answers
    ``GET /health`` with 200 once it is ready. ``failure``: why it cannot run at all."""

    name: str
    command: Callable[[int], list[str]]
    environment: dict[str, str]
    failure: str | None = None
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = None

    def started(self) -> int:
        """The port. Raises ContestantFailed when it does not come up, or has ended."""
        if self.failure is not None:
            raise ContestantFailed(self.failure)
        if self.process is None:
            self._start()
        elif self.process.poll() is not None:
            raise self._ended()
        return self.port

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.log is not None:
            self.log.close()
        self.process = self.log = None

    def _start(self) -> None:
        self.port = _free_port()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        try:
            self.process = subprocess.Popen(
                self.command(self.port), stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=self.environment
            )
        except OSError as problem:
            raise ContestantFailed(f"{self.name} cannot be started ({problem}).") from problem
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise self._ended()
            if _healthy(self.port):
                return
            time.sleep(0.2)
        raise ContestantFailed(f"{self.name} was not ready within {START_SECONDS:.0f} s.")

    def _ended(self) -> ContestantFailed:
        assert self.process is not None
        assert self.log is not None
        self.log.seek(0)
        lines = [line for line in self.log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return ContestantFailed(
            f"{self.name} ended with status {self.process.returncode}: {lines[-1][:300] if lines else 'it said nothing'}"
        )


@dataclass(slots=True)
class ServedContestant:
    """One mode of a server. ``key_of(repeat)``: what is sent as the API key, so that each repetition is another tenant; None where
    the server has none."""

    name: str
    server: Server
    dialect: Dialect
    mode: str = ""
    key_of: Callable[[int], str] | None = None

    def answer(self, prompts: list[list[int]], params: SamplingParams, repeat: int) -> list[Sample]:
        """All prompts at once, each over a connection of its own."""
        port = self.server.started()
        headers = {"Content-Type": "application/json"}
        if self.key_of is not None:
            headers["Authorization"] = f"Bearer {self.key_of(repeat)}"
        clients = [_Client(port, self.dialect, self.dialect.body(prompt, params, self.mode), headers) for prompt in prompts]
        together = threading.Barrier(len(clients))
        threads = [threading.Thread(target=client.run, args=(together,), daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [self._sample(client, prompt, params) for client, prompt in zip(clients, prompts, strict=True)]

    def _sample(self, client: _Client, prompt: list[int], params: SamplingParams) -> Sample:
        if client.problem is not None:
            self.server.started()  # says how it ended, where it has
            raise ContestantFailed(f"{self.name}: {client.problem}")
        tokens = client.tokens + [UNSENT] * (client.made - len(client.tokens))
        if len(tokens) != params.max_tokens or client.made > len(client.tokens) + 1:
            raise ContestantFailed(f"{self.name} gave {len(client.tokens)} tokens where {params.max_tokens} were asked for.")
        return Sample(tokens, len(prompt), client.first_s, client.last_s - client.first_s)


@dataclass(frozen=True, slots=True)
class Absent:
    """An engine that cannot be compared this way: it fails when it is asked, so that the results say why."""

    name: str
    why: str

    def answer(self, prompts: list[list[int]], params: SamplingParams, repeat: int) -> list[Sample]:
        raise ContestantFailed(self.why)


@dataclass(slots=True, eq=False)
class _Client:
    """One request. ``first_s`` and ``last_s``: seconds from sending it to its first and last tokens. What arrives together need not
    have come of one round, so rounds are not known here."""

    port: int
    dialect: Dialect
    body: dict[str, Any]
    headers: dict[str, str]
    tokens: list[int] = field(default_factory=list)
    first_s: float = 0.0
    last_s: float = 0.0
    made: int = 0
    problem: str | None = None

    def run(self, together: threading.Barrier) -> None:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            body = json.dumps(self.body)
            together.wait(60)
            started = time.perf_counter()
            connection.request("POST", self.dialect.path, body, self.headers)
            response = connection.getresponse()
            if response.status != 200:
                self.problem = f"status {response.status}: {response.read(300).decode('utf-8', 'replace')}"
                return
            for line in response:
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    self._hear(json.loads(line[len(b"data: ") :]), time.perf_counter() - started)
        except (OSError, HTTPException, ValueError, LookupError, threading.BrokenBarrierError) as problem:
            self.problem = f"{type(problem).__name__}: {problem}"
        finally:
            connection.close()

    def _hear(self, event: Event, now: float) -> None:
        if "error" in event:
            self.problem = str(event["error"])[:300]
            return
        self.made = self.dialect.made(event) or self.made
        new = self.dialect.tokens(event)
        if new:
            self.first_s = self.first_s or now
            self.last_s = now
            self.tokens += new


def total_positions(prompts: Sequence[Sequence[int]], answer: int, parallel: int) -> int:
    """Positions that ``parallel`` of the longest prompts with their answers take, with room for a block each."""
    return parallel * (max(map(len, prompts)) + answer + 64)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _healthy(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
