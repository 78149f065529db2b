"""Two real replicas on Ray Serve, on this machine: a whole service, and one of them killed in the middle of a load."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import Running, running

pytest.importorskip("ray", reason="needs ray: pip install 'hasten[ray]'")
pytestmark = pytest.mark.slow

TOKENS = 150
AT_ONCE = 12


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Running]:
    """Two replicas that run two requests at a time each, so that most of a load waits."""
    arguments = ["--replicas", "2", "--max-sequences", "2", "--threads", "1"]
    with running(*arguments, home=tmp_path_factory.mktemp("home"), models=(f"tiny={tiny_model}",), seconds=400) as found:
        yield found


def processes(server: Running) -> dict[int, int]:
    """The latest process of each replica, from the log."""
    found = (re.search(r"Replica (\d+) lives \(process (\d+)\)", line) for line in list(server.log))
    return {int(one[1]): int(one[2]) for one in found if one}


def body_of(number: int) -> dict[str, Any]:
    return {"prompt": f"Story {number}. " * 5, "max_tokens": TOKENS, "ignore_eos": True, "seed": number, "stream": number % 3 != 0}


@dataclass
class Outcome:
    text: str = ""
    whole: bool = False
    error: str | None = None


def ask(server: Running, number: int, begun: threading.Semaphore | None = None) -> Outcome:
    out = Outcome()
    body = body_of(number)
    if not body["stream"]:
        answer = httpx.post(server.url + "/v1/completions", json=body, timeout=300)
        if answer.status_code == 200:
            return Outcome(answer.json()["choices"][0]["text"], True)
        return Outcome(error=f"{answer.status_code} {answer.text}")
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=300) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                out.whole = True
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                out.error = event["error"]["code"]
                continue
            if begun is not None and not out.text:
                begun.release()
            out.text += event["choices"][0]["text"]
    return out


def test_a_replica_killed_in_the_middle_of_a_load(pair: Running) -> None:
    alone = [ask(pair, number) for number in range(AT_ONCE)]
    assert all(one.whole for one in alone)
    before = processes(pair)
    assert set(before) == {0, 1}
    begun, outcomes = threading.Semaphore(0), {}

    def client(number: int) -> None:
        outcomes[number] = ask(pair, number, begun)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(AT_ONCE)]
    for one in clients:
        one.start()
    for _ in range(3):  # two run on each replica, at most one of them no stream: both have begun one
        assert begun.acquire(timeout=120)
    os.kill(before[0], signal.SIGKILL)
    for one in clients:
        one.join(300)
    assert len(outcomes) == AT_ONCE

    broken = {number for number, one in outcomes.items() if not one.whole}
    assert all(body_of(number)["stream"] for number in broken), "what has not begun to stream is not lost"
    for number, one in outcomes.items():
        if number in broken:
            assert one.error == "replica_lost"
            assert 0 < len(one.text) < len(alone[number].text)
            assert alone[number].text.startswith(one.text)
        else:
            assert one.error is None
            assert one.text == alone[number].text
    assert 1 <= len(broken) <= 2, "only what ran there and streamed"
    assert pair.metric("hasten:requests_broken_total") == len(broken)
    assert pair.metric("hasten:requests_retried_total") >= 1
    retried = [line for line in pair.log if "had not begun on replica 0" in line]
    assert len(retried) == pair.metric("hasten:requests_retried_total")
    _a_new_one_comes(pair, before)


def _a_new_one_comes(pair: Running, before: dict[int, int]) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and not all(one["live"] for one in pair.get("/health").json()["replicas"]):
        time.sleep(0.5)
    health = pair.get("/health").json()["replicas"]
    assert [(one["live"], one["starts"]) for one in health] == [(True, 2), (True, 1)]
    after = processes(pair)
    assert after[1] == before[1]
    assert after[0] != before[0]
    assert pair.metric("hasten:replica_up") == 2
    for number in range(4):
        assert ask(pair, number).whole
    assert pair.metric("hasten:generation_tokens_total", replica="0") > 0, "the new one works"


def test_a_client_that_goes_away_frees_its_place(pair: Running) -> None:
    with httpx.stream("POST", pair.url + "/v1/completions", json=body_of(1), timeout=120) as answer:
        next(answer.iter_lines())
    pair.wait_idle()


def listening(server: Running) -> list[tuple[str, int]]:
    """Address, as the kernel writes it, and port of everything that our processes listen on."""
    ours = set(processes(server).values()) | {server.process.pid}
    sockets = {os.readlink(link) for process in ours for link in Path(f"/proc/{process}/fd").iterdir() if link.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, port = fields[1].split(":")
                found.append((address, int(port, 16)))
    return found


def test_who_has_no_token_reaches_no_replica(pair: Running) -> None:
    """Ray keeps to loopback, but for the port on which Serve's replicas hear each other: it unpickles what it is sent, so nobody
    without the token may send it anything."""
    import grpc

    loopback = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
    exposed = [port for address, port in listening(pair) if address not in loopback]
    assert len(listening(pair)) > len(exposed)
    assert len(exposed) <= 2, "one a replica, no more"
    for port in exposed:
        for metadata in ((), (("authorization", "Bearer " + "0" * 64),)):
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"", timeout=60, metadata=metadata)
                assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
