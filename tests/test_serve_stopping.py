"""What outlives the time that a stopping server gives: its client is told so, in the form of its interface. What is being loaded
does not hold it up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import Running, running

ENDLESS: dict[str, Any] = {"model": "tiny", "max_tokens": 1900, "temperature": 1.0}
STREAMS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "ignore_eos": True},
    "/v1/completions": {"prompt": "x", "ignore_eos": True, "n": 2},
}


def ask(server: Running, path: str, body: dict[str, Any], answers: dict[str, httpx.Response], began: threading.Barrier) -> None:
    with server.client.stream("POST", server.url + path, json=body) as answer:
        parts = answer.iter_bytes()
        first = next(parts)
        began.wait(60)
        rest = b"".join(parts)
        answers[path] = httpx.Response(200, content=first + rest)


def post(server: Running, path: str, body: dict[str, Any], answers: dict[str, httpx.Response]) -> None:
    answers[f"whole {path}"] = server.post(path, body)


def arrived(server: Running) -> float:
    """Requests that have come to the engine; one that has its last token has not told its client yet."""
    names = ("hasten:num_requests_running", "hasten:num_requests_waiting", "hasten:request_success_total")
    return sum(map(server.metric, names))


def test_what_outlives_the_drain_is_told_so(tmp_path: Path, tiny_model: Path) -> None:
    slow = ("--stream-interval", "3600")  # a stream gets its first token, and then nothing for an hour
    with running("--drain-timeout", "0.5", *slow, home=tmp_path, models=(f"tiny={tiny_model}",)) as server:
        answers: dict[str, httpx.Response] = {}
        bodies = {path: ENDLESS | body | {"stream": True} for path, body in STREAMS.items()}
        bodies["/v1/responses"] = {"model": "tiny", "input": "x", "max_output_tokens": 1900, "stream": True}
        began = threading.Barrier(len(bodies) + 1)
        threads = [threading.Thread(target=ask, args=(server, path, body, answers, began)) for path, body in bodies.items()]
        for thread in threads:
            thread.start()
        began.wait(60)
        crowd = ENDLESS | {"prompt": ["x"] * 64, "ignore_eos": True}  # takes the engine's places for long
        last = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1900, "priority": "batch"}
        for path, body, count in (("/v1/completions", crowd, 64), ("/v1/messages", last, 65)):
            threads.append(threading.Thread(target=post, args=(server, path, body, answers)))
            threads[-1].start()
            while arrived(server) < len(bodies) + count:
                time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert server.process.wait(30) == 0
    paths = {*bodies, "/v1/messages"}
    for path in STREAMS:
        events = [line for line in answers[path].text.split("\n\n") if line]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "stopping", path
        assert len(events) > 1
    events = [json.loads(event.split("\ndata: ")[1]) for event in answers["/v1/responses"].text.split("\n\n") if event]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["code"] == "stopping"
    assert events[-1]["response"]["status"] == "failed"
    for path in ("whole /v1/completions", "whole /v1/messages"):
        assert (answers[path].status_code, answers[path].headers["retry-after"]) == (503, "5")
    refused = answers["whole /v1/messages"]
    assert refused.json()["error"] == {"type": "overloaded_error", "message": "The server is stopping."}
    assert {line["error"] for line in server.access() if line["path"] in paths} == {"stopping"}
    assert not [line for line in server.log if "Traceback" in line]


SLOW_LOAD = """
import sys, time
from hasten.core.config import EngineConfig
from hasten.serve.run import Settings, serve

def load(config):
    print("loading", flush=True)
    while True:
        time.sleep(0.05)

sys.exit(serve(Settings(("tiny=" + sys.argv[1],), EngineConfig(model="tiny"), port=0), load))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_still_loads_ends_at_once(tmp_path: Path, tiny_model: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", SLOW_LOAD, str(tiny_model)]
    variables = {**os.environ, "HASTEN_HOME": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "loading\n"
            process.send_signal(number)
            _, log = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert "Stopping" in log
    assert "Serving" not in log
