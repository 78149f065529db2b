"""Logits against the Hugging Face implementation: tiny random models of every family, and the real GGUF models."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.model.executor import Executor
from hasten.model.loaders import open_source
from hasten.model.precision import FP32
from hasten.model.weights import load_decoder
from real import model_path, text_tokens

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama-linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-yarn": ("Qwen2Config", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "mistral": ("MistralConfig", {"sliding_window": 24, "head_dim": 16}),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2, "pad_token_id": 0}),
    "smollm3-yarn": ("SmolLM3Config", {"no_rope_layers": [0, 1, 1, 0], "rope_parameters": YARN, "pad_token_id": 0}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 32,
            "sliding_window": 16,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 3.0,
            "initializer_range": 0.1,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 24, "num_hidden_layers": 7, "initializer_range": 0.1},
    ),
}


def our_logits(path: Path, tokens: list[int]) -> torch.Tensor:
    executor = Executor(load_decoder(open_source(path), FP32, CPU, None), 16, CPU)
    return executor.forward(Batch([Segment(list(range(16)), 0, tokens)]))


@pytest.mark.parametrize("name", FAMILIES)
def test_tiny_models_of_every_family(name: str, tmp_path: Path) -> None:
    config_name, extra = FAMILIES[name]
    torch.manual_seed(5)
    config = getattr(transformers, config_name)(**{**COMMON, **extra})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "bias" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(tmp_path)
    tokens = torch.randint(0, 97, (1, 150))
    with torch.no_grad():
        expected = model(tokens).logits[0]
    ours = our_logits(tmp_path, tokens[0].tolist())
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "gemma-3-270m"])
def test_real_models_choose_as_transformers_does(name: str) -> None:
    """fp32 from the same GGUF file: the same first choice for at least 99.9 % of 1,000 text tokens."""
    path = model_path(name)
    tokens = text_tokens(path, 1000)
    source = open_source(path)
    executor = Executor(load_decoder(source, FP32, CPU, None), 16, CPU)
    assert len(tokens) <= 16 * BLOCK_SIZE
    ours = executor.forward(Batch([Segment(list(range(16)), 0, tokens)])).argmax(-1)
    del executor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
        with torch.no_grad():
            theirs = model(torch.tensor([tokens])).logits[0].argmax(-1)
    agreement = (ours == theirs).double().mean().item()
    print(f"{name}: {agreement:.4%} of {len(tokens)} first choices agree")
    assert agreement >= 0.999
