"""What the door before replicas does with large bodies: nobody else waits for it, and it looks at their beginning only."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest

import hasten.serve.front as front_module
from hasten.serve.affinity import MOST_STEPS, STEP, trail_of
from hasten.serve.body import LARGE_BODY
from hasten.serve.fleet import Fleet
from hasten.serve.front import Front, make_front
from hasten.serve.guard import LOOPBACK_NAMES, Policy
from hasten.serve.limits import Limits


def test_only_the_beginning_of_a_body_is_looked_at() -> None:
    words = "x" * STEP * MOST_STEPS
    never_written: Any = object()
    assert trail_of("anna", {"messages": [words, never_written]}) == trail_of("anna", {"messages": [words, "y"]})


@pytest.mark.parametrize(("size", "elsewhere"), [(10, False), (LARGE_BODY, True)])
def test_large_bodies_are_read_off_the_event_loop(size: int, elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def watched(tenant: str, body: Any) -> list[bytes]:
        threads.append(threading.current_thread())
        return trail_of(tenant, body)

    monkeypatch.setattr(front_module, "trail_of", watched)

    async def ask() -> None:
        door = make_front(Front(Fleet(0.01), Limits()), Policy(None, LOOPBACK_NAMES))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://127.0.0.1") as client:
            answer = await client.post("/v1/completions", json={"prompt": "x" * size})
            assert answer.json()["error"]["code"] == "no_replica"

    asyncio.run(ask())
    assert [thread is not threading.main_thread() for thread in threads] == [elsewhere]
