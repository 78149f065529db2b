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
    if not body.get("stream"):
        began.wait(60)
        answers[path] = server.post(path, body)
        return
    with server.client.stream("POST", server.url + path, json=body) as answer:
        parts = answer.iter_bytes()
        first = next(parts)
        began.wait(60)
        rest = b"".join(parts)
        answers[path] = httpx.Response(200, content=first + rest)


def test_what_outlives_the_drain_is_told_so(tmp_path: Path, tiny_model: Path) -> None:
    slow = ("--stream-interval", "3600")  # a stream gets its first token, and then nothing for an hour
    with running("--drain-timeout", "0.5", *slow, home=tmp_path, models=(f"tiny={tiny_model}",)) as server:
        answers: dict[str, httpx.Response] = {}
        bodies = {path: ENDLESS | body | {"stream": True} for path, body in STREAMS.items()}
        bodies["/v1/responses"] = {"model": "tiny", "input": "x", "max_output_tokens": 1900, "stream": True}
        bodies["/v1/messages"] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1900}
        began = threading.Barrier(len(bodies) + 1)
        threads = [threading.Thread(target=ask, args=(server, path, body, answers, began)) for path, body in bodies.items()]
        for thread in threads:
            thread.start()
        began.wait(60)
        arrived = ("hasten:num_requests_running", "hasten:num_requests_waiting", "hasten:request_success_total")
        while sum(map(server.metric, arrived)) < len(bodies):  # one that has its last token has not told its client yet
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert server.process.wait(30) == 0
    for path in STREAMS:
        events = [line for line in answers[path].text.split("\n\n") if line]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "stopping", path
        assert len(events) > 1
    events = [json.loads(event.split("\ndata: ")[1]) for event in answers["/v1/responses"].text.split("\n\n") if event]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["code"] == "stopping"
    assert events[-1]["response"]["status"] == "failed"
    refused = answers["/v1/messages"]
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert refused.json()["error"] == {"type": "overloaded_error", "message": "The server is stopping."}
    assert {line["error"] for line in server.access() if line["path"] in bodies} == {"stopping"}
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
