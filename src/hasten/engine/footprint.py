"""How much memory a model will take, before it is loaded: from its shape, the precision and the size of its pool."""

from __future__ import annotations

from dataclasses import replace

from hasten.cache.pool import bytes_per_block
from hasten.core.config import EngineConfig
from hasten.core.errors import HastenError
from hasten.core.registry import parse_specs
from hasten.core.types import BLOCK_SIZE
from hasten.engine.loading import DEFAULT_CACHE_TOKENS, choose_device
from hasten.model import catalogue, storage
from hasten.model.attention import choose_cache
from hasten.model.description import ModelDescription
from hasten.model.kept_weights import draft_precision
from hasten.model.linear_file import BlockSource, choose_precision, file_runs_best
from hasten.model.loaders import WeightSource, open_source
from hasten.model.precision import Precision
from hasten.model.sketch import sketch_bytes, sketches_here
from hasten.model.speculator import IDS


def footprint(config: EngineConfig) -> int:
    """Bytes of the weights and the pool of a model and of every model that drafts for it, each in its own precision. Fetches what
    is not here.

    Leaves out what does not grow with the model: PyTorch itself, and the rows of one step; and a draft model that only the
    catalogue names and that cannot be had, without which loading goes on. Raises a HastenError.
    """
    resolved = catalogue.resolve(config.model, fetch=True)
    target = open_source(resolved.path)
    total = _one(target, config, sketched=True)
    names = [spec.name for spec in parse_specs(config.draft)]
    speculator = _speculator(target) if {"auto", "speculator"} & {*names} else 0
    total += speculator
    natural = resolved.draft if not speculator else None
    for spec in config.model_drafters(natural):
        model = spec.arguments["model"]
        try:
            source = open_source(catalogue.resolve(model, fetch=True).path)
            own = draft_precision(config.precision, choose_device(config.device), source)
            chosen = str(spec.arguments.get("precision", own))
            total += _one(source, replace(config, precision=chosen), sketched=False)
        except HastenError:
            if config.draft_model is not None or model != resolved.draft:
                raise
    return total


def _one(source: WeightSource, config: EngineConfig, sketched: bool) -> int:
    shape = source.description
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device, file_runs_best(source))
    cache = choose_cache(config.kv_cache_dtype, precision, shape, device)
    context = min(config.context_length or shape.context_length, shape.context_length)
    blocks = -(-(config.cache_tokens or min(context, DEFAULT_CACHE_TOKENS)) // BLOCK_SIZE)
    pool = bytes_per_block(shape.layers, shape.kv_heads, shape.head_dim, cache) * blocks
    weights = source.path.stat().st_size if precision.name == "file" else weight_bytes(shape, precision)
    return weights + pool + (_sketch(source, precision) if sketched and precision.quantised and sketches_here() else 0)


def _speculator(source: WeightSource) -> int:
    """Bytes of the model's speculator with its head, as they lie in its file and at most so; 0 where there is none."""
    kept = storage.speculator_path(source.fingerprint)
    return kept.stat().st_size + IDS * source.description.hidden_size if kept.exists() else 0


def _sketch(source: WeightSource, precision: Precision) -> int:
    """Bytes of the sketch of the target's head."""
    name = "head" if "head" in source.names() else "embedding"
    outputs, inputs = source.shape(name)
    own = outputs * inputs
    if precision.name == "file" and isinstance(source, BlockSource):
        own = outputs * source.read_blocks(name, 0, 1).numel()
    return sketch_bytes(outputs, inputs, own)


def weight_bytes(shape: ModelDescription, precision: Precision) -> int:
    """Bytes of projections, head and embedding; norms and scales are too small to count."""
    layer = shape.hidden_size * (2 * shape.query_size + 2 * shape.kv_size + 3 * shape.intermediate_size)
    projections = shape.layers * layer + shape.vocabulary_size * shape.hidden_size
    bits = 4 if precision.name == "q4_0" else precision.bits if precision.quantised else 8 * precision.weights.itemsize
    return projections * bits // 8 + shape.vocabulary_size * shape.hidden_size * precision.embedding.itemsize
