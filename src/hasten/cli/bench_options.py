"""What the options of ``hasten bench`` ask for: which of them go together, which drafters are loaded, which modes are compared."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hasten.cli.options import blaming, misuse
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.core.types import SamplingParams


def check(options: dict[str, Any]) -> None:
    """Raise ConfigError for what does not go together, before a model is loaded."""
    for name, low in (("max_tokens", 2), ("repeats", 1), ("per_group", 1), ("seed", 0), ("perplexity_chunks", 0)):
        value = options[name]
        if value is not None and value < low:
            raise misuse(f"--{name.replace('_', '-')} must be at least {low}, not {value}.", name)
    with blaming("max_tokens", "seed"):
        SamplingParams(max_tokens=options["max_tokens"], seed=options["seed"])
    if options["seconds"] is not None and not options["seconds"] > 0:
        raise misuse(f"--seconds must be more than 0, not {options['seconds']:g}; leave it out to measure to the end.", "seconds")
    _check_combination(options)
    if options["also"] is not None:
        with blaming("also"):
            for name in options["also"].split(","):
                EngineConfig(precision=name.strip())
    if options["draft"] == "none":
        raise misuse("A comparison needs drafters; for plain decoding alone give --compare plain.", "draft")
    if options["against"]:
        from hasten.bench.peers import check_names

        with blaming("against"):
            check_names(options["against"])
    numbers(options["batches"], int, 1, 1024, "batches")
    numbers(options["temperatures"], float, 0.0, 100.0, "temperatures")


def _check_combination(options: dict[str, Any]) -> None:
    kinds = ("ablation", "never_slower")
    if options["ablation"] and options["never_slower"]:
        raise misuse("Give --ablation or --never-slower, not both; each is a comparison of its own.", *kinds)
    if (options["ablation"] or options["never_slower"]) and options["modes"]:
        raise misuse("--ablation and --never-slower choose the modes; leave --compare out.", "modes", *kinds)
    if options["server"] and (options["ablation"] or options["never_slower"]):
        raise misuse("--server compares plain, auto and other engines; leave --ablation and --never-slower out.", "server", *kinds)
    if options["also"] and (options["server"] or options["ablation"] or options["never_slower"]):
        sentence = "--also stands beside --compare and --against; leave --server, --ablation and --never-slower out."
        raise misuse(sentence, "also", "server", *kinds)


def numbers(text: str, kind: type, low: float, high: float, name: str) -> list[Any]:
    """A list such as "1,8", of the parameter ``name``. Raises ConfigError."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError as problem:
        raise misuse(f"--{name} must be numbers with commas between them, not '{text}'.", name) from problem
    if not all(low <= value <= high for value in values):
        raise misuse(f"--{name} must lie between {low:.15g} and {high:.15g}, not '{text}'.", name)
    return values


def with_named_drafters(config: EngineConfig, modes: str | None) -> EngineConfig:
    """Where drafters are chosen automatically, those that modes name are loaded too; the mode "auto" stays without them. A draft
    model of another vocabulary is part of what "auto" loads and is not loaded twice."""
    from hasten.draft import DRAFTERS

    named = [name for mode in (modes or "").split(",") for name in mode.strip().partition("@")[0].split("+")]
    left_out = ("none", "foreign") if config.draft_model is not None else ("none",)
    known = [name for name in dict.fromkeys(named) if name in DRAFTERS.names() and name not in left_out]
    return replace(config, draft="+".join(["auto", *known])) if config.draft == "auto" and known else config


def automatic(config: EngineConfig, loaded: list[str], free: Sequence[str]) -> tuple[str, ...] | None:
    """Whom the mode "auto" asks where others are loaded beside them (of ``free``, and the speculator or the draft model), None
    where nobody is."""
    beside = config.draft.startswith("auto+")
    paid = "speculator" if "speculator" in loaded else "lm"
    return tuple(name for name in loaded if name in (*free, paid)) if beside else None


def check_folder(folder: Path) -> None:
    """Make the folder of the results. Raises ConfigError where it cannot be written or is used for other things, before a model is
    loaded."""
    try:
        if folder.is_dir() and not (folder / "results.jsonl").exists() and any(folder.iterdir()):
            raise ConfigError(f"--out '{folder}' holds other files and no results of a comparison; give a new or an empty folder.")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise ConfigError(f"--out '{folder}' cannot be written ({problem.strerror}); give another folder.") from problem


def check_gguf(model: str, *files: Path) -> None:
    """Raise ConfigError where a file of the model, or of its draft model, is none that other engines read."""
    if any(file.suffix != ".gguf" for file in files):
        raise ConfigError(f"Other engines are given the GGUF file of a model, and '{model}' is none; name one that is.")


def in_precisions(config: EngineConfig, also: str | None) -> list[EngineConfig]:
    """The model as it is asked for, and in each of the other precisions. Raises ConfigError where one is none, or named twice."""
    others = [] if also is None else [replace(config, precision=name.strip()) for name in also.split(",")]
    known: list[str] = []
    for each in [config, *others] if others else []:
        precision = precision_of(each)
        if precision in known:
            same = f"'{each.precision}', which is {precision} here," if each.precision != precision else f"'{precision}'"
            where = f"and --precision {config.precision} is the same" if precision == known[0] else "twice"
            raise misuse(f"--also names {same} {where}; name every precision once.", "also")
        known.append(precision)
    return [config, *others]


def precision_of(config: EngineConfig) -> str:
    """The precision that a model runs in: the one that is asked for, unchecked, or what "auto" gives it, for which the headers of
    its file are read."""
    if config.precision != "auto":
        return config.precision
    from hasten.engine.loading import choose_device
    from hasten.model.catalogue import resolve
    from hasten.model.linear_file import choose_precision, file_runs_best
    from hasten.model.loaders import open_source

    source = open_source(resolve(config.model, fetch=True).path)
    return choose_precision(config.precision, choose_device(config.device), file_runs_best(source)).name


def mode_names(options: dict[str, Any], loaded: list[str]) -> list[str]:
    """Names of the modes that are asked for; plain decoding is always among them, first. --control is the rule of those that
    draft and name none; a server applies it by itself."""
    from hasten.bench.contestants import ablation_modes, each_mode

    if options["ablation"]:
        names = ablation_modes(loaded)
    elif options["never_slower"]:
        names = ["plain", "off", "auto"]
    else:
        asked = (options["modes"] or "plain,auto").split(",")
        names = [name.strip() for part in asked for name in (each_mode(loaded) if part.strip() == "each" else [part])]
    if options["control"] != "auto" and not options["server"]:
        names = [name if name in ("plain", "off") or "@" in name else f"{name}@{options['control']}" for name in names]
    return list(dict.fromkeys(["plain", *names]))
