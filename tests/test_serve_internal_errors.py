"""An error of the server's own: one answer and one trace in the log, in one process and behind the door."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from hasten.core.config import EngineConfig
from hasten.serve.app import make_app
from hasten.serve.fleet import Fleet
from hasten.serve.front import Front, make_front
from hasten.serve.guard import LOOPBACK_NAMES, Policy
from hasten.serve.limits import Limits
from hasten.serve.models import Host, Models
from hasten.serve.replica import Replica
from hasten.serve.server import Server
from test_serve_replicas import Near

ASK = {"messages": [{"role": "user", "content": "x"}]}


class Broken(Models):
    async def acquire(self, name: str | None) -> Host:
        raise RuntimeError("something fell over")


def broken() -> Server:
    return Server(Broken([Host("tiny", EngineConfig())]), Limits())


async def asked(app: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        return await client.post("/v1/chat/completions", json=ASK)


async def alone() -> httpx.Response:
    return await asked(make_app(broken(), Policy(None, LOOPBACK_NAMES)))


async def behind_the_door() -> httpx.Response:
    fleet = Fleet(5.0)
    await fleet.start([Near(Replica(broken()))])
    try:
        return await asked(make_front(Front(fleet, Limits()), Policy(None, LOOPBACK_NAMES)))
    finally:
        await fleet.close()


@pytest.mark.parametrize("ask", [alone, behind_the_door])
def test_one_error_is_one_answer_and_one_trace(ask: Any, caplog: pytest.LogCaptureFixture) -> None:
    answer = asyncio.run(ask())
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    traces = [record for record in caplog.records if record.exc_info]
    assert [str(record.exc_info[1]) for record in traces if record.exc_info] == ["something fell over"]
