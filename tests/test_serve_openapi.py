"""schemathesis against our own OpenAPI document: whatever a generated body is, no 5xx, no undocumented status, no wrong content."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from hasten.serve.app import engine_routes
from serving import Running

schemathesis = pytest.importorskip("schemathesis")


def test_the_document_names_every_route(server: Running) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    routes = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in engine_routes()
        for method in route.methods or ()
        if method != "HEAD"
    }
    others = {(path, "get") for path in ("/health", "/health/live", "/health/ready", "/metrics", "/version")}
    assert {(path, method) for path, methods in paths.items() for method in methods} == routes | others
    for path, _ in others | {("/v1/models", "get"), ("/v1/models/tiny", "get")}:
        answer = server.get(path)
        assert answer.status_code == 200
        known = paths["/v1/models/{name}" if path == "/v1/models/tiny" else path]["get"]["responses"]["200"]["content"]
        assert answer.headers["content-type"].split(";")[0] in known


@pytest.mark.parametrize("examples", [6, pytest.param(150, marks=pytest.mark.slow)])
def test_generated_requests_never_break_the_server(server: Running, examples: int) -> None:
    schema = schemathesis.openapi.from_dict(server.get("/openapi.json").json())
    schema.config.update(base_url=server.url)
    seen: dict[str, int] = {}

    def check(case: Any) -> None:
        if isinstance(case.body, dict):  # what is long costs time and finds nothing more
            for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
                if not isinstance(case.body.get(name), bool) and (case.body.get(name) or 10**9) > 8:
                    case.body[name] = 8
        answer = case.call(timeout=60)
        seen[case.path] = seen.get(case.path, 0) + 1
        assert answer.status_code in (200, 400, 404, 405, 413, 415, 503), answer.text
        assert answer.status_code != 503 or "retry-after" in answer.headers
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert error["message"]
            assert error["type"]

    quiet = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.method.lower() == "post":
            quiet(given(case=operation.as_strategy())(check))()
    assert len(seen) == 9
    assert server.post("/v1/completions", {"prompt": "one", "max_tokens": 2}).status_code == 200
    server.wait_idle()
