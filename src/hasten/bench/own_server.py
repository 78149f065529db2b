"""Hasten's own server as contestants: one ``hasten serve`` process, its modes by the request's ``speculation`` field."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hasten.bench.served import Dialect, Event, ServedContestant, Server
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.core.types import SamplingParams

MODES = {"plain": "off", "auto": "auto"}  # of the comparison, and what a request says
_NOT_OPTIONS = ("model", "explain")


def own_contestants(config: EngineConfig, modes: Sequence[str], repeats: int, stack: ExitStack) -> list[ServedContestant]:
    """A contestant a mode. Each mode and repetition is a tenant of its own, so that none profits from what another has left in the
    prefix cache and the drafters' memory. ``stack`` ends the server.

    Raises ConfigError for a mode that a request cannot ask for.
    """
    for mode in modes:
        if mode not in MODES:
            raise ConfigError(f"A server is compared in the modes {' and '.join(MODES)}, not '{mode}'; leave it out of --compare.")
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="hasten-bench-")))
    keys = folder / "keys"
    lines = []
    for mode in modes:
        for repeat in range(-1, repeats):  # -1: warming up
            lines.append(f"{_tenant(mode, repeat)} sha256:{hashlib.sha256(_tenant(mode, repeat).encode()).hexdigest()}\n")
    keys.write_text("".join(lines), encoding="utf-8")
    keys.chmod(0o600)

    def command(port: int) -> list[str]:
        own = [sys.executable, "-m", "hasten", "serve", "-m", config.model, "--port", str(port), "--api-key-file", str(keys)]
        return own + options_of(config)

    server = Server("hasten serve", command, dict(os.environ))
    stack.callback(server.close)
    return [
        ServedContestant(mode, server, DIALECT, MODES[mode], lambda repeat, mode=mode: _tenant(mode, repeat))  # type: ignore[misc]
        for mode in modes
    ]


def options_of(config: EngineConfig) -> list[str]:
    """The options of ``hasten serve`` that give this configuration."""
    out: list[str] = []
    for one in fields(config):
        value = getattr(config, one.name)
        if one.name in _NOT_OPTIONS or value == one.default:
            continue
        name = one.name.replace("_", "-")
        out += [f"--{name}" if value else f"--no-{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return out


def _tenant(mode: str, repeat: int) -> str:
    """A tenant's name, and its key: the server is reached from this machine only, for as long as the comparison lasts."""
    return f"{mode}-{repeat + 1}"


def _body(prompt: list[int], params: SamplingParams, mode: str) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "seed": params.seed,
        "ignore_eos": True,
        "speculation": mode,
        "return_token_ids": True,
        "stream": True,
    }


def _tokens(event: Event) -> list[int]:
    return [token for choice in event["choices"] for token in choice.get("token_ids", [])]


DIALECT = Dialect("/v1/completions", _body, _tokens)
