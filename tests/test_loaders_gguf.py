"""GGUF: every block format, the layout of queries and keys, descriptions, and files made to do harm."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType

from hasten.core.errors import CorruptModel, ModelNotFound, UnsupportedModel
from hasten.model.description import RopeScaling
from hasten.model.loaders import open_source
from hasten.model.loaders.dequantise import BLOCKS, READABLE, dequantise
from hasten.model.loaders.gguf_file import read_gguf
from hasten.model.loaders.source import expected_shapes
from hasten.model.storage import catalogue_path
from hasten.model.tokenizer import load_tokenizer
from loader_files import HEAD_DIM, HEADS, HIDDEN, KIND, VOCABULARY, bounded_memory, raw_rows, write_gguf


def reference(raw: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(gguf.quants.dequantize(raw, kind))


def same(left: torch.Tensor, right: np.ndarray) -> bool:
    """Equal bit for bit, but that any not-a-number equals any other."""
    ours = left.numpy()
    where = ~np.isnan(right)
    return bool((np.isnan(ours) == ~where).all() and (ours.view(np.uint32) == right.view(np.uint32))[where].all())


# --- block formats


@pytest.mark.parametrize("kind", sorted(READABLE), ids=lambda kind: kind.name)
def test_dequantise_equals_the_reference_package_bit_for_bit(kind: GGMLQuantizationType) -> None:
    for seed in range(4):
        raw = raw_rows(kind, 37, 1024, seed)
        out = torch.empty(37, 1024)
        dequantise(torch.from_numpy(raw), kind, out)
        assert same(out, reference(raw, kind))


def test_dequantise_sees_every_bit() -> None:
    """A changed bit of any block changes what is decoded, or lies in a field that was multiplied by nothing."""
    for kind in BLOCKS:
        raw = raw_rows(kind, 1, 256, 3)
        for position in range(raw.size):
            changed = raw.copy()
            changed[0, position] ^= 4
            out = torch.empty(1, 256)
            dequantise(torch.from_numpy(changed), kind, out)
            assert same(out, reference(changed, kind)), (kind, position)


@pytest.mark.parametrize("kind", sorted(READABLE), ids=lambda kind: kind.name)
def test_rows_are_read_from_a_file_of_every_type(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    path = tmp_path / "model.gguf"
    wide = 1 if kind in (KIND.Q4_K, KIND.Q5_K, KIND.Q6_K) else 0
    if wide:  # 256 values a block: only the head is wide enough where the hidden size is 256
        rows = raw_rows(kind, 8, 256, 1)
        tensors = write_wide(path, kind, rows)
    else:
        tensors = write_gguf(path, "qwen3", kind=kind)
    source = open_source(path)
    expected = tensors["output.weight"] if kind is KIND.F32 else reference(tensors["output.weight"], kind)
    assert same(source.read("head"), expected)
    for start, stop in ((0, 1), (3, 8), (5, 5), (7, 8)):
        assert same(source.read("head", start, stop), expected[start:stop])
    assert source.stored_dtype("head") == kind.name.lower()
    assert source.read("final_norm").dtype is torch.float32


def write_wide(path: Path, kind: GGMLQuantizationType, rows: np.ndarray) -> dict[str, np.ndarray]:
    """A model without layers' worth of width: hidden size 256, one layer, every matrix the same few block rows."""
    writer = gguf.GGUFWriter(path, "qwen3")
    sizes = {"embedding_length": 256, "feed_forward_length": 256, "block_count": 1, "context_length": 64}
    sizes |= {"attention.head_count": 4, "attention.head_count_kv": 4, "attention.key_length": 64, "attention.value_length": 64}
    for key, value in sizes.items():
        writer.add_uint32(f"qwen3.{key}", value)
    writer.add_float32("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
    tensors = dict.fromkeys(("token_embd.weight", "output.weight"), rows)
    square = np.tile(rows[:8], (32, 1))
    tensors |= {
        f"blk.0.{n}.weight": square for n in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    }
    for name, array in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    for name, length in {"output_norm": 256, "blk.0.attn_norm": 256, "blk.0.ffn_norm": 256}.items():
        writer.add_tensor(f"{name}.weight", np.ones(length, np.float32))
    for name in ("attn_q_norm", "attn_k_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_long_reads_cross_decoding_chunks(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    rows = raw_rows(KIND.Q4_K, 1500, 256, 9)
    write_wide(path, KIND.Q4_K, rows)
    assert same(open_source(path).read("embedding", 3, 1499), reference(rows, KIND.Q4_K)[3:1499])


# --- layout


def interleave(halves: np.ndarray, heads: int) -> np.ndarray:
    """What the converter does to llama's queries and keys: row h * d/2 + j of a head goes to row 2 j + h."""
    out = np.empty_like(halves)
    size = len(halves) // heads
    for head in range(heads):
        for half in range(2):
            for pair in range(size // 2):
                out[head * size + 2 * pair + half] = halves[head * size + half * (size // 2) + pair]
    return out


@pytest.mark.parametrize("architecture", ["llama", "smollm3"])
def test_queries_and_keys_that_pair_neighbours_come_back_in_halves(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "model.gguf"
    biases = ("attn_q", "attn_k", "attn_v") if architecture == "llama" else ()
    tensors = write_gguf(path, architecture, biases=biases)
    source = open_source(path)
    for name, heads in (("q", HEADS), ("k", 2)):
        for suffix, stored in (("", "weight"), ("_bias", "bias"))[: 2 if biases else 1]:
            canonical = source.read(f"layers.1.{name}{suffix}")
            assert np.array_equal(interleave(canonical.numpy(), heads), tensors[f"blk.1.attn_{name}.{stored}"])
            rows = canonical.shape[0]
            for start in range(0, rows, 5):
                for stop in range(start, rows + 1, 7):
                    assert torch.equal(source.read(f"layers.1.{name}{suffix}", start, stop), canonical[start:stop])
    assert np.array_equal(source.read("layers.1.v").numpy(), tensors["blk.1.attn_v.weight"])
    assert not biases or np.array_equal(source.read("layers.0.v_bias").numpy(), tensors["blk.0.attn_v.bias"])


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma2", "gemma3"])
def test_other_architectures_are_in_halves_already(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "model.gguf"
    biases = ("attn_q", "attn_k", "attn_v") if architecture == "qwen2" else ()
    tensors = write_gguf(path, architecture, tied=architecture.startswith("gemma"), biases=biases)
    source = open_source(path)
    assert np.array_equal(source.read("layers.0.q").numpy(), tensors["blk.0.attn_q.weight"])
    assert np.array_equal(source.read("layers.0.attention_norm").numpy(), tensors["blk.0.attn_norm.weight"])
    assert source.names() == set(expected_shapes(source.description))
    assert all(source.shape(name) == shape for name, shape in expected_shapes(source.description).items())


# --- descriptions


def describe(tmp_path: Path, architecture: str, **options: Any) -> Any:
    path = tmp_path / "model.gguf"
    write_gguf(path, architecture, **options)
    return open_source(path).description


def test_gemma_description(tmp_path: Path) -> None:
    made = describe(tmp_path, "gemma3", layers=7, tied=True)
    assert made.sliding == (True,) * 5 + (False, True)
    assert (made.sliding_window, made.rope_theta, made.local_rope_theta) == (32, 5000.0, 10000.0)
    assert (made.query_scale, made.embedding_scale) == (HEAD_DIM**-0.5, HIDDEN**0.5)
    assert (made.activation, made.post_norms, made.qk_norm, made.tied_head) == ("gelu_tanh", True, True, True)
    values = {
        "gemma3.attention.sliding_window_pattern": 2,
        "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.scaling.factor": 8.0,
    }
    made = describe(tmp_path, "gemma3", layers=4, tied=True, values=values)
    assert made.sliding == (True, False, True, False)
    assert made.rope_scaling == RopeScaling("linear", 8.0)


def test_gemma_2_description(tmp_path: Path) -> None:
    made = describe(tmp_path, "gemma2", layers=4, tied=True)
    assert (made.sliding, made.sliding_window) == ((True, False, True, False), 32)
    assert (made.attention_softcap, made.final_softcap) == (50.0, 30.0)
    assert (made.qk_norm, made.post_norms, made.local_rope_theta, made.rope_theta) == (False, True, 0.0, 5000.0)
    assert (made.query_scale, made.embedding_scale, made.activation) == (HEAD_DIM**-0.5, HIDDEN**0.5, "gelu_tanh")
    values = {"gemma2.attn_logit_softcapping": 20.0, "gemma2.final_logit_softcapping": 0.0}
    made = describe(tmp_path, "gemma2", layers=46, tied=True, values=values)
    assert (made.attention_softcap, made.final_softcap, made.query_scale) == (20.0, 0.0, (HIDDEN / HEADS) ** -0.5)


def test_every_fourth_layer_of_smollm3_rotates_nothing(tmp_path: Path) -> None:
    made = describe(tmp_path, "smollm3", layers=9, tied=True)
    assert [made.rotates(layer) for layer in range(9)] == [True, True, True, False, True, True, True, False, True]
    assert (made.tied_head, made.rope_theta, made.sliding) == (True, 5000.0, ())
    with pytest.raises(UnsupportedModel, match="biases"):
        describe(tmp_path, "smollm3", biases=("attn_q", "attn_k", "attn_v"))


def test_gemma_27b_scales_queries_by_the_width_of_a_head_in_the_stream(tmp_path: Path) -> None:
    values = {"gemma3.embedding_length": HIDDEN}
    assert describe(tmp_path, "gemma3", layers=62, tied=True, values=values).query_scale == (HIDDEN / HEADS) ** -0.5


def test_mistral_window_biases_and_context(tmp_path: Path) -> None:
    made = describe(
        tmp_path, "llama", values={"llama.attention.sliding_window": 128}, biases=("attn_output", "attn_q", "attn_k", "attn_v")
    )
    assert (made.sliding_window, made.sliding, made.output_bias, made.qkv_bias) == (128, (True, True), True, True)
    assert (made.context_length, made.norm_eps, made.rope_theta) == (512, pytest.approx(1e-5), 5000.0)
    made = describe(tmp_path, "llama", biases=("ffn_gate", "ffn_up", "ffn_down"))
    assert (made.mlp_bias, made.sliding) == (True, ())


def test_yarn_and_rotary_factors(tmp_path: Path) -> None:
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 256}
    made = describe(tmp_path, "llama", values={f"llama.rope.scaling.{key}": value for key, value in keys.items()})
    assert made.rope_scaling.kind == "yarn"
    assert made.rope_scaling.attention_factor == pytest.approx(0.1 * np.log(4.0) + 1.0)
    assert made.context_length == 1024
    factors = np.linspace(1.0, 8.0, HEAD_DIM // 2, dtype=np.float32)
    made = describe(tmp_path, "llama", extra={"rope_freqs.weight": factors})
    assert made.frequency_factors == tuple(factors.tolist())
    for wrong in (factors[:-1], -factors, factors * np.float32("nan")):
        with pytest.raises(CorruptModel, match="rope_freqs"):
            describe(tmp_path, "llama", extra={"rope_freqs.weight": wrong})


UNSUPPORTED = {
    "architecture": {"named": "mamba"},
    "experts": {"values": {"llama.expert_count": 8}},
    "both ways": {"values": {"llama.attention.causal": False}},
    "a part": {"values": {"split.count": 3, "split.no": 0}},
    "longrope": {"values": {"llama.rope.scaling.type": "longrope"}},
    "partial": {"values": {"llama.rope.dimension_count": HEAD_DIM // 2}},
    "values": {"values": {"llama.attention.value_length": 8}},
    "a list": {"values": {"llama.attention.head_count": [4, 2]}},
    "logit_scale": {"values": {"llama.logit_scale": 0.5}},
    "extra tensor": {"extra": {"blk.0.ffn_gate_inp.weight": np.ones((2, 2), np.float32)}},
    "layer beyond": {"extra": {"blk.2.attn_norm.weight": np.ones(HIDDEN, np.float32)}},
    "integers": {"extra": {"output.bias": np.ones(VOCABULARY, np.int32)}},
}
CORRUPT = {
    "no layers": {"values": {"llama.block_count": 0}},
    "many layers": {"values": {"llama.block_count": 4_000_000_000}},
    "fewer layers": {"values": {"llama.block_count": 3}},
    "no heads": {"values": {"llama.attention.head_count": 0}},
    "uneven heads": {"values": {"llama.attention.head_count_kv": 3}},
    "odd heads": {"values": {"llama.attention.key_length": 15, "llama.attention.value_length": 15}},
    "negative eps": {"values": {"llama.attention.layer_norm_rms_epsilon": -1.0}},
    "endless base": {"values": {"llama.rope.freq_base": float("inf")}},
    "a word": {"values": {"llama.embedding_length": "wide"}},
    "no width": {"values": {"llama.embedding_length": None}},
    "lacking tensor": {"drop": "blk.1.ffn_up.weight"},
    "lacking embedding": {"drop": "token_embd.weight"},
    "other shape": {"values": {"llama.feed_forward_length": 128}},
    "half a bias": {"biases": ("attn_q",)},
    "too many tokens": {"values": {"tokenizer.ggml.tokens": ["a"] * 41, "tokenizer.ggml.token_type": [1] * 41}},
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_models_are_named(tmp_path: Path, case: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"model\.gguf"):
        describe(tmp_path, "llama", **UNSUPPORTED[case])


@pytest.mark.parametrize("case", CORRUPT)
def test_senseless_models_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(CorruptModel, match=r"model\.gguf"):
        describe(tmp_path, "llama", **CORRUPT[case])


def test_unreadable_type_is_named_with_its_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_wide(path, KIND.Q2_K, raw_rows(KIND.Q2_K, 8, 256, 1))
    with pytest.raises(UnsupportedModel, match=r"token_embd\.weight.*Q2_K"):
        open_source(path)


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    write_gguf(first)
    second.write_bytes(first.read_bytes())
    os.utime(second, ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns))
    assert open_source(first).fingerprint == open_source(second).fingerprint
    os.utime(second, ns=(0, 1))
    assert open_source(first).fingerprint != open_source(second).fingerprint


# --- real files


REAL = {
    "smollm2-135m": ("llama", 49152, 576, 1536, 30, 9, 3, 64, 8192, 1e5, True, (2, 0)),
    "qwen2.5-coder-0.5b": ("qwen2", 151936, 896, 4864, 24, 14, 2, 64, 32768, 1e6, False, (151645, 151643)),
    "qwen2.5-coder-1.5b": ("qwen2", 151936, 1536, 8960, 28, 12, 2, 128, 32768, 1e6, False, (151645, 151643)),
    "gemma-3-270m": ("gemma3", 262144, 640, 2048, 18, 4, 1, 256, 32768, 1e6, True, (1, 106)),
}


def real(name: str) -> Path:
    path = catalogue_path(name)
    if not path.is_file():
        pytest.skip(f"{name}.gguf is not on this machine")
    return path


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_real_models(name: str) -> None:
    path = real(name)
    start = time.perf_counter()
    read_gguf(path)
    assert time.perf_counter() - start < 1.0
    source = open_source(path)
    made = source.description
    print(made)
    shape = (
        made.family,
        made.vocabulary_size,
        made.hidden_size,
        made.intermediate_size,
        made.layers,
        made.heads,
        made.kv_heads,
    )
    ends = load_tokenizer(path).eos_token_ids
    assert (*shape, made.head_dim, made.context_length, made.rope_theta, made.tied_head, ends) == REAL[name]
    assert made.qkv_bias == (made.family == "qwen2")
    for tensor in ("embedding", "layers.0.q", f"layers.{made.layers - 1}.down"):
        rows = source.read(tensor, 1, 65)
        assert rows.isfinite().all()
        assert 1e-4 < rows.std() < 2.0
    if made.family == "gemma3":
        assert (made.sliding_window, sum(made.sliding), made.local_rope_theta) == (512, 15, 1e4)


# --- files that cannot be read


def test_what_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path, Path("a\0b.gguf")):
        with pytest.raises(ModelNotFound):
            open_source(path)
    if not hasattr(os, "mkfifo"):
        return
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelNotFound, match="not a file"):
        open_source(tmp_path / "pipe.gguf")


def test_a_file_cut_after_opening_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path)
    source = open_source(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CorruptModel, match="shorter"):
        source.read("layers.1.down")
    path.unlink()
    with pytest.raises(ModelNotFound):
        source.read("embedding")


def test_memory_stays_small(tmp_path: Path) -> None:
    """Reading a file of 25 MB piece by piece keeps none of it."""
    path = tmp_path / "model.gguf"
    write_wide(path, KIND.Q6_K, raw_rows(KIND.Q6_K, 60000, 256, 1))
    source = open_source(path)
    source.read("embedding", 0, 1000)
    with bounded_memory(8 << 20):
        for name in ("embedding", "head"):
            for start in range(0, 60000, 1000):
                source.read(name, start, start + 1000)
