"""Folders as transformers writes them: every family, single and sharded, old and new forms of the configuration."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hasten.core.errors import CorruptModel, UnsupportedModel
from hasten.model.description import ModelDescription, RopeScaling
from hasten.model.loaders import open_source
from hasten.model.loaders.fields import Fields
from hasten.model.loaders.folder_description import describe_folder
from hasten.model.loaders.safetensors_file import READABLE
from hasten.model.loaders.source import WeightSource, expected_shapes

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama biased and tied": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": 64}),
    "mistral unbounded": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {"rope_parameters": YARN}),
    "qwen2 sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3 biased": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "smollm3 by interval": ("SmolLM3", {"no_rope_layer_interval": 2, "tie_word_embeddings": False}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3Text", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16, "layer_types": None}),
    "gemma3 scaled": (
        "Gemma3Text",
        {"head_dim": 16, "sliding_window": 8, "rope_parameters": GEMMA_ROPE, "num_hidden_layers": 7},
    ),
}


def make(case: str) -> Any:
    kind, changes = CASES[case]
    config = getattr(transformers, f"{kind}Config")(**(SIZES | changes))
    torch.manual_seed(0)
    name = "Gemma3ForCausalLM" if kind == "Gemma3Text" else f"{kind}ForCausalLM"
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def canonical_state(model: Any, gemma: bool) -> dict[str, torch.Tensor]:
    """What a source must give, by the modules themselves instead of by name."""
    body = model.model
    out = {"embedding": body.embed_tokens.weight, "final_norm": body.norm.weight, "head": model.lm_head.weight}
    for index, layer in enumerate(body.layers):
        attention, mlp = layer.self_attn, layer.mlp
        own = {"attention_norm": layer.input_layernorm.weight}
        pairs = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj, "o": attention.o_proj}
        pairs |= {"gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj}
        for name, linear in pairs.items():
            own[name] = linear.weight
            if linear.bias is not None:
                own[f"{name}_bias"] = linear.bias
        if hasattr(attention, "q_norm"):
            own |= {"q_norm": attention.q_norm.weight, "k_norm": attention.k_norm.weight}
        if gemma:
            own["post_attention_norm"] = layer.post_attention_layernorm.weight
            own["mlp_norm"] = layer.pre_feedforward_layernorm.weight
            own["post_mlp_norm"] = layer.post_feedforward_layernorm.weight
        else:
            own["mlp_norm"] = layer.post_attention_layernorm.weight
        out |= {f"layers.{index}.{name}": value for name, value in own.items()}
    return {name: value.detach() + 1.0 if gemma and name.endswith("norm") else value.detach() for name, value in out.items()}


def check_tensors(source: WeightSource, expected: dict[str, torch.Tensor]) -> None:
    if source.description.tied_head:
        expected = {name: value for name, value in expected.items() if name != "head"}
    assert source.names() == set(expected) == set(expected_shapes(source.description))
    for name, value in expected.items():
        assert source.shape(name) == value.shape
        assert torch.equal(source.read(name), value.float())
        middle = value.shape[0] // 2
        assert torch.equal(source.read(name, 1, middle), value[1:middle].float())
        assert source.read(name, middle, middle).shape == (0, *value.shape[1:])


@pytest.mark.parametrize("case", CASES)
def test_every_family(case: str, tmp_path: Path) -> None:
    model = make(case)
    gemma = case.startswith("gemma")
    expected = canonical_state(model, gemma)
    for name, size in (("single", "1GB"), ("sharded", "20KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=size)
        source = open_source(tmp_path / name)
        assert (tmp_path / name / "model.safetensors.index.json").exists() == (name == "sharded")
        check_tensors(source, expected)
        check_description(source.description, model.config, case.split()[0])
        assert source.stored_dtype("embedding") == "f32"


def check_description(made: ModelDescription, config: Any, family: str) -> None:
    assert made.family == family
    sizes = (made.vocabulary_size, made.hidden_size, made.intermediate_size, made.layers, made.heads, made.kv_heads)
    names = list(SIZES)[:6]
    assert sizes == tuple(getattr(config, name) for name in names)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert made.head_dim == head_dim
    assert made.norm_eps == config.rms_norm_eps
    assert made.tied_head == config.tie_word_embeddings
    assert made.activation == ("gelu_tanh" if family.startswith("gemma") else "silu")
    assert made.context_length == (1024 if made.rope_scaling.kind == "yarn" else 256)
    rope = config.rope_parameters
    full = rope["full_attention"] if family == "gemma3" else rope
    assert made.rope_theta == full["rope_theta"]
    assert made.rope_scaling.kind == {"default": "none"}.get(full["rope_type"], full["rope_type"])
    types = getattr(config, "layer_types", None) or ["sliding_attention" if family == "mistral" else "full_attention"] * made.layers
    for layer, kind in enumerate(types):
        window = config.sliding_window if kind == "sliding_attention" else None
        assert made.window(layer) == (window or 0)
    marks = getattr(config, "no_rope_layers", None) or [1] * made.layers
    assert [made.rotates(layer) for layer in range(made.layers)] == [mark == 1 for mark in marks]
    if family == "gemma3":
        assert made.local_rope_theta == rope["sliding_attention"]["rope_theta"]
    if family.startswith("gemma"):
        assert (made.attention_softcap, made.final_softcap) == ((50.0, 30.0) if family == "gemma2" else (0.0, 0.0))
        assert made.attention_scale == pytest.approx(config.query_pre_attn_scalar**-0.5)
        assert made.embedding_scale == pytest.approx(config.hidden_size**0.5)
    else:
        assert (made.local_rope_theta, made.query_scale, made.embedding_scale) == (0.0, 0.0, 1.0)


def test_scalings_by_number(tmp_path: Path) -> None:
    make("llama 3").save_pretrained(tmp_path / "a")
    assert open_source(tmp_path / "a").description.rope_scaling == RopeScaling("llama3", 8.0, 64, 1.0, 4.0)
    make("qwen2").save_pretrained(tmp_path / "b")
    made = open_source(tmp_path / "b").description.rope_scaling
    assert (made.kind, made.factor, made.original_context, made.beta_fast, made.beta_slow) == ("yarn", 4.0, 256, 32.0, 1.0)
    assert made.attention_factor == pytest.approx(1.138629436)
    make("gemma3 scaled").save_pretrained(tmp_path / "c")
    made_gemma = open_source(tmp_path / "c").description
    assert (made_gemma.rope_scaling, made_gemma.sliding) == (RopeScaling("linear", 8.0), (True,) * 5 + (False, True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_types(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make("gemma3").to(dtype)
    expected = {name: value.float() for name, value in canonical_state(make("gemma3").to(dtype).float(), True).items()}
    model.save_pretrained(tmp_path)
    source = open_source(tmp_path)
    check_tensors(source, expected)
    assert source.stored_dtype("layers.0.q") == {value: key for key, value in READABLE.items()}[dtype].lower()


def test_multimodal_gemma(tmp_path: Path) -> None:
    """The text part of a folder that holds more, under the names of older and newer checkpoints."""
    model = make("gemma3")
    expected = canonical_state(model, True)
    model.save_pretrained(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    config = {
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {"model_type": "siglip"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = load_file(tmp_path / "model.safetensors")
    for body, tower in (("language_model.model.", "vision_tower."), ("model.language_model.", "model.vision_tower.")):
        renamed = {name.replace("model.", body, 1): value for name, value in state.items()}
        save_file(renamed | {f"{tower}x": torch.ones(2, dtype=torch.int64)}, tmp_path / "model.safetensors")
        source = open_source(tmp_path)
        check_tensors(source, expected)


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = open_source(tmp_path / "a").fingerprint
    assert open_source(tmp_path / "b").fingerprint == first
    (tmp_path / "b" / "config.json").write_text((tmp_path / "b" / "config.json").read_text() + " ")
    assert open_source(tmp_path / "b").fingerprint != first
    os.utime(tmp_path / "a" / "model.safetensors", ns=(0, 1))
    assert open_source(tmp_path / "a").fingerprint != first


def test_single_file_before_index_and_no_stray_shards(tmp_path: Path) -> None:
    model = make("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    where = json.loads(index.read_text())
    where["weight_map"]["model.norm.weight"] = where["weight_map"]["model.embed_tokens.weight"]
    index.write_text(json.dumps(where))
    with pytest.raises(CorruptModel, match=r"lacks the tensor 'model\.norm\.weight'"):
        open_source(tmp_path)
    model.save_pretrained(tmp_path / "again")
    shutil.move(tmp_path / "again" / "model.safetensors", tmp_path / "model.safetensors")
    check_tensors(open_source(tmp_path), canonical_state(model, False))


# --- configurations as they are published, without weights


def describe(**config: Any) -> ModelDescription:
    path = Path("config.json")
    return describe_folder(Fields(path, config))


LLAMA_3_2 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
GEMMA_4B_TEXT = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}


def test_published_llama() -> None:
    made = describe(**LLAMA_3_2)
    assert made.rope_scaling == RopeScaling("llama3", 32.0, 8192, 1.0, 4.0)
    assert (made.rope_theta, made.tied_head, made.context_length, made.kv_heads) == (5e5, True, 131072, 8)


def test_published_multimodal_gemma_leans_on_defaults() -> None:
    made = describe(model_type="gemma3", text_config=GEMMA_4B_TEXT)
    assert (made.vocabulary_size, made.heads, made.kv_heads, made.head_dim) == (262208, 8, 4, 256)
    assert (made.context_length, made.rope_theta, made.local_rope_theta) == (131072, 1e6, 1e4)
    assert made.rope_scaling == RopeScaling("linear", 8.0)
    assert [layer for layer in range(34) if not made.sliding[layer]] == [5, 11, 17, 23, 29]
    assert (made.tied_head, made.query_scale) == (True, 0.0625)


def test_published_mistral_and_qwen_defaults() -> None:
    base = {key: value for key, value in LLAMA_3_2.items() if key not in ("rope_scaling", "num_key_value_heads", "head_dim")}
    made = describe(**(base | {"model_type": "mistral"}))
    assert (made.kv_heads, made.sliding_window, made.sliding[0], made.head_dim) == (8, 4096, True, 64)
    made = describe(**(base | {"model_type": "mistral", "sliding_window": None}))
    assert (made.sliding_window, made.sliding) == (0, ())
    made = describe(**(base | {"model_type": "qwen2", "sliding_window": 32768, "use_sliding_window": False}))
    assert (made.sliding, made.qkv_bias, made.output_bias, made.kv_heads) == ((), True, False, 32)
    made = describe(**(base | {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 14}))
    assert (made.sliding, made.sliding_window) == ((False,) * 14 + (True, True), 4096)
    assert describe(**(base | {"model_type": "qwen3"})).head_dim == 128
    assert describe(**(base | {"model_type": "llama", "rope_theta": None})).rope_theta == 10000.0


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mixtral"},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
        {"rope_scaling": {"type": "su", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}, "rope_scaling": None},
        {"partial_rotary_factor": 0.5},
        {"hidden_act": "relu"},
        {"quantization_config": {"quant_method": "awq"}},
        {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["linear_attention"] * 16},
        {"model_type": "gemma3_text", "use_bidirectional_attention": True},
        {"model_type": "smollm3", "attention_bias": True},
        {"model_type": "smollm3", "use_sliding_window": True},
    ],
)
def test_unsupported_configurations(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        describe(**(LLAMA_3_2 | change))


def test_readable_types_are_the_floating_ones() -> None:
    assert set(READABLE) == {"F64", "F32", "F16", "BF16"}
