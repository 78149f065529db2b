"""How a server is run: keys and tenants, limits, refusal to stand open, signals, queue, deadlines."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from hasten.cli.main import run as command_line
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.serve.errors import ApiError
from hasten.serve.guard import is_loopback
from hasten.serve.keys import Holder, Keys, new_key
from hasten.serve.limits import Limits
from hasten.serve.run import Settings, policy_of
from hasten.serve.wire import ChatRequest, sampling_params
from serving import Running, running
from serving_here import serving_here

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "one two " * 40}], "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def keys(key_file: Path) -> dict[str, str]:
    return {tenant: new_key(key_file, tenant, metrics_only=tenant == "watch") for tenant in ("anna", "ben", "watch")}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, key_file: Path, keys: dict[str, str]) -> Iterator[Running]:
    """A server with keys and tight limits, open to all addresses of the machine."""
    arguments = [
        "--host",
        "0.0.0.0",
        "--api-key-file",
        str(key_file),
        "--max-queue",
        "4",
        "--max-n",
        "2",
        "--max-body-bytes",
        "20000",
    ]
    arguments += [
        "--max-output-tokens",
        "2000",
        "--max-sequences",
        "2",
        "--request-timeout",
        "20",
        "--allow-origin",
        "https://good.example",
    ]
    arguments += ["--body-timeout", "1", "--max-prompt-tokens", "500", "--log-format", "json", "--max-connections", "40"]
    with running(*arguments, home=tmp_path_factory.mktemp("home"), models=(f"tiny={tiny_model}",)) as found:
        found.url = found.url.replace("0.0.0.0", "127.0.0.1")
        yield found


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_nothing_but_the_open_paths_without_a_key(guarded: Running, keys: dict[str, str]) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/"):
        assert guarded.get(path).status_code == 200
    closed = [
        "/v1/models",
        "/metrics",
        "/version",
        "/nothing",
        "//v1/models",
        "/health/../v1/models",
        "/v1/models/tiny",
        "/%2fhealth",
        "/health/",
    ]
    for path in closed:
        for headers in ({}, bearer("wrong"), {"x-api-key": "hk-"}, {"authorization": keys["anna"]}, bearer(keys["anna"][:-1])):
            assert guarded.get(path, headers=headers).status_code == 401, path
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/health", "/"):
        assert guarded.post(path, CHAT).status_code == 401
    assert guarded.get("/v1/models", headers=bearer(keys["anna"])).status_code == 200
    assert guarded.get("/v1/models", headers={"x-api-key": keys["ben"]}).status_code == 200


def test_the_prefix_cache_is_a_tenants_own(guarded: Running, keys: dict[str, str]) -> None:
    cached = [
        guarded.post("/v1/chat/completions", CHAT, headers=bearer(keys[tenant])).json()["usage"]["prompt_tokens_details"][
            "cached_tokens"
        ]
        for tenant in ("anna", "anna", "ben", "ben")
    ]
    assert cached[0] == cached[2] == 0
    assert cached[1] >= 64
    assert cached[3] >= 64


def test_the_log_is_json_and_names_tenants_not_keys(guarded: Running, keys: dict[str, str]) -> None:
    guarded.post("/v1/chat/completions", CHAT, headers=bearer(keys["anna"]))
    time.sleep(0.2)
    lines = [json.loads(line) for line in guarded.log if line.startswith("{")]
    assert [line for line in lines if line.get("tenant") == "anna" and line["path"] == "/v1/chat/completions"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    text = "\n".join(guarded.log)
    assert keys["anna"] not in text
    assert hashlib.sha256(keys["anna"].encode()).hexdigest() not in text


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"n": 3}, 400, "n must be a whole number from 1 to 2 here, not 3."),
        ({"max_tokens": 2001}, 400, "An answer has at most 2000 tokens here"),
        ({"messages": [{"role": "user", "content": "x" * 30000}]}, 413, "20000 bytes"),
        ({"messages": [{"role": "user", "content": "one " * 700}]}, 400, "> 500 maximum"),
    ],
)
def test_limits_are_flags(guarded: Running, keys: dict[str, str], change: dict[str, Any], status: int, named: str) -> None:
    answer = guarded.post("/v1/chat/completions", CHAT | change, headers=bearer(keys["anna"]))
    assert answer.status_code == status
    assert named in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "name"),
    [("chat/completions", "max_tokens"), ("chat/completions", "max_completion_tokens"), ("responses", "max_output_tokens")],
)
def test_a_length_that_is_refused_is_blamed_by_the_clients_own_name(
    guarded: Running, keys: dict[str, str], path: str, name: str
) -> None:
    body = {"model": "tiny", "messages": CHAT["messages"]} if "chat" in path else {"model": "tiny", "input": "x"}
    error = guarded.post(f"/v1/{path}", body | {name: 2001}, headers=bearer(keys["anna"])).json()["error"]
    assert (error["param"], "at most 2000 tokens" in error["message"]) == (name, True)


def test_an_output_limit_holds_where_none_is_asked() -> None:
    wire = ChatRequest(messages=[{"role": "user", "content": "Hi."}])  # type: ignore[list-item]
    assert sampling_params(wire, Limits(max_output_tokens=600), None, None).max_tokens == 600
    assert sampling_params(wire, Limits(max_output_tokens=600), 7, None).max_tokens == 7
    assert sampling_params(wire, Limits(max_output_tokens=0), None, None).max_tokens is None
    with pytest.raises(ApiError, match="at most 600"):
        sampling_params(wire, Limits(max_output_tokens=600), 601, None)


@pytest.mark.parametrize(("most", "tokens"), [(0, 16), (8, 8), (600, 16)])
def test_a_completion_that_asks_for_no_length_keeps_to_the_limit(tiny_model: Path, most: int, tokens: int) -> None:
    async def scene() -> None:
        async with serving_here(f"tiny={tiny_model}", limits=Limits(max_output_tokens=most)) as client:
            for length in ({}, {"max_tokens": None}):
                answer = await client.post("/v1/completions", json={"prompt": "x", "ignore_eos": True} | length)
                assert answer.json()["usage"]["completion_tokens"] == tokens

    asyncio.run(scene())


def test_a_slow_body_is_given_up(guarded: Running, keys: dict[str, str]) -> None:
    def parts() -> Iterator[bytes]:
        yield b'{"messages": ['
        time.sleep(1.5)
        yield b"]}"

    headers = bearer(keys["anna"]) | {"content-type": "application/json"}
    with suppress(httpx.HTTPError):  # the server may close before the client has sent all
        assert httpx.post(guarded.url + "/v1/chat/completions", content=parts(), headers=headers, timeout=30).status_code == 408
    end = time.monotonic() + 5
    while '"status": 408' not in "".join(guarded.log) and time.monotonic() < end:
        time.sleep(0.05)
    assert '"status": 408' in "".join(guarded.log)


def closed_after(server: Running, first: bytes, drip: bytes) -> tuple[float, bytes]:
    """Seconds until the server closes a connection that sends ``first`` and then ``drip`` again and again; and what it said."""
    parts = urlsplit(server.url)
    with socket.create_connection(("127.0.0.1", parts.port or 0), timeout=0.1) as connection:
        began, said = time.monotonic(), b""
        connection.sendall(first)
        while time.monotonic() - began < 20:
            try:
                connection.sendall(drip)
                part = connection.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                break
            if not part:
                break
            said += part
        return time.monotonic() - began, said


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "


@pytest.mark.parametrize(
    ("first", "drip", "said"),
    [
        (b"", b"", b""),
        (b"GET /health HTTP/1.1\r\nX: ", b"a", b""),
        (HEAD + b"10000\r\nAuthorization: Bearer KEY\r\n\r\n{", b" ", b" 408 "),
        (HEAD + b"1000000\r\nAuthorization: Bearer KEY\r\n\r\n{", b" ", b" 413 "),
        (HEAD + b"10000\r\n\r\n{", b" ", b" 401 "),
    ],
    ids=["nothing", "half a head", "a slow body", "a body too long", "no key"],
)
def test_a_connection_that_never_gets_to_the_point_is_closed(
    guarded: Running, keys: dict[str, str], first: bytes, drip: bytes, said: bytes
) -> None:
    seconds, answer = closed_after(guarded, first.replace(b"KEY", keys["anna"].encode()), drip)
    assert said in answer
    assert 0.9 < seconds < 15


def test_a_connection_may_rest_between_two_requests(guarded: Running) -> None:
    with httpx.Client(timeout=20, limits=httpx.Limits(max_connections=1, keepalive_expiry=60)) as client:
        ports = set()
        for _ in range(2):
            answer = client.get(guarded.url + "/health/live")
            assert answer.status_code == 200
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr")[1])
            time.sleep(2.0)
    assert len(ports) == 1, "the connection was not kept"


class Turns:
    """Requests whose order is certain: what comes next is sent when the server counts what came before."""

    def __init__(self, server: Running, keys: dict[str, str]) -> None:
        self.server = server
        self.headers = bearer(keys["anna"])
        self.watching = bearer(keys["watch"])
        self.answers: dict[str, httpx.Response] = {}
        self.threads: list[threading.Thread] = []

    @contextmanager
    def endless(self) -> Iterator[None]:
        """Both places of the engine are taken, for as long as this lasts."""
        body = {**CHAT, "max_tokens": 1500, "ignore_eos": True, "temperature": 1.0, "n": 2, "stream": True}
        with self.server.client.stream("POST", self.server.url + "/v1/chat/completions", json=body, headers=self.headers) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()  # kept: the stream closes with it
            next(lines)
            yield

    def ask(self, name: str, **change: Any) -> httpx.Response:
        headers = self.headers | {"x-request-id": name}
        self.answers[name] = self.server.post("/v1/chat/completions", {**CHAT, **change}, headers=headers)
        return self.answers[name]

    def ask_and_wait(self, name: str, **change: Any) -> None:
        """Send it from a thread, and return once it stands in the queue."""
        before = self.waiting()
        self.threads.append(threading.Thread(target=lambda: self.ask(name, **change)))
        self.threads[-1].start()
        end = time.monotonic() + 60
        while self.waiting() <= before:
            assert time.monotonic() < end
            time.sleep(0.01)

    def waiting(self) -> float:
        text = self.server.get("/metrics", headers=self.watching).text
        return float(text.split("\nhasten:num_requests_waiting{")[1].split("} ")[1].split("\n")[0])

    def finish(self) -> list[str]:
        """Wait for all answers: their names, in the order in which the server was done with them."""
        for thread in self.threads:
            thread.join()
        time.sleep(0.2)  # the last line of the log
        lines = [json.loads(line) for line in self.server.log if line.startswith("{")]
        return [line["request"] for line in lines if line.get("request") in self.answers]


def test_a_full_queue_says_when_to_come_back(guarded: Running, keys: dict[str, str]) -> None:
    turns = Turns(guarded, keys)
    with turns.endless():
        for at in range(3):
            turns.ask_and_wait(f"queued-{at}")
        answer = turns.ask("refused")
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
    turns.finish()
    assert [turns.answers[f"queued-{at}"].status_code for at in range(3)] == [200] * 3


def test_interactive_requests_pass_batch_ones_and_deadlines_are_kept(guarded: Running, keys: dict[str, str]) -> None:
    turns = Turns(guarded, keys)
    with turns.endless():
        turns.ask_and_wait("batch", priority="batch", n=2)  # n=2 needs both places, so that one goes after the other
        late = turns.ask("late", priority="batch", deadline=0.05)
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "deadline"
        assert int(late.headers["retry-after"]) >= 1
        turns.ask_and_wait("interactive", n=2)
    ended = turns.finish()
    assert {turns.answers[name].status_code for name in ("batch", "interactive")} == {200}
    assert ended.index("late") < ended.index("interactive") < ended.index("batch")


def test_a_web_origin_that_is_allowed(guarded: Running) -> None:
    asked = {"origin": "https://good.example", "access-control-request-method": "POST"}
    answer = httpx.options(guarded.url + "/v1/chat/completions", headers=asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://good.example"
    for wanted in (
        "x-stainless-lang,x-stainless-retry-count",
        "authorization, x-my_header",
    ):  # official clients send some of their own
        answer = httpx.options(guarded.url + "/v1/models", headers=asked | {"access-control-request-headers": wanted})
        assert answer.headers["access-control-allow-headers"] == wanted
    for odd in ("a b", "a,", "x:y", "a" * 2001):
        answer = httpx.options(guarded.url + "/v1/models", headers=asked | {"access-control-request-headers": odd})
        assert "x-api-key" in answer.headers["access-control-allow-headers"]
        assert odd not in answer.headers["access-control-allow-headers"]
    for stranger in ("https://bad.example", "null", guarded.url.replace("http:", "app:")):
        assert httpx.options(guarded.url + "/v1/chat/completions", headers=asked | {"origin": stranger}).status_code == 403


def test_a_target_with_the_servers_name_is_its_path(guarded: Running, keys: dict[str, str]) -> None:
    """As for a proxy; the door stands before what it leads to."""
    name = guarded.url.removeprefix("http://")

    def asked(target: str, key: str = "", host: str = name) -> bytes:
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        return closed_after(guarded, head.encode(), b"")[1].split(b"\r\n")[0]

    assert b" 200 " in asked(f"{guarded.url}/health/live")
    assert b" 200 " in asked(guarded.url)
    assert b" 401 " in asked(f"{guarded.url}/v1/models")
    assert b" 200 " in asked(f"{guarded.url}/v1/models?a=b", keys["anna"])
    assert b" 400 " in asked("http://other.example/health/live")


def test_hangup_reads_the_keys_again(guarded: Running, key_file: Path, keys: dict[str, str]) -> None:
    key = new_key(key_file, "carla")
    assert guarded.get("/v1/models", headers=bearer(key)).status_code == 401
    guarded.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 10
    while guarded.get("/v1/models", headers=bearer(key)).status_code == 401 and time.monotonic() < end:
        time.sleep(0.05)
    assert guarded.get("/v1/models", headers=bearer(key)).status_code == 200
    good = key_file.read_text()
    key_file.write_text("nonsense\n")
    guarded.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert guarded.get("/v1/models", headers=bearer(key)).status_code == 200  # a broken file changes nothing
    key_file.write_text(good)


def test_termination_finishes_what_runs_and_takes_nothing_new(tmp_path: Path, tiny_model: Path) -> None:
    with running(home=tmp_path, models=(f"tiny={tiny_model}",)) as server:
        body = {**CHAT, "max_tokens": 200, "ignore_eos": True, "temperature": 1.0, "stream": True}
        with server.client.stream("POST", server.url + "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGHUP)  # no keys to read again, and no reason to end
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        end = time.monotonic() + 20
        while server.process.poll() is None and time.monotonic() < end:
            with suppress(httpx.HTTPError):
                assert server.post("/v1/chat/completions", CHAT).status_code == 503
            time.sleep(0.05)
        assert server.process.poll() == 0


def settings(tmp_path: Path, **change: Any) -> Settings:
    return Settings(("m",), EngineConfig(), **change)


def test_it_does_not_stand_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "10.0.0.1"):
        with pytest.raises(ConfigError, match="--api-key-file"):
            policy_of(settings(tmp_path, host=host))
    assert command_line(["serve", "--host", "0.0.0.0", "-m", "none-such"]) == 2
    assert "--api-key-file" in capsys.readouterr().err
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9", "0.0.0.0", "example.org")] == [
        True
    ] * 4 + [False] * 2
    new_key(tmp_path / "keys", "a")
    assert policy_of(settings(tmp_path, host="0.0.0.0", api_key_file=tmp_path / "keys")).hosts is None
    apps = ("app://obsidian.md", "tauri://localhost", "vscode-webview://1a2b", "chrome-extension://abc", "http://a:80", "https://a")
    assert policy_of(settings(tmp_path, allow_origins=apps)).origins == frozenset(apps)
    for wrong in ("*", "null", "app", "https://", "https://a/", "https://a/b", "https://*.a", "https://a b", "https://a,https://b"):
        with pytest.raises(ConfigError, match="origin"):
            policy_of(settings(tmp_path, allow_origins=(wrong,)))


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key = new_key(path, "team.one")
    assert path.stat().st_mode & 0o777 == 0o600
    assert key not in path.read_text()
    assert Keys(path).holder_of(key) == Holder("team.one")
    assert Keys(path).holder_of(key[:-1]) is None
    assert Keys(path).holder_of("") is None
    for tenant in ("", "a b", "../x", "x" * 65, "a\nb sha256:" + "0" * 64):
        with pytest.raises(ConfigError):
            new_key(path, tenant)
    os.chmod(path, 0o666)
    with pytest.raises(ConfigError, match="written by others"):
        Keys(path)
    for content in ("", "# only a comment\n", "anna plain:secret\n", "anna sha256:00\n"):
        other = tmp_path / "other"
        other.write_text(content)
        with pytest.raises(ConfigError):
            Keys(other)
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(tmp_path / "none")


def test_the_command_line_makes_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    assert command_line(["serve", "--new-key", "anna", "--api-key-file", str(path)]) == 0
    assert Keys(path).holder_of(capsys.readouterr().out.strip()) == Holder("anna")
    assert command_line(["serve", "--new-key", "prometheus", "--for", "metrics", "--api-key-file", str(path)]) == 0
    assert Keys(path).holder_of(capsys.readouterr().out.strip()) == Holder("prometheus", metrics_only=True)
    assert command_line(["serve", "--new-key", "anna"]) == 2
    assert command_line(["serve", "--for", "metrics"]) == 2
    assert "--new-key NAME" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"max_n": 65}, {"max_body_bytes": 0}, {"request_timeout": float("nan")}, {"max_queue": True}])
def test_limits_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Limits(**wrong)
