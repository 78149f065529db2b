"""The contestants of ``hasten bench --server``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from hasten.bench.own_server import own_contestants
from hasten.bench.peers import check_names
from hasten.bench.peers.servers import Room, served_peers
from hasten.bench.served import total_positions
from hasten.bench.session import Contestant
from hasten.bench.workloads import Load
from hasten.cli.bench_options import check_gguf
from hasten.cli.screen import notes
from hasten.core.config import EngineConfig
from hasten.model.catalogue import resolve
from hasten.model.kernels import threads_and_level


def servers(
    config: EngineConfig, modes: list[str], loads: list[Load], options: dict[str, Any], stack: ExitStack
) -> tuple[list[Contestant], list[Contestant]]:
    """Our own modes, and those of --against. All have the same threads and the same room in the cache.

    ``stack`` ends their processes. Raises ConfigError where another engine is asked for and the model is no GGUF file.
    """
    parallel = max(load.batch for load in loads)
    prompts = [question.tokens for load in loads for question in load.questions]
    positions = total_positions(prompts, options["max_tokens"], parallel)
    threads = threads_and_level()[0]
    given = replace(config, threads=threads, max_sequences=max(config.max_sequences, parallel))
    own = own_contestants(replace(given, cache_tokens=config.cache_tokens or positions), modes, options["repeats"], stack)
    if not options["against"]:
        return [*own], []
    gguf = resolve(config.model, fetch=True).path
    check_gguf(config.model, gguf)
    return [*own], served_peers(check_names(options["against"]), Room(gguf, threads, parallel, positions), notes().print, stack)
