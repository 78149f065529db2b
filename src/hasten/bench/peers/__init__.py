"""Other engines, each in an environment of its own."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError

if TYPE_CHECKING:
    from hasten import LLM
    from hasten.bench.session import Contestant


def peers_of(names: str, llm: LLM, config: EngineConfig, stack: ExitStack) -> list[Contestant]:
    raise ConfigError(names)
