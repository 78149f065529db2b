"""``hasten serve``: a server that speaks OpenAI's interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hasten.cli.options import (
    Verb,
    WholeText,
    blaming,
    limit_options,
    limits_of,
    misuse,
    server_engine_config,
    server_engine_options,
)
from hasten.core.config import EngineConfig, draft_specs
from hasten.serve.hangup import Hangups


@click.command(cls=Verb)
@click.option(
    "-m", "--model", "models", type=WholeText(), multiple=True, default=(EngineConfig().model,), show_default=True,
    help="A model as for 'hasten chat', or ALIAS=MODEL; repeated, the others are loaded when asked for.",
)  # fmt: skip
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="The address to listen on; others need keys."
)
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), metavar="N", help="The port; 0 takes a free one."
)
@click.option("--api-key-file", metavar="FILE", help="Keys that clients need, hashed, each with its tenant.")
@click.option("--new-key", metavar="TENANT", help="Make a key for a tenant, add its hash to the key file, print the key, and end.")
@click.option(
    "--for",
    "purpose",
    default="requests",
    show_default=True,
    type=click.Choice(["requests", "metrics"]),
    help="What the new key is for: a tenant's requests, or reading /metrics and nothing else.",
)
@click.option(
    "--allow-host",
    "allow_hosts",
    type=WholeText(),
    multiple=True,
    help="A further name that clients may call the server by, without port.",
)
@click.option(
    "--allow-origin", "allow_origins", type=WholeText(), multiple=True, help="A web origin whose pages may call the server."
)
@click.option(
    "--memory-budget",
    default=0.0,
    show_default=True,
    type=click.FLOAT,
    metavar="GB",
    help="Memory for all loaded models; 0 for no bound.",
)
@click.option(
    "--replicas",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Processes with an engine each, which share requests and the cores (needs hasten[ray]).",
)
@click.option(
    "--log-format",
    default="text",
    show_default=True,
    type=click.Choice(["text", "json"]),
    help="How the log on standard error is written.",
)
@click.option(
    "--trace-endpoint", metavar="URL", help="Where OpenTelemetry traces go, as http://127.0.0.1:4318/v1/traces; none by default."
)
@limit_options
@server_engine_options
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    api_key_file: str | None,
    new_key: str | None,
    purpose: str,
    allow_hosts: tuple[str, ...],
    allow_origins: tuple[str, ...],
    memory_budget: float,
    replicas: int,
    log_format: str,
    trace_endpoint: str | None,
    **options: Any,
) -> int:
    """Serve models to OpenAI's and Anthropic's clients, and a chat page to browsers.

    Without keys only this machine can reach it. SIGTERM finishes what runs and ends; SIGHUP reads the key file again.
    """
    path = Path(api_key_file).expanduser() if api_key_file else None
    if new_key is not None:
        return _print_new_key(path, new_key, metrics_only=purpose == "metrics")
    if purpose != "requests":
        raise misuse("--for says what a new key is for; name who gets one with --new-key NAME.", "purpose")
    # From here on, as what is imported now takes seconds; the server hears by itself what comes once it has read its keys.
    click.get_current_context().with_resource(Hangups())
    if not 0.0 <= memory_budget <= 1e6:
        raise misuse(f"memory_budget must be a number of gigabytes, at least 0, not {memory_budget!r}.", "memory_budget")
    if not models:
        raise misuse("A server needs a model; name one with -m MODEL, or by 'model' in the settings file.", "models")
    limits, config = limits_of(options), server_engine_config(options, models[0])
    from hasten.draft.specs import check_specs
    from hasten.serve.models import hosts_of
    from hasten.serve.run import UNTRACED, Settings, check_access, serve
    from hasten.serve.tracing import check_endpoint

    budget = int(memory_budget * 1e9)
    settings = Settings(
        models, config, limits, host, port, path, allow_hosts, allow_origins, budget, log_format, replicas, trace_endpoint
    )
    with blaming("draft"):
        check_specs(draft_specs(config.draft))
    with blaming("models"):
        hosts_of(models, config)
    with blaming("host", "allow_hosts", "allow_origins"):
        check_access(settings)
    with blaming("trace_endpoint"):
        check_endpoint(trace_endpoint)
    if replicas > 1 and trace_endpoint is not None:
        raise misuse(UNTRACED, "replicas", "trace_endpoint")
    return serve(settings)


def _print_new_key(path: Path | None, tenant: str, metrics_only: bool) -> int:
    from hasten.serve.keys import check_tenant, new_key

    with blaming("new_key"):
        check_tenant(tenant)
    if path is None:
        raise misuse("A new key needs a file to go into; name it with --api-key-file FILE.", "new_key")
    click.echo(new_key(path, tenant, metrics_only))
    return 0
