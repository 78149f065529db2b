"""A client that leaves is told of alike, whether its answer was to be whole or a stream that had begun."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from serving import Running

ENDLESS: dict[str, Any] = {"model": "tiny", "prompt": "x", "max_tokens": 2000, "ignore_eos": True}


def last(server: Running, request: str) -> dict[str, Any]:
    """What the log says of a request, once it does."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for line in server.access():
            if line["request"] == request:
                return line
        time.sleep(0.02)
    raise AssertionError("the log says nothing")


def leave_whole(server: Running, request: str) -> None:
    with pytest.raises(httpx.ReadTimeout):
        server.post("/v1/completions", ENDLESS, headers={"x-request-id": request}, timeout=0.2)


def leave_stream(server: Running, request: str) -> None:
    body = ENDLESS | {"stream": True}
    with server.client.stream("POST", server.url + "/v1/completions", json=body, headers={"x-request-id": request}) as answer:
        next(answer.iter_bytes())


def counted(server: Running, status: int) -> float:
    """Requests that ended so, by the metrics."""
    lines = server.client.get(server.url + "/metrics").text.splitlines()
    told = [line for line in lines if line.startswith("hasten:http_requests_total{") and f'status="{status}"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in told)


@pytest.mark.parametrize("leave", [leave_whole, leave_stream])
def test_the_log_says_that_the_client_left(server: Running, leave: Any) -> None:
    name, before = f"left-{leave.__name__}", counted(server, 499)
    leave(server, name)
    line = last(server, name)
    assert (line["status"], line["error"], line["finish_reason"]) == (499, "client_left", "cancelled")
    assert counted(server, 499) == before + 1


def test_a_stream_that_was_taken_whole_is_no_leaving(server: Running) -> None:
    body = ENDLESS | {"stream": True, "max_tokens": 5}
    server.post("/v1/completions", body, headers={"x-request-id": "stayed"})
    line = last(server, "stayed")
    assert (line["status"], line.get("error")) == (200, None)
