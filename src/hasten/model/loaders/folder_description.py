"""From the ``config.json`` of a Hugging Face folder to a description.

Keys and defaults are those of the model's configuration class in transformers, both the older form (``rope_theta`` and
``rope_scaling``) and that of version 5 (``rope_parameters``, possibly one for each kind of layer).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hasten.model.description import GEMMAS, Family, ModelDescription, RopeScaling
from hasten.model.loaders.fields import MAXIMUM_LAYERS, MAXIMUM_LENGTH, Fields

__all__ = ["describe_folder"]


@dataclass(frozen=True, slots=True)
class FamilyDefaults:
    """What a configuration means when it does not say. ``head_dim`` 0: hidden size / heads; ``kv_heads`` 0: all heads."""

    head_dim: int = 0
    kv_heads: int = 0
    context_length: int = 32768
    sliding_window: int = 4096
    tied_head: bool = False
    rope_theta: float = 10000.0
    window_every: int = 0  # of so many layers the last has no window
    softcaps: tuple[float, float] = (0.0, 0.0)  # of attention, and of logits


DEFAULTS: dict[Family, FamilyDefaults] = {
    "llama": FamilyDefaults(context_length=2048),
    "mistral": FamilyDefaults(kv_heads=8, context_length=131072),
    "qwen2": FamilyDefaults(),
    "qwen3": FamilyDefaults(head_dim=128),
    "smollm3": FamilyDefaults(kv_heads=4, tied_head=True, rope_theta=2e6),
    "gemma2": FamilyDefaults(256, kv_heads=4, context_length=8192, tied_head=True, window_every=2, softcaps=(50.0, 30.0)),
    "gemma3": FamilyDefaults(256, kv_heads=4, context_length=131072, tied_head=True, rope_theta=1e6, window_every=6),
}
FAMILIES: dict[str, Family] = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
}
ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
GEMMA_SHAPE = {"vocab_size": 262208, "num_attention_heads": 8}  # left out of the published multimodal configurations


def describe_folder(top: Fields) -> ModelDescription:
    """``top``: config.json.

    Raises UnsupportedModel for another architecture or a feature without a place, CorruptModel for senseless values.
    """
    kind = top.text("model_type")
    if kind not in FAMILIES:
        top.unsupported(f"the model type {kind!r:.60} is not one that Hasten reads ({', '.join(FAMILIES)})")
    family = FAMILIES[kind]
    fields = top.nested("text_config") if kind == "gemma3" and top.has("text_config") else top
    defaults = DEFAULTS[family]
    for each in (top, fields):
        if each.has("quantization_config"):
            each.unsupported("the weights are quantised in a form that Hasten does not read from folders; use the GGUF file")
    layers = fields.integer("num_hidden_layers", 1, MAXIMUM_LAYERS)
    heads, kv_heads, head_dim = _heads(fields, defaults, family)
    vocabulary = fields.length("vocab_size", *_gemma_default(family, "vocab_size"))
    scaling, theta, local_theta = _rotary(fields, defaults, family)
    window, sliding = _sliding(fields, defaults, family, layers)
    gemma = family in GEMMAS
    biased = family in ("llama", "qwen3", *GEMMAS) and fields.flag("attention_bias", False)
    return ModelDescription(
        family=family,
        vocabulary_size=vocabulary,
        hidden_size=fields.length("hidden_size"),
        intermediate_size=fields.length("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context_length=_context(fields, defaults, scaling),
        norm_eps=fields.positive("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        local_rope_theta=local_theta,
        activation=_activation(fields, gemma),
        qkv_bias=biased or family == "qwen2",
        output_bias=biased,
        mlp_bias=family == "llama" and fields.flag("mlp_bias", False),
        qk_norm=family in ("qwen3", "gemma3"),
        post_norms=gemma,
        sliding_window=window,
        sliding=sliding,
        unrotated=_unrotated(fields, layers) if family == "smollm3" else (),
        attention_softcap=_softcap(fields, "attn_logit_softcapping", defaults.softcaps[0]) if gemma else 0.0,
        final_softcap=_softcap(fields, "final_logit_softcapping", defaults.softcaps[1]) if gemma else 0.0,
        query_scale=fields.positive("query_pre_attn_scalar", 256) ** -0.5 if gemma else 0.0,
        embedding_scale=fields.length("hidden_size") ** 0.5 if gemma else 1.0,
        tied_head=fields.flag("tie_word_embeddings", top.flag("tie_word_embeddings", defaults.tied_head)),
    )


def _gemma_default(family: Family, key: str) -> tuple[int, ...]:
    return (GEMMA_SHAPE[key],) if family == "gemma3" else ()


def _heads(fields: Fields, defaults: FamilyDefaults, family: Family) -> tuple[int, int, int]:
    """Query heads, key heads and their size."""
    heads = fields.length("num_attention_heads", *_gemma_default(family, "num_attention_heads"))
    kv_heads = fields.length("num_key_value_heads", defaults.kv_heads or heads)
    if heads % kv_heads:
        fields.corrupt(f"{heads} query heads cannot share {kv_heads} key heads evenly")
    head_dim = fields.length("head_dim", defaults.head_dim or max(1, fields.length("hidden_size") // heads))
    if head_dim % 2:
        fields.corrupt(f"heads have the odd size {head_dim}, which cannot be rotated")
    return heads, kv_heads, head_dim


def _activation(fields: Fields, gemma: bool) -> Literal["silu", "gelu_tanh"]:
    key, default = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    name = fields.text(key, default)
    if name not in ACTIVATIONS:
        fields.unsupported(f"the activation {name!r:.40} is not one that Hasten computes ({', '.join(ACTIVATIONS)})")
    return ACTIVATIONS[name]


def _rotary(fields: Fields, defaults: FamilyDefaults, family: Family) -> tuple[RopeScaling, float, float]:
    """Scaling and base of full layers, and the base of Gemma's sliding layers (0 for others)."""
    key = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    given = fields.nested(key)
    by_layer = given.has("full_attention") or given.has("sliding_attention")
    if by_layer and family != "gemma3":
        fields.unsupported("rotary parameters for each kind of layer are known of Gemma 3 only")
    full = given.nested("full_attention") if by_layer else given
    theta = full.positive("rope_theta", fields.positive("rope_theta", defaults.rope_theta))
    for each in (fields, full):
        if each.has("partial_rotary_factor") and each.positive("partial_rotary_factor") != 1.0:
            fields.unsupported("only a part of each head is rotated, which Hasten's attention does not do")
    scaling = _rope_scaling(fields, full)
    if family != "gemma3":
        return scaling, theta, 0.0
    local = given.nested("sliding_attention")
    if _rope_kind(local) != "none":
        fields.unsupported("sliding layers have a rotary scaling of their own, which Hasten's decoder does not do")
    return scaling, theta, local.positive("rope_theta", fields.positive("rope_local_base_freq", 10000.0))


def _rope_kind(rope: Fields) -> str:
    kind = rope.text("rope_type", rope.text("type", "default"))
    return "none" if kind == "default" else kind


def _rope_scaling(fields: Fields, rope: Fields) -> RopeScaling:
    kind = _rope_kind(rope)
    if kind == "none":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", rope.positive("factor"))
    if kind not in ("llama3", "yarn"):
        fields.unsupported(f"the rotary scaling {kind!r:.40} is not one that Hasten reads (default, linear, llama3, yarn)")
    context = fields.length("max_position_embeddings", 2048)
    original = fields.length("original_max_position_embeddings", rope.length("original_max_position_embeddings", context))
    if kind == "yarn":
        return _yarn(fields, rope, original, context)
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if low >= high:
        fields.corrupt(f"the llama3 rotary scaling goes from {low} to {high} where the second must be larger")
    return RopeScaling("llama3", rope.positive("factor"), original, low, high)


def _yarn(fields: Fields, rope: Fields, original: int, context: int) -> RopeScaling:
    """YaRN with the attention factor worked out; ``mscale`` is DeepSeek's way of giving it."""
    if not rope.flag("truncate", True):
        fields.unsupported("YaRN without rounding of its range is not what Hasten's decoder does")
    factor = rope.positive("factor", context / original)
    attention = rope.positive("attention_factor") if rope.has("attention_factor") else _yarn_attention(rope, factor)
    return RopeScaling(
        "yarn",
        factor,
        original_context=original,
        beta_fast=rope.positive("beta_fast", 32.0),
        beta_slow=rope.positive("beta_slow", 1.0),
        attention_factor=attention,
    )


def _yarn_attention(rope: Fields, factor: float) -> float:
    if factor <= 1.0:
        return 1.0
    logarithm = 0.1 * math.log(factor)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return (rope.positive("mscale") * logarithm + 1.0) / (rope.positive("mscale_all_dim") * logarithm + 1.0)
    return logarithm + 1.0


def _context(fields: Fields, defaults: FamilyDefaults, scaling: RopeScaling) -> int:
    """The context that the model was made for; YaRN configurations often give the one before stretching."""
    context = fields.length("max_position_embeddings", defaults.context_length)
    if scaling.kind != "yarn":
        return context
    return max(context, min(int(scaling.original_context * scaling.factor), MAXIMUM_LENGTH))


def _sliding(fields: Fields, defaults: FamilyDefaults, family: Family, layers: int) -> tuple[int, tuple[bool, ...]]:
    """The window, 0 for none, and which layers have it."""
    if family in ("llama", "smollm3"):
        if family == "smollm3" and fields.flag("use_sliding_window", False):
            fields.unsupported("layers with a window beside layers without positions are not what Hasten's decoder does")
        return 0, ()
    if family in GEMMAS and fields.flag("use_bidirectional_attention", False):
        fields.unsupported("the model looks both ways, so it does not write text; choose a causal model")
    # null means none, and only silence means the default of the family
    silent = "sliding_window" not in fields.values
    window = fields.integer("sliding_window", 0, MAXIMUM_LENGTH, defaults.sliding_window if silent else 0)
    if family in ("qwen2", "qwen3") and not fields.flag("use_sliding_window", False):
        window = 0
    if not window:
        return 0, ()
    if family == "mistral":
        return window, (True,) * layers
    pattern = _layer_types(fields, layers)
    if pattern is None and family in GEMMAS:
        every = fields.integer("sliding_window_pattern", 1, MAXIMUM_LAYERS, defaults.window_every)
        pattern = tuple((layer + 1) % every != 0 for layer in range(layers))
    elif pattern is None:
        first = fields.integer("max_window_layers", 0, MAXIMUM_LENGTH, 28)
        pattern = tuple(layer >= first for layer in range(layers))
    return (window, pattern) if any(pattern) else (0, ())


def _unrotated(fields: Fields, layers: int) -> tuple[bool, ...]:
    """Layers without positions; ``no_rope_layers`` marks them with a 0, the others with a 1."""
    for bias in ("attention_bias", "mlp_bias"):
        if fields.flag(bias, False):
            fields.unsupported("biases beside layers without positions are not what Hasten's decoder does")
    marks = fields.get("no_rope_layers")
    if marks is None:
        every = fields.integer("no_rope_layer_interval", 1, MAXIMUM_LAYERS, 4)
        return tuple((layer + 1) % every == 0 for layer in range(layers))
    if type(marks) is not list or len(marks) < layers or any(mark not in (0, 1) for mark in marks):
        fields.corrupt("'no_rope_layers' does not say 0 or 1 for each layer")
    return tuple(mark == 0 for mark in marks[:layers])


def _layer_types(fields: Fields, layers: int) -> tuple[bool, ...] | None:
    types = fields.get("layer_types")
    if types is None:
        return None
    if type(types) is not list or len(types) != layers:
        fields.corrupt("'layer_types' does not name one type a layer")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            fields.unsupported(f"the layer type {kind!r:.40} is not one that Hasten computes (full or sliding attention)")
    return tuple(kind == "sliding_attention" for kind in types)


def _softcap(fields: Fields, key: str, default: float) -> float:
    """null and 0 mean none, and only silence means the default of the family."""
    if key not in fields.values:
        return default
    return fields.positive(key) if fields.has(key) and fields.get(key) != 0 else 0.0
