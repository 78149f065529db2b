"""The weights of a Hugging Face folder (config.json and safetensors) as canonical float32, read row by row. No pickle."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hasten.core.errors import CorruptModel, ModelNotFound, UnsupportedModel
from hasten.model.description import GEMMAS, ModelDescription
from hasten.model.loaders.fields import Fields
from hasten.model.loaders.files import read_small
from hasten.model.loaders.folder_description import describe_folder
from hasten.model.loaders.safetensors_file import (
    READABLE,
    SafetensorsFile,
    StoredTensor,
    parse_json,
    read_rows,
    read_safetensors,
)
from hasten.model.loaders.source import check_shapes

__all__ = ["FolderSource", "open_folder"]

MAXIMUM_JSON = 1 << 23
MAXIMUM_SHARDS = 1 << 12
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
BODIES = ("model.", "language_model.model.", "model.language_model.", "")  # where the decoder may stand among the names
HEADS = ("lm_head.weight", "language_model.lm_head.weight")
IGNORED = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
LAYER = re.compile(r"layers\.(0|[1-9][0-9]{0,5})\.(.+)")
TOP_NAMES = {"embed_tokens.weight": "embedding", "norm.weight": "final_norm"}
LAYER_NAMES = {
    "input_layernorm.weight": "attention_norm",
    "self_attn.q_proj.weight": "q",
    "self_attn.k_proj.weight": "k",
    "self_attn.v_proj.weight": "v",
    "self_attn.o_proj.weight": "o",
    "self_attn.q_proj.bias": "q_bias",
    "self_attn.k_proj.bias": "k_bias",
    "self_attn.v_proj.bias": "v_bias",
    "self_attn.o_proj.bias": "o_bias",
    "self_attn.q_norm.weight": "q_norm",
    "self_attn.k_norm.weight": "k_norm",
    "post_attention_layernorm.weight": "mlp_norm",
    "mlp.gate_proj.weight": "gate",
    "mlp.up_proj.weight": "up",
    "mlp.down_proj.weight": "down",
    "mlp.gate_proj.bias": "gate_bias",
    "mlp.up_proj.bias": "up_bias",
    "mlp.down_proj.bias": "down_bias",
}
GEMMA_LAYER_NAMES = LAYER_NAMES | {
    "post_attention_layernorm.weight": "post_attention_norm",
    "pre_feedforward_layernorm.weight": "mlp_norm",
    "post_feedforward_layernorm.weight": "post_mlp_norm",
}
WITHOUT_MEANING = "rotary_emb.inv_freq"  # a buffer that older checkpoints carry along


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A ``WeightSource`` over a folder. Holds headers only; every read opens its file anew.

    Gemma's checkpoints store norm weights less one; the one is added in float32 on reading.
    """

    path: Path
    description: ModelDescription
    fingerprint: str
    tensors: dict[str, StoredTensor]

    def names(self) -> set[str]:
        return set(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def stored_dtype(self, name: str) -> str:
        return self.tensors[name].dtype.lower()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        tensor = self.tensors[name]
        stop = tensor.shape[0] if stop is None else stop
        assert 0 <= start <= stop <= tensor.shape[0], "row range outside the tensor"
        rows = read_rows(tensor, start, stop)
        return rows.add_(1.0) if self.description.family in GEMMAS and name.endswith("norm") else rows


def open_folder(path: Path) -> FolderSource:
    """Check the folder's files and name their tensors. Raises ModelNotFound, CorruptModel or UnsupportedModel."""
    config = _json(path / "config.json", required=True)
    generation = _json(path / "generation_config.json", required=False)  # for the fingerprint, by which conversions are kept
    description = describe_folder(Fields(path / "config.json", parse_json(path / "config.json", config)))
    files, stored = _stored(path)
    tensors = _canonical(path, stored, description)
    for tensor in tensors.values():
        if tensor.dtype not in READABLE:
            raise UnsupportedModel(
                f"{tensor.path}: the tensor {tensor.name!r} is {tensor.dtype}; Hasten reads {', '.join(READABLE)} from folders."
            )
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    check_shapes(path, description, shapes, {name: tensor.name for name, tensor in tensors.items()})
    return FolderSource(path, description, _fingerprint(files, (config, generation)), tensors)


def _json(path: Path, required: bool) -> bytes:
    if path.exists():
        return read_small(path, MAXIMUM_JSON)
    if required:
        raise ModelNotFound(f"{path.parent} has no {path.name}; give a GGUF file or a folder with config.json and safetensors.")
    return b"{}"


def _stored(path: Path) -> tuple[list[SafetensorsFile], dict[str, StoredTensor]]:
    """The folder's files and all their tensors by their own names."""
    if (path / SINGLE).exists():
        file = read_safetensors(path / SINGLE)
        return [file], file.tensors
    if (path / INDEX).exists():
        return _sharded(path)
    pickles = sorted(item.name for item in path.iterdir() if item.suffix in PICKLES)
    if pickles:
        raise UnsupportedModel(f"{path} holds pickled weights ({pickles[0]}), which could run code; convert it to safetensors.")
    raise ModelNotFound(f"{path} has neither {SINGLE} nor {INDEX}; give a folder with safetensors weights.")


def _sharded(path: Path) -> tuple[list[SafetensorsFile], dict[str, StoredTensor]]:
    index = path / INDEX
    where: Any = parse_json(index, read_small(index, MAXIMUM_JSON)).get("weight_map")
    if type(where) is not dict or not all(type(shard) is str for shard in where.values()):
        raise CorruptModel(f"{index} does not say which file each tensor is in; download the model again.")
    shards = sorted(set(where.values()))
    if len(shards) > MAXIMUM_SHARDS:
        raise CorruptModel(f"{index} names {len(shards)} files where {MAXIMUM_SHARDS} are allowed; download the model again.")
    for shard in shards:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors", shard):
            raise CorruptModel(f"{index} names {shard!r:.100}, which is no plain file name; download the model again.")
    files = {shard: read_safetensors(path / shard) for shard in shards}
    for name, shard in where.items():
        if name not in files[shard].tensors:
            raise CorruptModel(f"{path / shard} lacks the tensor {name!r:.100} that {INDEX} promises; download it again.")
    return list(files.values()), {name: files[shard].tensors[name] for name, shard in where.items()}


def _canonical(path: Path, stored: dict[str, StoredTensor], description: ModelDescription) -> dict[str, StoredTensor]:
    """By canonical name. A tensor of the decoder that has no name here would be silently left out: refused."""
    body = next((body for body in BODIES if f"{body}embed_tokens.weight" in stored), None)
    if body is None:
        raise CorruptModel(f"{path} lacks the tensor 'model.embed_tokens.weight'; download or convert it again.")
    layer_names = GEMMA_LAYER_NAMES if description.family in GEMMAS else LAYER_NAMES
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        inner = name.removeprefix(body)
        match = LAYER.fullmatch(inner)
        if name in HEADS:
            if not description.tied_head:
                found["head"] = tensor
        elif name.startswith(body) and inner in TOP_NAMES:
            found[TOP_NAMES[inner]] = tensor
        elif name.startswith(body) and match and match[2] in layer_names and int(match[1]) < description.layers:
            found[f"layers.{match[1]}.{layer_names[match[2]]}"] = tensor
        elif not name.endswith(WITHOUT_MEANING) and not (description.family == "gemma3" and name.startswith(IGNORED)):
            raise UnsupportedModel(
                f"{tensor.path} holds the tensor {name!r:.100}, which Hasten's decoder has no use for; choose another model."
            )
    return found


def _fingerprint(files: Iterable[SafetensorsFile], texts: Iterable[bytes]) -> str:
    digest = hashlib.sha256(b"folder")
    for text in texts:
        digest.update(len(text).to_bytes(8, "little") + text)
    for file in files:
        digest.update(f"{file.path.name} {file.size} {file.modified_ns} {len(file.header)} ".encode() + file.header)
    return digest.hexdigest()
