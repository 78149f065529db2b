"""From a configuration to a running engine: find the models, load them, size the pools, measure the machine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hasten.cache.blocks import BlockManager
from hasten.cache.pool import bytes_per_block
from hasten.core.config import MODEL_DRAFTERS, EngineConfig, draft_specs
from hasten.core.errors import ConfigError, HastenError, VocabularyMismatch
from hasten.core.progress import Progress, silent
from hasten.core.registry import Spec
from hasten.core.types import BLOCK_SIZE
from hasten.draft.base import Drafter
from hasten.draft.foreign import ForeignDrafter
from hasten.draft.kept import arguments_of, free_drafters
from hasten.draft.lm import LanguageModelDrafter
from hasten.draft.recycling import RecyclingDrafter
from hasten.draft.specs import check_specs
from hasten.draft.speculator import SpeculatorDrafter
from hasten.draft.trim import trim_head
from hasten.draft.vocabularies import overlap
from hasten.engine.engine import Engine
from hasten.engine.plugins import made
from hasten.engine.profiling import make_drafting
from hasten.engine.scheduler import Scheduler
from hasten.engine.seeding import successors
from hasten.model import catalogue, speculator, storage
from hasten.model.attention import choose_cache
from hasten.model.executor import Executor
from hasten.model.head import HeadRows, TrimmedHead, head_rows, rows_for_guesses
from hasten.model.kept_weights import draft_precision, kept_weights
from hasten.model.kernels import missing_kernels, set_threads
from hasten.model.linear_file import choose_precision, file_runs_best
from hasten.model.loaders import WeightSource, open_source
from hasten.model.sketch import sketch_of
from hasten.model.speculator import Speculator
from hasten.model.tokenizer import Tokenizer, load_tokenizer
from hasten.model.weights import load_decoder

log = logging.getLogger(__name__)
DEFAULT_CACHE_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on the device: executor over a pool of ``num_blocks``, tokenizer, and its usable context."""

    name: str
    executor: Executor
    tokenizer: Tokenizer
    context_length: int
    num_blocks: int
    fingerprint: str
    head: TrimmedHead | None  # of a draft model that computes part of the vocabulary
    head_rows: Callable[[], HeadRows | None]  # of its whole head


def load_engine(config: EngineConfig, progress: Progress = silent, redo_profile: bool = False) -> Engine:
    """Everything up to the first request. ``redo_profile`` measures the machine even where that is known.

    Raises a HastenError, one sentence, when anything about it cannot be.
    """
    started = time.perf_counter()
    device = choose_device(config.device)
    if device.type == "cpu" and (reason := missing_kernels()):
        log.warning("No native kernels (%s): every model is many times slower; see 'hasten doctor'.", reason)
    specs = draft_specs(config.draft)
    check_specs(specs)  # what is wrong is said before anything is loaded
    resolved = catalogue.resolve(config.model, fetch=True, progress=progress)
    _check_draft_models(specs, config, resolved)
    target = load_model(resolved.name, resolved.path, config, device, progress)
    vocabulary = target.tokenizer.vocabulary_size
    drafters = _drafters(specs, config, resolved.draft, target, device, progress)
    drafters.sort(key=lambda drafter: drafter.paid)  # who costs nothing is asked first, and learns first
    _share_rows(drafters)
    blocks = BlockManager(target.num_blocks, prefix_cache=config.prefix_cache)
    model_context = target.executor.decoder.description.context_length
    scheduler = Scheduler(blocks, target.context_length, config.max_rows, config.max_sequences, model_context)
    set_threads(config.threads, target.executor.decoder.precision)
    _seed(drafters, target, progress)
    drafting, profiles = make_drafting(
        config, target.executor, target.fingerprint, target.tokenizer, drafters, vocabulary, redo_profile
    )
    engine = Engine(
        executor=target.executor,
        scheduler=scheduler,
        drafting=drafting,
        controller=drafting.controller,
        tokenizer=target.tokenizer,
        eos=frozenset(target.tokenizer.eos_token_ids),
        vocabulary=vocabulary,
        max_rows=config.max_rows,
        model=target.name,
        explain=config.explain,
        profiles=profiles,
    )
    engine.load_seconds = time.perf_counter() - started
    return engine


def load_model(
    name: str,
    path: Path,
    config: EngineConfig,
    device: torch.device,
    progress: Progress,
    *,
    draft: bool = False,
    trim: bool = False,
    tokenizer: Tokenizer | None = None,
    source: WeightSource | None = None,
) -> LoadedModel:
    """Read weights and, unless they are given, their header (``source``) and the tokenizer, and allocate the pool. A ``draft``
    model may have less context than is asked for; ``trim`` gives it the head that it should have."""
    source = source or open_source(path)
    tokenizer = tokenizer or load_tokenizer(path)
    precision = choose_precision(config.precision, device, file_runs_best(source))
    shape = source.description
    if tokenizer.vocabulary_size > shape.vocabulary_size:
        raise VocabularyMismatch(
            f"The tokenizer of '{name}' has {tokenizer.vocabulary_size} ids but its model only {shape.vocabulary_size}; "
            "the files do not belong together."
        )
    if config.context_length > shape.context_length and not draft:
        raise ConfigError(f"context_length {config.context_length} is more than the {shape.context_length} that '{name}' has.")
    cache = choose_cache(config.kv_cache_dtype, precision, shape, device)
    context = min(config.context_length or shape.context_length, shape.context_length)
    tokens = config.cache_tokens or min(context, DEFAULT_CACHE_TOKENS)
    num_blocks = -(-tokens // BLOCK_SIZE)
    _check_memory(bytes_per_block(shape.layers, shape.kv_heads, shape.head_dim, cache) * num_blocks, tokens)
    converted = kept_weights(source, precision, name)
    decoder = load_decoder(source, precision, device, converted, progress)
    if converted is not None and converted.exists():
        with suppress(OSError):
            storage.record_conversion(converted, source.path)
    head = trim_head(source, decoder, converted, tokenizer) if trim else None
    if head is not None:
        decoder = decoder.with_head(head)
    if not draft:
        decoder = decoder.with_sketch(sketch_of(decoder.weights.head, tokenizer.vocabulary_size))
    executor = Executor(decoder, num_blocks, device, cache)
    rows = partial(head_rows, source, executor.decoder, converted)
    return LoadedModel(name, executor, tokenizer, context, num_blocks, source.fingerprint, head, rows)


def choose_device(name: str) -> torch.device:
    """Raises ConfigError when CUDA is asked for and absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {name} was asked for, but this PyTorch sees no CUDA device; use --device cpu.")
    try:
        return torch.device(name)
    except RuntimeError as problem:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, not '{name}'.") from problem


def _check_memory(pool_bytes: int, tokens: int) -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 62
    if pool_bytes > physical * 0.9:
        raise ConfigError(
            f"cache_tokens {tokens} would take {pool_bytes / 1e9:.1f} GB and this machine has {physical / 1e9:.1f} GB; "
            "ask for fewer."
        )


def _drafters(
    specs: list[Spec], config: EngineConfig, natural: str | None, target: LoadedModel, device: torch.device, progress: Progress
) -> list[Drafter]:
    """Those of the specs, in their order. What "auto" stands for comes first; who of them is named too follows his spec. Beside a
    speculator a draft model that only the catalogue names is left out: its levels are dear, and it has to read every text."""
    make = partial(_make_drafter, config=config, natural=natural, target=target, device=device, progress=progress)
    named = [spec for spec in specs if spec.name not in ("auto", "none")]
    if all(spec.name != "auto" for spec in specs):
        return [make(spec) for spec in named]
    asked = {spec.name: spec for spec in named}
    names = free_drafters(target.name, target.tokenizer.vocabulary_fingerprint)
    free = [make(asked.pop(name, Spec(name))) for name in names]
    trained = [] if "speculator" in asked else _auto_speculator(target)
    natural = None if trained or "speculator" in asked else natural
    draft = [] if "lm" in asked else _auto_draft_model(config, natural, target, device, progress)
    return [*free, *trained, *draft, *map(make, asked.values())]


def _auto_speculator(target: LoadedModel) -> list[Drafter]:
    """The speculator that was trained for the target, where there is one."""
    drafter = _speculator(Spec("speculator"), target)
    return [] if drafter is None else [drafter]


def _speculator(spec: Spec, target: LoadedModel) -> SpeculatorDrafter | None:
    """None where none was trained for the target."""
    decoder = target.executor.decoder
    path, vocabulary = storage.speculator_path(target.fingerprint), target.tokenizer.vocabulary_size
    weights = speculator.load(path, target.fingerprint, decoder.description.hidden_size, vocabulary)
    rows = None if weights is None else target.head_rows()
    if weights is None or rows is None:
        return None
    head = TrimmedHead(rows, weights.ids, rows_for_guesses(rows))
    network = Speculator(weights, decoder.weights.embedding, head, decoder.precision, target.executor.device)
    drafter = SpeculatorDrafter(network, head, vocabulary, target.context_length, **spec.arguments)
    drafter.identity = f"{target.fingerprint[:16]}-speculator-{weights.identity}-4"
    return drafter


def _auto_draft_model(
    config: EngineConfig, natural: str | None, target: LoadedModel, device: torch.device, progress: Progress
) -> list[Drafter]:
    """A draft model where one is named, by the user or by the catalogue."""
    drafters: list[Drafter] = []
    if config.draft_model is not None:
        drafters.append(_model_drafter(Spec("lm", {"model": config.draft_model}), config, target, device, progress))
    elif natural is not None:
        try:
            drafters.append(_model_drafter(Spec("lm", {"model": natural}), config, target, device, progress))
        except HastenError as problem:
            log.warning("The draft model '%s' is left out: %s", natural, problem)
    return drafters


def _share_rows(drafters: list[Drafter]) -> None:
    """What a recycling drafter keeps of the target's choices tells a draft model beside it, too, what comes next."""
    rows = next((drafter.rows for drafter in drafters if isinstance(drafter, RecyclingDrafter)), None)
    for drafter in drafters:
        if rows is not None and isinstance(drafter, LanguageModelDrafter):
            drafter.share_rows(rows)


def _seed(drafters: list[Drafter], target: LoadedModel, progress: Progress) -> None:
    """Ask the target what follows single tokens, for drafters that want to know; in a line of its own, where words begin."""
    lead = target.tokenizer.encode("\n", add_bos=True)
    for drafter in drafters:
        if isinstance(drafter, RecyclingDrafter) and drafter.seeds and lead:
            tokens = range(min(drafter.seeds, target.tokenizer.vocabulary_size))
            drafter.seed(successors(target.executor, target.tokenizer.vocabulary_size, lead, tokens, progress))


def _check_draft_models(specs: list[Spec], config: EngineConfig, target: catalogue.ResolvedModel) -> None:
    """Raises ConfigError where a drafter needs a model of its own, and neither user nor catalogue names one."""
    for spec in specs:
        if spec.name in MODEL_DRAFTERS and config.model_of(spec, target.draft) is None:
            raise ConfigError(
                f"The {spec.name} drafter needs a draft model and none is known for '{target.name}'; "
                f"name one by --draft-model, or as {spec.name}(model=NAME)."
            )


def _make_drafter(
    spec: Spec, config: EngineConfig, natural: str | None, target: LoadedModel, device: torch.device, progress: Progress
) -> Drafter:
    if spec.name in MODEL_DRAFTERS:
        model = config.model_of(spec, natural)
        assert model is not None, "draft models are checked before"
        return _model_drafter(Spec(spec.name, {**spec.arguments, "model": model}), config, target, device, progress)
    try:
        if spec.name == "speculator":
            trained = _speculator(spec, target)
            if trained is None:
                raise ConfigError(f"No speculator was trained for '{target.name}'; run 'hasten draft train -m {target.name}' once.")
            return trained
        kept = arguments_of(spec.name, target.name, target.tokenizer.vocabulary_fingerprint)
        return made(spec.name, {**kept, **spec.arguments})
    except TypeError as problem:
        raise ConfigError(f"The {spec.name} drafter does not take these arguments ({problem}).") from problem


def _model_drafter(
    spec: Spec, config: EngineConfig, target: LoadedModel, device: torch.device, progress: Progress
) -> LanguageModelDrafter:
    """The drafter of the model that ``spec`` names: "lm" where the two vocabularies are one, "foreign" where they are not."""

    def of_draft(label: str, done: int, total: int) -> None:
        progress(f"draft model, {label}", done, total)

    resolved = catalogue.resolve(str(spec.arguments["model"]), fetch=True, progress=of_draft)
    arguments = {name: value for name, value in spec.arguments.items() if name not in ("model", "trim", "precision")}
    source = open_source(resolved.path)
    own = draft_precision(config.precision, device, source)
    config = replace(config, precision=str(spec.arguments.get("precision", own)))
    tokenizer = load_tokenizer(resolved.path)
    try:
        if spec.name == "lm" and tokenizer.vocabulary_fingerprint == target.tokenizer.vocabulary_fingerprint:
            if "match" in arguments:
                raise ConfigError(f"match is for draft models of another vocabulary than that of '{target.name}'; leave it out.")
            trim = bool(spec.arguments.get("trim", True))
            return _lm_drafter(resolved, source, tokenizer, arguments, trim, config, target, device, of_draft)
        return _foreign_drafter(resolved, source, tokenizer, arguments, config, target, device, of_draft)
    except TypeError as problem:
        raise ConfigError(f"The {spec.name} drafter does not take these arguments ({problem}).") from problem


def _lm_drafter(
    resolved: catalogue.ResolvedModel,
    source: WeightSource,
    tokenizer: Tokenizer,
    arguments: dict[str, Any],
    trim: bool,
    config: EngineConfig,
    target: LoadedModel,
    device: torch.device,
    progress: Progress,
) -> LanguageModelDrafter:
    draft = load_model(
        resolved.name, resolved.path, config, device, progress, draft=True, trim=trim, tokenizer=tokenizer, source=source
    )
    blocks = BlockManager(draft.num_blocks, prefix_cache=config.prefix_cache)
    vocabulary, context = target.tokenizer.vocabulary_size, draft.context_length
    executor = draft.executor
    drafter = LanguageModelDrafter(
        executor.forward, blocks, vocabulary, context, head=draft.head, commit=executor.commit, **arguments
    )  # fmt: skip
    drafter.identity = f"{draft.fingerprint}-{draft.executor.precision}" + (f"-{draft.head.outputs}" if draft.head else "")
    return drafter


def _foreign_drafter(
    resolved: catalogue.ResolvedModel,
    source: WeightSource,
    tokenizer: Tokenizer,
    arguments: dict[str, Any],
    config: EngineConfig,
    target: LoadedModel,
    device: torch.device,
    progress: Progress,
) -> ForeignDrafter:
    """Raises VocabularyMismatch, before weights are read, when the two vocabularies have too little in common."""
    shared = overlap(target.tokenizer, tokenizer)
    shared.check(resolved.name, target.name)
    log.info(
        "'%s' drafts for '%s' in another vocabulary: %d of its %d tokens are common.",
        resolved.name, target.name, len(shared.own), tokenizer.vocabulary_size,
    )  # fmt: skip
    draft = load_model(resolved.name, resolved.path, config, device, progress, draft=True, tokenizer=tokenizer, source=source)
    blocks = BlockManager(draft.num_blocks, prefix_cache=config.prefix_cache)
    drafter = ForeignDrafter(
        draft.executor.forward, blocks, target.tokenizer, tokenizer, shared, draft.context_length, **arguments
    )  # fmt: skip
    drafter.identity = f"{draft.fingerprint}-{draft.executor.precision}"
    return drafter
