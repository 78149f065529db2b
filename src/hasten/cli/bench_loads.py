"""What ``hasten bench`` asks, and what makes two runs of it one comparison."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.cli.bench_options import numbers
from hasten.cli.options import blaming
from hasten.cli.prompts import Prompt, for_batch
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.core.types import SamplingParams

if TYPE_CHECKING:
    from hasten import LLM
    from hasten.bench.workloads import Load

ASKED = (
    "max_tokens",
    "ignore_eos",
    "repeats",
    "seed",
    "ablation",
    "never_slower",
    "server",
    "perplexity_chunks",
)  # options, as they are given


def workloads_asked(options: dict[str, Any]) -> tuple[str, ...]:
    """Those that are named, else the usual ones; none beside --prompts where nobody names one."""
    from hasten.bench.workloads import usual_workloads

    never_slower = options["never_slower"]
    own = options["prompts"] is not None and not never_slower
    return options["workloads"] or (() if own else usual_workloads(never_slower))


def check_data(options: dict[str, Any]) -> None:
    """Raise ConfigError where a workload is not known, or a file that will be read is missing."""
    from hasten.bench.workloads import FILES, OWN_QUESTIONS, TEXT_FILE, check_workload, data_file

    for name in workloads_asked(options):
        with blaming("workloads"):
            check_workload(name)
        if name in FILES:
            data_file(FILES[name], OWN_QUESTIONS)
    if options["perplexity_chunks"] and (options["also"] or (options["against"] and not options["server"])):
        data_file(TEXT_FILE, "leave perplexities out by --perplexity-chunks 0")


def all_loads(llm: LLM, items: list[Prompt] | None, options: dict[str, Any]) -> list[Load]:
    """Every workload in every batch size at every temperature, under names that tell them apart. Raises ConfigError where two that
    are not the same have one name, InvalidRequest with the line of a prompt that the model cannot be given."""
    from hasten.bench.workloads import from_prompts, loads

    vocabulary, per_group = llm.engine.vocabulary, options["per_group"]
    workloads = workloads_asked(options)
    out: dict[str, Load] = {}
    whole = options["ignore_eos"] or bool(options["against"]) or options["server"]  # other texts end elsewhere
    for temperature in numbers(options["temperatures"], float, 0.0, 100.0, "temperatures"):
        params = SamplingParams(temperature=temperature, seed=options["seed"], max_tokens=options["max_tokens"], ignore_eos=whole)
        for batch in numbers(options["batches"], int, 1, 1024, "batches"):
            found = [load for name in workloads for load in loads(llm, name, params, per_group, batch, vocabulary)]
            if items is not None:
                prompts = for_batch([replace(item, params=params) for item in items[:per_group]], llm, False)
                found += from_prompts(llm, Path(options["prompts"]).stem, prompts, params, batch)
            for load in map(_with_temperature, found):
                if out.setdefault(load.name, load) != load:
                    raise ConfigError(f"Two loads would be called '{load.name}'; give the file of --prompts another name.")
    return list(out.values())


def _with_temperature(load: Load) -> Load:
    """Named after its temperature too, where it has one."""
    temperature = load.params.temperature
    return replace(load, name=f"{load.name}, T={temperature:g}") if temperature else load


def settings(
    llm: LLM, config: EngineConfig, modes: list[str], peers: list[str], loads: list[Load], options: dict[str, Any]
) -> dict[str, Any]:
    """What must be the same for two runs to be one comparison."""
    from hasten.bench.machine import step_bytes
    from hasten.model.catalogue import resolve
    from hasten.model.kernels import threads_and_level
    from hasten.model.loaders import open_source

    decoder = llm.engine.executor.decoder
    engine = asdict(replace(config, threads=threads_and_level()[0]))
    return {
        "model": llm.name,
        "weights": open_source(resolve(config.model).path).fingerprint,
        "precision": llm.precision,
        "drafters": [f"{drafter.name} {drafter.identity}".strip() for drafter in llm.engine.drafting.drafters],
        "modes": modes,
        "other_engines": peers,
        "loads": [
            {"name": load.name, "questions": len(load.questions), "batch": load.batch, "content": _digest(load)} for load in loads
        ],
        **{name: options[name] for name in ASKED},
        "engine": {name: value for name, value in engine.items() if name not in ("model", "explain")},
        "step_bytes": step_bytes(decoder.weights, decoder.precision.weights.itemsize),
    }


def _digest(load: Load) -> str:
    """Changes with any token of the questions and with any parameter of the answers."""
    content = [asdict(load.params), load.batch, [(question.name, question.tokens) for question in load.questions]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
