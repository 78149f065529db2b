"""Command-line options made from the fields of EngineConfig and SamplingParams: names, types and defaults are theirs.

Only the help lines live here. A field without a line is no option (the JSONL form of prompts takes it all the same).
"""

from __future__ import annotations

import logging
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, replace
from functools import partial
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from hasten.cli import machine
from hasten.cli.show_errors import Misuse
from hasten.cli.standard_input import typed_text
from hasten.core.config import (
    KV_CACHE_DTYPES,
    MOST_NODES,
    PRECISIONS,
    SPECULATION_MODES,
    VERIFY_RULES,
    EngineConfig,
    SpeculationParams,
    draft_specs,
)
from hasten.core.errors import ConfigError, InvalidRequest
from hasten.core.registry import parse_specs
from hasten.core.types import MAX_TOP_LOGPROBS, SamplingParams
from hasten.draft import DRAFTERS
from hasten.draft.specs import check_specs
from hasten.serve.limits import Limits

log = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])
Made = TypeVar("Made")

ENGINE_HELP = {
    "model": "A name of 'hasten ls', a folder, a .gguf file or a hub id.",
    "draft": "auto, none, or drafters such as suffix+lm or auto+trie.",
    "draft_model": "The model that guesses, where the catalogue names none.",
    "precision": f"One of {', '.join(PRECISIONS)}.",
    "kv_cache_dtype": f"Keys and values: {', '.join(KV_CACHE_DTYPES)}.",
    "device": "auto, cpu, cuda or cuda:N.",
    "threads": "CPU threads; 0 takes every physical core.",
    "context_length": "Positions of context; 0 takes the model's own.",
    "cache_tokens": "Size of the key-value pool in positions, rounded up to blocks of 64; 0 chooses.",
    "max_rows": "Most rows in one step of the model.",
    "max_sequences": "Most sequences that run at once.",
    "prefix_cache": "Reuse the keys and values of equal prompt beginnings.",
    "verify": f"How drafts are checked: {', '.join(VERIFY_RULES)}.",
    "control": "How much is drafted: auto, or fixed(k), goodput, threshold, entropy to compare.",
    "explain": "Say of each drafter why it was on or off.",
}

SAMPLING_HELP = {
    "max_tokens": "Most tokens of an answer.",
    "temperature": "0 takes the likeliest token; higher is freer.",
    "top_k": "Choose among the k likeliest tokens; 0 for all.",
    "top_p": "Choose among the likeliest tokens that hold this share; 0 for the likeliest.",
    "min_p": "Leave out tokens below this share of the likeliest one.",
    "repetition_penalty": "Above 1: tokens seen in prompt or answer get less likely.",
    "presence_penalty": "Taken from the logits of tokens the answer has.",
    "frequency_penalty": "The same, times how often the answer has them.",
    "stop": "End before this text; may be given several times.",
    "seed": "Makes a sampled answer repeatable.",
    "n": "Answers to each prompt.",
    "logprobs": f"Report log-probabilities of the chosen and the k likeliest tokens, k up to {MAX_TOP_LOGPROBS} (--json).",
    "ignore_eos": "Go on past the model's end of text.",
}

SPECULATION_HELP = {
    "speculation": f"Whether to draft for this: one of {', '.join(SPECULATION_MODES)}.",
    "draft_nodes": f"Most drafted tokens of a round, up to {MOST_NODES}.",
}

LIMIT_HELP = {
    "max_body_bytes": "Longest body of a request.",
    "max_json_depth": "Deepest nesting of a body.",
    "max_n": "Most answers to a prompt.",
    "max_logprobs": "Most likely tokens to report.",
    "max_stop": "Most stop strings.",
    "max_stop_length": "Longest stop string, in characters.",
    "max_logit_bias": "Most entries of logit_bias.",
    "max_prompt_tokens": "Longest prompt; 0 for the model's context.",
    "max_output_tokens": "Longest answer; 0 for the model's context.",
    "max_batch": "Most prompts of one completion request.",
    "max_embedding_inputs": "Most inputs of one request for embeddings.",
    "max_tools": "Most tools of one request.",
    "max_queue": "Most requests that wait or run, a model and tenant.",
    "max_connections": "Most connections at once.",
    "request_timeout": "Seconds from a request to its last token.",
    "body_timeout": "Seconds that a head or a body may take to arrive.",
    "keep_alive": "Seconds of silence before a stream gets a comment.",
    "stream_interval": "Least seconds between two pieces of a stream.",
    "drain_timeout": "Seconds that running requests get when the server stops.",
}

_SERVER_HELP = {name: text for name, text in ENGINE_HELP.items() if name not in ("model", "explain")}
SHORT_NAMES = {"model": "-m"}
KINDS: dict[Any, tuple[Any, str]] = {str: (click.STRING, "TEXT"), int: (click.INT, "N"), float: (click.FLOAT, "X")}


SAMPLING_SECTION, LIMIT_SECTION, ENGINE_SECTION = "How tokens are chosen", "What clients may ask for", "How the engine runs"
SECTIONS = (
    dict.fromkeys(SAMPLING_HELP, SAMPLING_SECTION)
    | dict.fromkeys(LIMIT_HELP, LIMIT_SECTION)
    | {name: ENGINE_SECTION for name in (*ENGINE_HELP, *SPECULATION_HELP) if name != "model"}
)


class WholeText(click.types.StringParamType):
    """A string that an environment variable gives as one value; click would split it at spaces."""

    name = "text"

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]


def text_option(help: str) -> Callable[[Function], Function]:
    """``--text FILE``, which may be given several times; ``help`` says what such a file is for."""
    whole = f"{help}; may be given several times."
    return click.option("--text", "texts", type=WholeText(), metavar="FILE", multiple=True, help=whole)


class Verb(click.Command):
    """A command whose help lists its own options first, then those of settings that verbs share, under their titles."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Options", *dict.fromkeys(SECTIONS.values()))}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            name = str(parameter.name)
            sections[SECTIONS.get(name, "Options")].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def engine_options(function: Function) -> Function:
    """Add an option for each field of EngineConfig."""
    return _add_options(function, EngineConfig, ENGINE_HELP, {})


def server_engine_options(function: Function) -> Function:
    """The same for a server: without ``model``, of which it may have several, and ``explain``, which each request chooses."""
    return _add_options(function, EngineConfig, _SERVER_HELP, {})


def limit_options(function: Function) -> Function:
    """Add an option for each field of Limits."""
    return _add_options(function, Limits, LIMIT_HELP, {})


def sampling_options(*, without: tuple[str, ...] = (), **defaults: Any) -> Callable[[Function], Function]:
    """Add an option for each field of SamplingParams that has a help line, but those that the verb has no use for; ``defaults``
    replace the fields' own."""
    helps = {name: text for name, text in SAMPLING_HELP.items() if name not in without}
    return lambda function: _add_options(function, SamplingParams, helps, defaults)


def speculation_options(function: Function) -> Function:
    """Add the options that make a SpeculationParams."""
    default = SpeculationParams()
    for name, type_, metavar, value in (
        ("draft_nodes", click.INT, "N", default.nodes),
        ("speculation", click.STRING, "TEXT", default.mode),
    ):
        long = "--" + name.replace("_", "-")
        option = click.option(
            long, name, type=type_, metavar=metavar, default=value, show_default=True, help=SPECULATION_HELP[name]
        )
        function = option(function)
    return function


def speculation_params(options: Mapping[str, Any]) -> SpeculationParams:
    """The SpeculationParams that a verb's options ask for. Raises InvalidRequest or Misuse when a value is out of range."""
    with blaming("speculation"):
        params = SpeculationParams(options["speculation"])
    with blaming("draft_nodes"):
        return replace(params, nodes=options["draft_nodes"])


def typed(name: str) -> bool:
    """Whether the verb that runs got this parameter on its command line, and not from a variable, a file or its default."""
    return _source(name) is ParameterSource.COMMANDLINE


def given(name: str) -> bool:
    """Whether the verb that runs got this parameter on its command line or by the variable that stands for it there."""
    return _source(name) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


def _source(name: str) -> ParameterSource | None:
    context = click.get_current_context(silent=True)
    return None if context is None else context.get_parameter_source(name)


@contextmanager
def blaming(*names: str) -> Iterator[None]:
    """For checks of these parameters alone: what they refuse is a misuse where one of them was given, and else the fault of a
    settings file."""
    try:
        yield
    except (ConfigError, InvalidRequest) as problem:
        if isinstance(problem, Misuse) or not any(map(given, names)):
            raise
        raise Misuse(str(problem)) from problem


def misuse(sentence: str, *names: str) -> ConfigError:
    """The error of parameters that do not go together, or of one whose value is wrong: whose fault it is, as for ``blaming``."""
    return Misuse(sentence) if any(map(given, names)) else ConfigError(sentence)


def _made(kind: Callable[..., Made], values: Mapping[str, Any]) -> Made:
    """``kind`` of the values. Where it refuses them it gets the given ones alone: what it refuses then is no file's fault."""
    try:
        return kind(**values)
    except (ConfigError, InvalidRequest):
        own = {name: value for name, value in values.items() if given(name)}
        with blaming(*own):
            kind(**own)
        raise


def without_past(config: EngineConfig) -> EngineConfig:
    """The same, but that no drafter knows what earlier runs said, or keeps what this one says: for measuring."""
    if config.draft == "auto":
        return config
    specs = [replace(spec, arguments={"path": None} | spec.arguments) if spec.name == "memory" else spec
             for spec in parse_specs(config.draft)]  # fmt: skip
    return replace(config, draft="+".join(map(str, specs)))


def engine_config(options: Mapping[str, Any], others_draft: bool = False) -> EngineConfig:
    """The EngineConfig that a verb's options ask for. Raises ConfigError when a value is out of range, or a draft model is named
    on a command line whose drafters take none, unless ``others_draft``: somebody else takes it."""
    return _checked(_made(EngineConfig, {name: options[name] for name in ENGINE_HELP}), others_draft)


def server_engine_config(options: Mapping[str, Any], model: str) -> EngineConfig:
    """The EngineConfig of ``server_engine_options`` for one model. Raises ConfigError as ``engine_config`` does."""
    return _checked(_made(partial(EngineConfig, model=model, explain=True), {name: options[name] for name in _SERVER_HELP}))


def _checked(config: EngineConfig, others_draft: bool = False) -> EngineConfig:
    with blaming("draft"):
        specs = draft_specs(config.draft)
        check_specs([spec for spec in specs if spec.name not in DRAFTERS.rows])  # to look into ours takes torch: left to who loads
    taken = others_draft or config.draft_model in [spec.arguments["model"] for spec in config.model_drafters()]
    if typed("draft_model") and not taken:
        raise Misuse(f"--draft {config.draft} makes no use of --draft-model; leave one of the two out.")
    warn_of_threads(config)
    return config


def warn_of_threads(config: EngineConfig) -> None:
    """Say so where more threads are asked for than can run at once."""
    usable = machine.usable_threads()
    if config.threads > usable:
        log.warning("%d threads are more than the %d that this process may use: they will wait.", config.threads, usable)


def limits_of(options: Mapping[str, Any]) -> Limits:
    """The Limits of a verb's options. Raises ConfigError when a value is out of range."""
    return _made(Limits, {name: options[name] for name in LIMIT_HELP})


def sampling_params(options: Mapping[str, Any]) -> SamplingParams:
    """The SamplingParams that a verb's options ask for. Raises InvalidRequest or Misuse when a value is out of range."""
    with blaming("stop"):
        stop = tuple(typed_text(text, "--stop") for text in options["stop"])
    return _made(SamplingParams, {name: options[name] for name in SAMPLING_HELP if name in options} | {"stop": stop})


def _add_options(function: Function, settings: type, helps: dict[str, str], defaults: Mapping[str, Any]) -> Function:
    hints = typing.get_type_hints(settings)
    by_name = {field.name: field for field in fields(settings)}
    for name in reversed(helps):
        function = _option(by_name[name], hints[name], helps[name], defaults)(function)
    return function


def _option(field: Field[Any], hint: Any, text: str, defaults: Mapping[str, Any]) -> Callable[[Function], Function]:
    """One option. A bool becomes an on/off pair, a tuple an option that may be repeated."""
    default = defaults.get(field.name, field.default)
    if default is MISSING:
        raise TypeError(f"field {field.name} needs a default to become an option")
    long = "--" + field.name.replace("_", "-")
    kind = _plain(hint)
    if kind is bool:
        return click.option(f"{long}/--no-{long[2:]}", default=default, show_default=True, help=text)
    names = [SHORT_NAMES[field.name]] if field.name in SHORT_NAMES else []
    if typing.get_origin(kind) is tuple:
        return click.option(*names, long, field.name, type=WholeText(), multiple=True, default=default, help=text)
    type_, metavar = KINDS[kind]
    return click.option(*names, long, field.name, type=type_, metavar=metavar, default=default, show_default=True, help=text)


def _plain(hint: Any) -> Any:
    """The type itself of ``T`` or ``T | None``."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint
