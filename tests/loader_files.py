"""Small model files for the tests of the loaders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

KIND = GGMLQuantizationType
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 64, 96, 4, 2, 16, 40


def raw_rows(kind: GGMLQuantizationType, rows: int, columns: int, seed: int) -> np.ndarray:
    """Random bytes of a block format: uint8 [rows, bytes of a row]."""
    length, size = GGML_QUANT_SIZES[kind]
    return np.random.default_rng(seed).integers(0, 256, (rows, columns // length * size), dtype=np.uint8)


def tensor_shapes(architecture: str, layers: int, tied: bool, biases: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
    """GGUF names and shapes of a tiny model; ``biases`` such as ``attn_q``."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    if not tied:
        shapes["output.weight"] = (VOCABULARY, HIDDEN)
    for layer in range(layers):
        own: dict[str, tuple[int, ...]] = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HEADS * HEAD_DIM, HIDDEN),
            "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_output": (HIDDEN, HEADS * HEAD_DIM),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN),
            "ffn_down": (HIDDEN, INNER),
        }
        if architecture in ("qwen3", "gemma3"):
            own |= {"attn_q_norm": (HEAD_DIM,), "attn_k_norm": (HEAD_DIM,)}
        if architecture in ("gemma2", "gemma3"):
            own |= {"post_attention_norm": (HIDDEN,), "post_ffw_norm": (HIDDEN,)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in own.items()}
        shapes |= {f"blk.{layer}.{name}.bias": own[name][:1] for name in biases}
    return shapes


def metadata(architecture: str, layers: int) -> dict[str, Any]:
    own: dict[str, Any] = {
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "block_count": layers,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "context_length": 512,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 5000.0,
    }
    if architecture in ("gemma2", "gemma3"):
        own["attention.sliding_window"] = 32
    return {f"{architecture}.{key}": value for key, value in own.items()}


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def write_gguf(
    path: Path,
    architecture: str = "llama",
    layers: int = 2,
    tied: bool = False,
    biases: tuple[str, ...] = (),
    values: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    kind: GGMLQuantizationType = KIND.F32,
    drop: str = "",
    named: str | None = None,
) -> dict[str, np.ndarray]:
    """Write a tiny model with random weights (matrices in ``kind``) and give its tensors as written.

    ``values``: metadata to change, None to leave a key out; ``named``: the architecture to write instead.
    """
    writer = gguf.GGUFWriter(path, named or architecture)
    for key, value in (metadata(architecture, layers) | (values or {})).items():
        if value is not None:
            add_value(writer, key, value)
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for index, (name, shape) in enumerate(tensor_shapes(architecture, layers, tied, biases).items()):
        if name == drop:
            continue
        if len(shape) == 1 or kind is KIND.F32:
            tensors[name] = random.standard_normal(shape).astype(np.float32)
            writer.add_tensor(name, tensors[name])
        else:
            tensors[name] = raw_rows(kind, *shape, seed=index)
            writer.add_tensor(name, tensors[name], raw_dtype=kind)
    for name, array in (extra or {}).items():
        tensors[name] = array
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def rewrite(path: Path, content: bytes) -> None:
    """Put a new file in the place of an old one; writing over it would make some file systems flush, thousands of times."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@contextmanager
def bounded_memory(limit: int) -> Iterator[None]:
    """Fail when the block makes this process hold ``limit`` bytes more of main memory than before, even for a moment."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        pytest.skip("peak memory is read from /proc, which this system does not have")

    def amount(key: str) -> int:
        return int(status.read_text().split(f"{key}:")[1].split()[0]) * 1024

    reset.write_text("5")  # the peak starts anew
    before = amount("VmRSS")
    yield
    assert amount("VmHWM") - before < limit
