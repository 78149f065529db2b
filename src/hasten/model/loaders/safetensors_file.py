"""The header of a safetensors file, checked before anything is allocated from it, and rows of its tensors.

Format: https://huggingface.co/docs/safetensors. Eight bytes with the header's length, a JSON header, then the data without
gaps. The file is taken to be hostile.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

import torch
from torch import Tensor

from hasten.core.errors import CorruptModel
from hasten.model.loaders.files import fill, opened

__all__ = ["READABLE", "SafetensorsFile", "StoredTensor", "parse_json", "read_rows", "read_safetensors"]

MAXIMUM_HEADER = 1 << 23  # a thousand tensors need about 1 << 18
MAXIMUM_DIMENSIONS = 8
CHUNK_VALUES = 1 << 22
READABLE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BYTES = {
    name: width
    for width, names in (
        (1, "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0"),
        (2, "U16 I16 F16 BF16"),
        (4, "U32 I32 F32"),
        (8, "U64 I64 F64"),
    )
    for name in names.split()
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies. ``dtype`` is safetensors' name; ``offset`` counts from the start of the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """A checked header; ``header`` is its bytes as they stand, for the fingerprint."""

    path: Path
    tensors: dict[str, StoredTensor]
    header: bytes
    size: int
    modified_ns: int


def parse_json(path: Path, text: bytes) -> dict[str, Any]:
    """A JSON object without doubled keys, from hostile bytes of bounded length. Raises CorruptModel."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key appears twice")
        return result

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as problem:
        raise CorruptModel(f"{path} does not hold sound JSON ({problem!s:.100}); download the model again.") from problem
    if type(value) is not dict:
        raise CorruptModel(f"{path} does not hold a JSON object; download the model again.")
    return value


def read_safetensors(path: Path) -> SafetensorsFile:
    """Read and check the header of one file. Raises ModelNotFound or CorruptModel."""
    with opened(path) as (stream, status):
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAXIMUM_HEADER, status.st_size - 8):
            _corrupt(path, f"it announces a header of {length} bytes in a file of {status.st_size}")
        header = stream.read(length)
    entries = parse_json(path, header)
    entries.pop("__metadata__", None)
    start = 8 + length
    spans = [_entry(path, name, entry, start) for name, entry in entries.items()]
    end = start
    for tensor, begin, stop in sorted(spans, key=lambda span: span[1:]):
        if begin != end:
            _corrupt(path, f"the tensor {tensor.name!r:.100} does not start where the one before it ends")
        end = stop
    if end != status.st_size:
        _corrupt(path, f"its tensors end at byte {end} of {status.st_size}")
    tensors = {tensor.name: tensor for tensor, _, _ in spans}
    return SafetensorsFile(path, tensors, prefix + header, status.st_size, status.st_mtime_ns)


def _corrupt(path: Path, what: str) -> Never:
    raise CorruptModel(f"{path} is not a sound safetensors file: {what}; download it again.")


def _entry(path: Path, name: str, entry: Any, start: int) -> tuple[StoredTensor, int, int]:
    """One checked tensor and where it begins and ends in the file."""
    if type(entry) is not dict:
        _corrupt(path, f"the entry of {name!r:.100} is no object")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if type(dtype) is not str or dtype not in BYTES:
        _corrupt(path, f"the tensor {name!r:.100} has the unknown type {dtype!r:.40}")
    if not _naturals(shape) or len(shape) > MAXIMUM_DIMENSIONS or not _naturals(offsets) or len(offsets) != 2:
        _corrupt(path, f"the tensor {name!r:.100} has no sound shape and offsets")
    size = BYTES[dtype]
    for length in shape:
        size *= length
    begin, stop = offsets
    if stop - begin != size:
        _corrupt(path, f"the tensor {name!r:.100} of {size} bytes lies in {stop - begin}")
    return StoredTensor(path, name, dtype, tuple(shape), start + begin), start + begin, start + stop


def _naturals(value: Any) -> bool:
    return type(value) is list and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def read_rows(tensor: StoredTensor, start: int, stop: int) -> Tensor:
    """Rows of a matrix or elements of a vector as float32. Its dtype is in READABLE; raises CorruptModel when reading fails."""
    dtype = READABLE[tensor.dtype]
    row_shape = tensor.shape[1:]
    row_values = torch.Size(row_shape).numel()
    out = torch.empty(stop - start, *row_shape)
    step = len(out) if dtype is torch.float32 else max(1, CHUNK_VALUES // max(1, row_values))
    buffer = out if dtype is torch.float32 else torch.empty(min(step, len(out)), *row_shape, dtype=dtype)
    with opened(tensor.path) as (stream, _):
        stream.seek(tensor.offset + start * row_values * dtype.itemsize)
        for row in range(0, len(out), max(1, step)):
            rows = min(step, len(out) - row)
            fill(tensor.path, stream, buffer[:rows])
            if buffer is not out:
                out[row : row + rows] = buffer[:rows]
    return out
