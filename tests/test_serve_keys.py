"""Key files and what a key opens: numbers of all tenants are for keys made for them, and taking a key out shuts it out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.serve.app import make_app
from hasten.serve.fleet import Fleet
from hasten.serve.front import Front, make_front
from hasten.serve.guard import LOOPBACK_NAMES, Guard, Policy
from hasten.serve.keys import Holder, Keys, digest_of, new_key
from hasten.serve.limits import Limits
from hasten.serve.models import Models, hosts_of
from hasten.serve.run import _reload
from hasten.serve.server import Server


def one_process(policy: Policy) -> Guard:
    return make_app(Server(Models(hosts_of(("none-such",), EngineConfig()), 0, load_nothing, None), Limits()), policy)


def several(policy: Policy) -> Guard:
    return make_front(Front(Fleet(0.01), Limits()), policy)


def load_nothing(config: EngineConfig) -> None:
    raise AssertionError("nothing here needs a model")


@asynccontextmanager
async def asking(door: Guard) -> AsyncIterator[Callable[..., asyncio.Future[httpx.Response]]]:
    """A function that asks for a path with a key."""
    transport = httpx.ASGITransport(door)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:

        def ask(path: str, key: str, method: str = "GET") -> asyncio.Future[httpx.Response]:
            return asyncio.ensure_future(client.request(method, path, headers={"authorization": f"Bearer {key}"}))

        yield ask


@pytest.mark.parametrize("kind", [one_process, several])
def test_numbers_of_all_tenants_are_for_keys_made_for_them(kind: Callable[[Policy], Guard], tmp_path: Path) -> None:
    anna, ben, watch = (new_key(tmp_path / "keys", tenant, metrics_only=tenant == "watch") for tenant in ("anna", "ben", "watch"))

    async def scene() -> None:
        async with asking(kind(Policy(Keys(tmp_path / "keys"), LOOPBACK_NAMES))) as ask:
            for tenant in (anna, ben):
                for path in ("/metrics", "/metrics%0A"):  # which a router takes for the same
                    answer = await ask(path, tenant)
                    assert answer.status_code == 403
                    assert "--for metrics" in answer.json()["error"]["message"]
                assert (await ask("/version", tenant)).status_code == 200
            answer = await ask("/metrics", watch)
            assert answer.status_code == 200
            assert "# TYPE hasten:http_requests_total counter" in answer.text
            assert (await ask("/health/live", watch)).status_code == 200
            for path in ("/v1/models", "/version", "/openapi.json", "/nothing", "/metrics/", "/metrics%0A"):
                answer = await ask(path, watch)
                assert answer.status_code == 403, path
                assert answer.json()["error"]["message"] == "This key is for reading /metrics only; send a tenant's key."
            for path in ("/v1/chat/completions", "/tokenize", "/metrics", "/health"):
                assert (await ask(path, watch, "POST")).status_code == 403

    asyncio.run(scene())


@pytest.mark.parametrize("kind", [one_process, several])
def test_where_there_is_one_tenant_its_keys_read_the_metrics(kind: Callable[[Policy], Guard], tmp_path: Path) -> None:
    """As does everybody where there are no keys. What a key file says counts, not what it said when the server began."""
    path = tmp_path / "keys"
    keys = [new_key(path, "anna"), new_key(path, "anna"), new_key(path, "watch", metrics_only=True)]
    held = Keys(path)

    async def scene() -> None:
        async with asking(kind(Policy(None, LOOPBACK_NAMES))) as ask:
            assert (await ask("/metrics", "")).status_code == 200
        async with asking(kind(Policy(held, LOOPBACK_NAMES))) as ask:
            assert [(await ask("/metrics", key)).status_code for key in (*keys, "wrong")] == [200, 200, 200, 401]
            new_key(path, "ben")
            held.reload()
            assert [(await ask("/metrics", key)).status_code for key in keys] == [403, 403, 200]

    asyncio.run(scene())


def test_health_of_replicas_tells_nothing_of_the_load() -> None:
    """No key is asked for there."""

    async def scene() -> None:
        front = Front(Fleet(0.01), Limits())
        front.fleet.replicas = [_Living()]  # type: ignore[list-item]
        async with asking(make_front(front, Policy(None, LOOPBACK_NAMES))) as ask:
            assert (await ask("/health", "")).json()["replicas"] == [{"replica": 0, "live": True, "starts": 1}]

    asyncio.run(scene())


class _Living:
    number, live, starts, load = 0, True, 1, 7


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "  # Anna's", "\r\n"])
def test_a_new_key_is_a_line_of_its_own(end: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(f"anna sha256:{digest_of('hk-a').hex()}{end}".encode())
    path.chmod(0o600)
    ben, watch = new_key(path, "ben"), new_key(path, "watch", metrics_only=True)
    keys = Keys(path)
    assert [keys.holder_of(key) for key in ("hk-a", ben, watch)] == [Holder("anna"), Holder("ben"), Holder("watch", True)]
    assert len(keys) == 3


@pytest.mark.parametrize("content", [None, "", "\n", "# none yet", "# none yet\n"])
def test_the_first_key_of_a_file(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match=r"has no keys; make one with `hasten serve --new-key TENANT --api-key-file"):
            Keys(path)
    key = new_key(path, "anna")
    assert Keys(path).holder_of(key) == Holder("anna")
    assert path.read_text().startswith(content or "anna")


def test_taking_out_the_last_key_lets_nobody_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hasten")
    path = tmp_path / "keys"
    key = new_key(path, "anna")
    held = Keys(path)

    async def scene() -> None:
        async with asking(one_process(Policy(held, LOOPBACK_NAMES))) as ask:

            async def reloaded(content: str | None) -> tuple[int, list[str]]:
                """The status that the key then gets, and the levels of what the log says."""
                path.unlink(missing_ok=True)
                if content is not None:
                    path.write_text(content)
                    path.chmod(0o600)
                caplog.clear()
                _reload(held)
                levels = [record.levelname for record in caplog.records if record.name == "hasten.serve.run"]
                return (await ask("/version", key)).status_code, levels

            good = path.read_text()
            assert await reloaded(good) == (200, ["INFO"])
            assert await reloaded(None) == (200, ["ERROR"])
            assert await reloaded("nonsense\n") == (200, ["ERROR"])
            assert await reloaded("# anna is gone\n") == (401, ["WARNING"])
            assert await reloaded("nonsense\n") == (401, ["ERROR"])
            assert await reloaded(good) == (200, ["INFO"])

    asyncio.run(scene())
