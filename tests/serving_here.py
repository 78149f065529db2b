"""The server's application inside the test's own process, without socket and signals: what needs neither is cheaper here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from hasten.core.config import EngineConfig
from hasten.engine.footprint import footprint
from hasten.engine.llm import LLM
from hasten.serve.app import make_app
from hasten.serve.guard import Policy
from hasten.serve.limits import Limits
from hasten.serve.models import Models, hosts_of
from hasten.serve.server import Server
from hasten.serve.tracing import Tracing


@asynccontextmanager
async def serving_here(
    *names: str,
    budget: int = 0,
    limits: Limits | None = None,
    load: Callable[[EngineConfig], Any] = LLM,
    tracing: Tracing | None = None,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose requests go straight into the application. A streamed answer arrives whole, once it is complete."""
    config = EngineConfig(model=names[0].rsplit("=", 1)[-1])
    models = Models(hosts_of(names, config), budget, load, footprint if load is LLM else None)
    app = make_app(Server(models, limits or Limits(), tracing=tracing), Policy(None, None))
    await models.preload()
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=120) as client:
        try:
            yield client
        finally:
            await models.close()
