"""What stands before a server: names it is called by, probes of its health, addresses of clients, lengths that two could read
differently."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hasten.cli.main import run as command_line
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.serve.run import Settings, policy_of
from serving import Running, running

NAME = "llm.example.com"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Running]:
    """One that goes by a name, besides its address on this machine."""
    home = tmp_path_factory.mktemp("home")
    with running("--allow-host", NAME, home=home, models=(f"tiny={tiny_model}",)) as found:
        yield found


def said(server: Running, sent: bytes) -> bytes:
    """All that the server says until it closes the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
        return b"".join(parts)


def hosts(**change: Any) -> frozenset[str]:
    found = policy_of(Settings(("m",), EngineConfig(), **change)).hosts
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("LLM.Example.com", "llm.example.com"),
        ("hasten", "hasten"),
        ("my_box.local.", "my_box.local."),
        ("10.0.0.5", "10.0.0.5"),
        ("fd00:0::5", "[fd00::5]"),
        ("[FD00::5]", "[fd00::5]"),
    ],
)
def test_a_name_is_taken_as_clients_write_it(text: str, name: str) -> None:
    assert name in hosts(allow_hosts=(text,))


def test_an_address_to_listen_on_is_a_name_too(tmp_path: Path) -> None:
    assert "[0:0:0:0:0:0:0:1]" in hosts(host="0:0:0:0:0:0:0:1")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("https://a.com", "write a.com, not 'https://a.com'"),
        ("llm.company.com:443", "write llm.company.com, not"),
        ("http://a.com:8000/v1", "write a.com, not"),
        ("a.com/", "write a.com, not"),
        ("*", "write it as llm.example.com, not"),
        ("*.a.com", "write it as"),
        ("[fd00::5]:80", "write it as"),
        ("bücher.example", "write it as"),
        ("a.com,b.com", "write it as"),
        ("a com", "write it as"),
        ("", "write it as"),
    ],
)
def test_what_can_never_be_the_name_is_refused(text: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="takes a name or an address alone"):
        hosts(allow_hosts=(text,))
    assert command_line(["serve", "--allow-host", text]) == 2
    told = capsys.readouterr().err
    assert meant in told
    assert told.count("\n") == 1


def test_probes_of_health_need_no_name(server: Running) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        for host in ("10.1.2.3:8000", "other.example"):
            assert server.get(path, headers={"host": host}).status_code == 200
        assert b" 200 " in said(server, f"GET {path} HTTP/1.0\r\n\r\n".encode()).split(b"\r\n")[0]
        assert server.post(path, {}, headers={"host": "10.1.2.3:8000"}).status_code == 403
        assert server.get(path, headers={"host": NAME, "origin": "https://other.example"}).status_code == 403
    for path in ("/", "/v1/models", "/metrics", "/health/", "/health%0A"):
        assert server.get(path, headers={"host": "10.1.2.3:8000"}).status_code == 403
        assert b" 403 " in said(server, f"GET {path} HTTP/1.0\r\n\r\n".encode()).split(b"\r\n")[0]
    assert server.get("/v1/models", headers={"host": f"{NAME}:443"}).status_code == 200


def clients(server: Running, mark: str, count: int) -> list[str]:
    """The addresses that the log has for a path."""
    found: list[str] = []
    for _ in range(100):
        found = [line["client"] for line in server.access() if line["path"] == mark]
        if len(found) >= count:
            break
        server.get("/health/live")
    return found


def test_the_log_has_the_clients_address(server: Running) -> None:
    """Behind a proxy on this machine, whose word uvicorn takes, it is the address that the proxy tells."""
    for told in (None, "203.0.113.7", "spoofed.example, 2001:db8::7", "a word of a client"):
        server.get("/a-path", headers={} if told is None else {"x-forwarded-for": told})
    assert clients(server, "/a-path", 4) == ["127.0.0.1", "203.0.113.7", "2001:db8::7", ""]


def test_a_proxy_that_is_not_trusted_is_the_client(tmp_path: Path, tiny_model: Path) -> None:
    trust = {"FORWARDED_ALLOW_IPS": "10.0.0.9"}
    with running(home=tmp_path, models=(f"tiny={tiny_model}",), environment=trust) as server:
        server.get("/a-path", headers={"x-forwarded-for": "203.0.113.7"})
        assert clients(server, "/a-path", 1) == ["127.0.0.1"]


def test_a_request_that_gives_its_length_twice_ends_its_connection(server: Running) -> None:
    """Whoever reads it by the other length finds a second request in its body; here nothing behind it is read."""
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for first, second in (
        (b"Content-Length: 6", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 6"),
    ):
        head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + first + b"\r\n" + second
        answer = said(server, head + b"\r\n\r\n0\r\n\r\n" + smuggled)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"gives its length twice" in answer
        assert b"\r\nconnection: close\r\n" in answer.lower()


def test_a_request_for_another_protocol_is_answered_in_this_one(server: Running) -> None:
    """And the operator is not told to install anything."""
    asked = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "AA=="}
    assert server.get("/v1/models", headers=asked).status_code == 200
    assert clients(server, "/v1/models", 1)
    assert not [line for line in server.log if "pgrade" in line or "WebSocket" in line or " WARNING " in line]
