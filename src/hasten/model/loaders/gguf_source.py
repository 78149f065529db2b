"""The weights of a GGUF file as canonical float32, read and decoded row by row."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from hasten.core.errors import CorruptModel, UnsupportedModel
from hasten.model.description import ModelDescription
from hasten.model.loaders.dequantise import READABLE, chunk_values, dequantise
from hasten.model.loaders.files import fill, opened
from hasten.model.loaders.gguf_description import describe_gguf
from hasten.model.loaders.gguf_file import GGUFFile, TensorInfo, read_gguf
from hasten.model.loaders.source import check_shapes

__all__ = ["GGUFSource", "open_gguf"]

TOP_NAMES = {"token_embd.weight": "embedding", "output.weight": "head", "output_norm.weight": "final_norm"}
FREQUENCY_FACTORS = "rope_freqs.weight"
LAYER_NAMES = {
    "attn_norm.weight": "attention_norm",
    "attn_q.weight": "q",
    "attn_k.weight": "k",
    "attn_v.weight": "v",
    "attn_output.weight": "o",
    "attn_q.bias": "q_bias",
    "attn_k.bias": "k_bias",
    "attn_v.bias": "v_bias",
    "attn_output.bias": "o_bias",
    "attn_q_norm.weight": "q_norm",
    "attn_k_norm.weight": "k_norm",
    "post_attention_norm.weight": "post_attention_norm",
    "ffn_norm.weight": "mlp_norm",
    "ffn_gate.weight": "gate",
    "ffn_up.weight": "up",
    "ffn_down.weight": "down",
    "ffn_gate.bias": "gate_bias",
    "ffn_up.bias": "up_bias",
    "ffn_down.bias": "down_bias",
    "post_ffw_norm.weight": "post_mlp_norm",
}
LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(.+)")
PERMUTED = {"q", "k", "q_bias", "k_bias"}


@dataclass(frozen=True, slots=True)
class GGUFSource:
    """A ``WeightSource`` over one GGUF file. Holds the header only; every read opens the file anew.

    The architectures "llama" and "smollm3" store the rows of queries and keys so that rotation pairs neighbours; reading brings
    them back to halves, as everything else here is.
    """

    path: Path
    description: ModelDescription
    fingerprint: str
    tensors: dict[str, TensorInfo]
    interleaved: bool

    def names(self) -> set[str]:
        return set(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def stored_dtype(self, name: str) -> str:
        return self.tensors[name].kind.name.lower()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        info = self.tensors[name]
        stop = info.shape[0] if stop is None else stop
        assert 0 <= start <= stop <= info.shape[0], "row range outside the tensor"
        return self._in_halves(name, partial(_read_rows, self.path, info), start, stop)

    def read_blocks(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of a matrix as they lie in the file: uint8 [rows, bytes of a row]. Raises CorruptModel."""
        info = self.tensors[name]
        assert len(info.shape) == 2, "a vector has no rows"
        assert 0 <= start <= stop <= info.shape[0], "row range outside the tensor"
        return self._in_halves(name, partial(_read_raw, self.path, info), start, stop)

    def _in_halves(self, name: str, read: Callable[[int, int], Tensor], start: int, stop: int) -> Tensor:
        """What ``read`` gives for a range of rows, with rotated rows put into halves where the file pairs neighbours."""
        if not self.interleaved or name.rpartition(".")[2] not in PERMUTED:
            return read(start, stop)
        size = self.description.head_dim
        first, last = start // size * size, -(-stop // size) * size
        rows = read(first, last)
        heads = rows.view(-1, size // 2, 2, *rows.shape[1:])
        return heads.transpose(1, 2).reshape(-1, *rows.shape[1:])[start - first : stop - first]


def open_gguf(path: Path) -> GGUFSource:
    """Check the file and name its tensors. Raises what ``read_gguf`` does, and for each tensor out of place."""
    file = read_gguf(path)
    description = describe_gguf(file)
    stored = _canonical_names(file, description)
    tensors = {name: file.tensors[old] for name, old in stored.items()}
    for name, info in tensors.items():
        if info.kind not in READABLE:
            allowed = ", ".join(sorted(kind.name for kind in READABLE))
            raise UnsupportedModel(f"{path}: the tensor {stored[name]!r:.100} is {info.kind.name}; Hasten reads {allowed}.")
    check_shapes(path, description, {name: info.shape for name, info in tensors.items()}, stored)
    description = replace(description, frequency_factors=_frequency_factors(file, description))
    return GGUFSource(
        path=path,
        description=description,
        fingerprint=_fingerprint(file),
        tensors=tensors,
        interleaved=file.metadata["general.architecture"] in ("llama", "smollm3"),
    )


def _canonical_names(file: GGUFFile, description: ModelDescription) -> dict[str, str]:
    """Canonical name to the file's name. A tensor that no supported model has would be silently left out: refused."""
    found: dict[str, str] = {}
    for name in file.tensors:
        match = LAYER.fullmatch(name)
        if name in TOP_NAMES:
            found[TOP_NAMES[name]] = name
        elif match and match[2] in LAYER_NAMES and int(match[1]) < description.layers:
            found[f"layers.{match[1]}.{LAYER_NAMES[match[2]]}"] = name
        elif name != FREQUENCY_FACTORS:
            raise UnsupportedModel(
                f"{file.path} holds the tensor {name!r:.100}, which Hasten's decoder has no use for; choose another model."
            )
    return found


def _frequency_factors(file: GGUFFile, description: ModelDescription) -> tuple[float, ...]:
    info = file.tensors.get(FREQUENCY_FACTORS)
    if info is None:
        return ()
    if info.shape != (description.head_dim // 2,) or info.kind is not GGMLQuantizationType.F32:
        raise CorruptModel(
            f"{file.path}: {FREQUENCY_FACTORS!r} is not {description.head_dim // 2} float32 values; convert the model again."
        )
    factors = tuple(_read_rows(file.path, info, 0, info.shape[0]).tolist())
    if not all(math.isfinite(factor) and factor > 0.0 for factor in factors):
        raise CorruptModel(f"{file.path}: {FREQUENCY_FACTORS!r} holds values that are not above 0; convert the model again.")
    return factors


def _fingerprint(file: GGUFFile) -> str:
    with opened(file.path) as (stream, status):
        digest = hashlib.sha256(f"gguf {status.st_size} {status.st_mtime_ns} ".encode())
        left = file.data_start
        while left and (chunk := stream.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def _read_rows(path: Path, info: TensorInfo, start: int, stop: int) -> Tensor:
    """Rows of a matrix, or elements of a vector, decoded a cache-sized chunk at a time."""
    if len(info.shape) == 1:
        return _read_vector(path, info)[start:stop]
    columns = math.prod(info.shape[1:])
    row_bytes = info.size // info.shape[0]
    step = max(1, chunk_values(info.kind) // columns)
    out = torch.empty(stop - start, columns)
    buffer = torch.empty(min(step, stop - start), row_bytes, dtype=torch.uint8)
    with opened(path) as (stream, _):
        stream.seek(info.offset + start * row_bytes)
        for row in range(0, stop - start, step):
            rows = min(step, stop - start - row)
            fill(path, stream, buffer[:rows])
            dequantise(buffer[:rows], info.kind, out[row : row + rows])
    return out


def _read_raw(path: Path, info: TensorInfo, start: int, stop: int) -> Tensor:
    """Rows of a matrix as they lie in the file, uint8 [rows, bytes of a row]."""
    row_bytes = info.size // info.shape[0]
    out = torch.empty(stop - start, row_bytes, dtype=torch.uint8)
    with opened(path) as (stream, _):
        stream.seek(info.offset + start * row_bytes)
        fill(path, stream, out)
    return out


def _read_vector(path: Path, info: TensorInfo) -> Tensor:
    raw = torch.empty(1, info.size, dtype=torch.uint8)
    with opened(path) as (stream, _):
        stream.seek(info.offset)
        fill(path, stream, raw)
    out = torch.empty(1, info.shape[0])
    dequantise(raw, info.kind, out)
    return out[0]
