"""From the metadata of a GGUF file to a description.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What the file does not say (Gemma's layer pattern and local
rotary base, which norms there are) follows from the architecture, as in llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from hasten.model.description import GEMMAS, Family, ModelDescription, RopeScaling
from hasten.model.loaders.fields import MAXIMUM_LAYERS, Fields
from hasten.model.loaders.gguf_file import GGUFFile

__all__ = ["describe_gguf"]

ARCHITECTURES: dict[str, Family] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "smollm3": "smollm3",
}
UNROTATED_EVERY = 4  # of SmolLM3's layers the last of so many; files do not say it
# keys that change the mathematics in ways the decoder has no place for, and the value that leaves it as it is
NEUTRAL: dict[str, Any] = {
    "expert_count": 0,
    "attention.causal": True,
    "attention.scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.temperature_scale": 0.0,
    "attention.temperature_length": 0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "embedding_scale": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}
GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}


def describe_gguf(file: GGUFFile) -> ModelDescription:
    """Raises UnsupportedModel for another architecture or a feature without a place, CorruptModel for senseless values."""
    top = Fields(file.path, file.metadata)
    if top.has("split.count") and top.get("split.count") not in (0, 1):
        top.unsupported("it is one part of several; join them with llama.cpp's llama-gguf-split --merge")
    architecture = top.text("general.architecture")
    if architecture not in ARCHITECTURES:
        allowed = ", ".join(ARCHITECTURES)
        top.unsupported(f"the architecture {architecture!r:.60} is not one that Hasten reads ({allowed})")
    fields = Fields(file.path, file.metadata, f"{architecture}.")
    for key, neutral in NEUTRAL.items():
        if fields.has(key) and fields.get(key) != neutral:
            fields.unsupported(f"{architecture}.{key} is {fields.get(key)!r:.60}, which Hasten's decoder does not do")
    tensors = file.tensors.keys()
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        top.corrupt("there is no matrix 'token_embd.weight'")
    tokens = top.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > embedding.shape[0]:
        top.corrupt(f"the tokenizer has {len(tokens)} tokens, the embedding {embedding.shape[0]}")
    heads, head_dim = _heads(fields)
    common = ModelDescription(
        family=ARCHITECTURES[architecture],
        vocabulary_size=embedding.shape[0],
        hidden_size=fields.length("embedding_length"),
        intermediate_size=fields.length("feed_forward_length"),
        layers=fields.integer("block_count", 1, MAXIMUM_LAYERS),
        heads=heads,
        kv_heads=_kv_heads(fields, heads),
        head_dim=head_dim,
        context_length=fields.length("context_length"),
        norm_eps=fields.positive("attention.layer_norm_rms_epsilon"),
        rope_theta=fields.positive("rope.freq_base", 10000.0),
        rope_scaling=_rope_scaling(fields),
        qkv_bias=architecture == "qwen2" or "blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_gate.bias" in tensors,
        qk_norm=architecture in ("qwen3", "gemma3"),
        tied_head="output.weight" not in tensors,
    )
    common = replace(common, context_length=_stretched_context(common))
    if common.family in GEMMAS:
        return _gemma(fields, common)
    if architecture == "smollm3":
        if common.qkv_bias:
            fields.unsupported("biases beside layers without positions are not what Hasten's decoder does")
        return replace(common, unrotated=tuple((layer + 1) % UNROTATED_EVERY == 0 for layer in range(common.layers)))
    window = fields.integer("attention.sliding_window", 0, 1 << 31, 0) if architecture == "llama" else 0
    return replace(common, sliding_window=window, sliding=(True,) * common.layers) if window else common


def _heads(fields: Fields) -> tuple[int, int]:
    """Query heads and their size."""
    heads = fields.length("attention.head_count")
    head_dim = fields.length("attention.key_length", max(1, fields.length("embedding_length") // heads))
    if fields.length("attention.value_length", head_dim) != head_dim:
        fields.unsupported("keys and values differ in size, which Hasten's attention does not do")
    if head_dim % 2:
        fields.corrupt(f"heads have the odd size {head_dim}, which cannot be rotated")
    if fields.length("rope.dimension_count", head_dim) != head_dim:
        fields.unsupported("only a part of each head is rotated, which Hasten's attention does not do")
    return heads, head_dim


def _kv_heads(fields: Fields, heads: int) -> int:
    kv_heads = fields.length("attention.head_count_kv", heads)
    if heads % kv_heads:
        fields.corrupt(f"{heads} query heads cannot share {kv_heads} key heads evenly")
    return kv_heads


def _rope_scaling(fields: Fields) -> RopeScaling:
    kind = fields.text("rope.scaling.type", "linear" if fields.has("rope.scale_linear") else "none")
    if kind == "none":
        return RopeScaling()
    if kind == "linear":
        factor = fields.positive("rope.scaling.factor", fields.positive("rope.scale_linear", 1.0))
        return RopeScaling("linear", factor) if factor != 1.0 else RopeScaling()
    if kind != "yarn":
        fields.unsupported(f"the rotary scaling {kind!r:.40} is not one that Hasten reads (none, linear, yarn)")
    if fields.has("rope.scaling.yarn_ext_factor") and fields.positive("rope.scaling.yarn_ext_factor") != 1.0:
        fields.unsupported("YaRN with an extrapolation factor other than 1 is not what Hasten's decoder does")
    factor = fields.positive("rope.scaling.factor")
    scale = fields.positive("rope.scaling.attn_factor", fields.positive("rope.scaling.yarn_attn_factor", 1.0))
    return RopeScaling(
        "yarn",
        factor,
        original_context=fields.length("rope.scaling.original_context_length", fields.length("context_length")),
        beta_fast=fields.positive("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.positive("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=scale * (0.1 * math.log(factor) + 1.0) if factor > 1.0 else scale,
    )


def _stretched_context(description: ModelDescription) -> int:
    """YaRN files often give the context before stretching."""
    scaling = description.rope_scaling
    if scaling.kind != "yarn":
        return description.context_length
    return max(description.context_length, min(int(scaling.original_context * scaling.factor), 1 << 31))


def _gemma(fields: Fields, common: ModelDescription) -> ModelDescription:
    second = common.family == "gemma2"
    scale = common.hidden_size / common.heads if common.layers == GEMMA_27B_LAYERS[common.family] else common.head_dim
    return replace(
        common,
        local_rope_theta=0.0 if second else fields.positive("rope.freq_base_swa", 10000.0),
        rope_theta=fields.positive("rope.freq_base", 1e4 if second else 1e6),
        activation="gelu_tanh",
        post_norms=True,
        sliding_window=fields.length("attention.sliding_window"),
        sliding=_gemma_pattern(fields, common.layers, 2 if second else 6),
        attention_softcap=_softcap(fields, "attn_logit_softcapping", 50.0 if second else 0.0),
        final_softcap=_softcap(fields, "final_logit_softcapping", 30.0 if second else 0.0),
        query_scale=scale**-0.5,
        embedding_scale=common.hidden_size**0.5,
    )


def _gemma_pattern(fields: Fields, layers: int, default: int) -> tuple[bool, ...]:
    pattern = fields.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) != layers or not all(type(item) is bool for item in pattern):
            fields.corrupt("the sliding window pattern is not one truth value a layer")
        return tuple(pattern)
    every = fields.integer("attention.sliding_window_pattern", 1, MAXIMUM_LAYERS, default)
    return tuple((layer + 1) % every != 0 for layer in range(layers))


def _softcap(fields: Fields, key: str, default: float) -> float:
    if not fields.has(key):
        return default
    return fields.positive(key) if fields.get(key) != 0.0 else 0.0
