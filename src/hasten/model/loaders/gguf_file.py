"""The header of a GGUF file: metadata and the table of tensors, checked before anything is allocated from it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian. The file is taken to be
hostile: every count, length, offset and shape is bounded by the size of the file before it is used. Reads the header
only; weights are read by ``gguf_source``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Never

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from hasten.core.errors import CorruptModel, UnsupportedModel
from hasten.model.loaders.files import opened

__all__ = ["GGUFFile", "TensorInfo", "read_gguf"]

MAXIMUM_HEADER = 1 << 28  # bytes; the largest vocabularies in use need about 1 << 24
MAXIMUM_ENTRIES = 1 << 23  # array entries in the whole header
MAXIMUM_KEYS = 1 << 16
MAXIMUM_TENSORS = 1 << 16
MAXIMUM_NAME = 1 << 8  # bytes of a key or a tensor name
MAXIMUM_DEPTH = 4  # arrays in arrays
MAXIMUM_DIMENSIONS = 4
MAXIMUM_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32
CHUNK = 1 << 20

SMALLEST_KEY = 8 + 1 + 4 + 1  # name length, name, type, value
SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8  # name length, name, dimensions, one dimension, type, offset

BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8"}
SMALLEST_ENTRY = {STRING: 8, ARRAY: 4 + 8} | {kind: np.dtype(form).itemsize for kind, form in NUMBERS.items()}

_length = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies. ``shape`` is in numpy order ([outputs, inputs]); ``offset`` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A checked header. Metadata values are int, float, bool, str or lists of these.

    Bytes of a string that are not UTF-8 are kept as lone surrogates (``surrogateescape``), so that
    ``text.encode("utf-8", "surrogateescape")`` gives back what the file holds.
    """

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    alignment: int
    data_start: int
    file_size: int


def read_gguf(path: Path | str) -> GGUFFile:
    """Read and check the header of one GGUF file.

    Raises ModelNotFound (no such file), CorruptModel (truncated, malformed or hostile) or UnsupportedModel (version 1,
    big endian, a tensor type that is not known).
    """
    path = Path(path)
    with opened(path) as (stream, status):
        return _read_header(_Cursor(path, stream, status.st_size))


def _read_header(cursor: _Cursor) -> GGUFFile:
    version = _read_version(cursor)
    tensors = cursor.count(SMALLEST_TENSOR, MAXIMUM_TENSORS, "tensors")
    keys = cursor.count(SMALLEST_KEY, MAXIMUM_KEYS, "metadata keys")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.string(MAXIMUM_NAME, "a metadata key")
        if key in metadata:
            cursor.corrupt(f"the metadata key {key!r:.100} appears twice")
        metadata[key] = cursor.value(cursor.number("<u4"), f"the metadata key {key!r:.100}")
    alignment = _alignment(cursor, metadata)
    infos: dict[str, TensorInfo] = {}
    for _ in range(tensors):
        info = _read_tensor(cursor, alignment)
        if info.name in infos:
            cursor.corrupt(f"the tensor {info.name!r:.100} appears twice")
        infos[info.name] = info
    data_start = -(-cursor.position // alignment) * alignment
    return GGUFFile(
        path=cursor.path,
        version=version,
        metadata=metadata,
        tensors=_place(cursor, infos, data_start),
        alignment=alignment,
        data_start=data_start,
        file_size=cursor.file_size,
    )


def _read_version(cursor: _Cursor) -> int:
    magic = cursor.bytes(4)
    if magic != b"GGUF":
        cursor.corrupt(f"it starts with {bytes(magic)!r:.100} instead of b'GGUF', so it is no GGUF file")
    version = int(cursor.number("<u4"))
    if version & 0xFFFF == 0 and version:
        raise UnsupportedModel(f"{cursor.path} is a big-endian GGUF file; Hasten reads little-endian ones, so convert it.")
    if version not in (2, 3):
        raise UnsupportedModel(f"{cursor.path} is GGUF version {version}; Hasten reads versions 2 and 3, so convert it again.")
    return version


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 0 < value <= MAXIMUM_ALIGNMENT or value & (value - 1):
        cursor.corrupt(f"general.alignment is {value!r:.40} where a power of two up to {MAXIMUM_ALIGNMENT} is allowed")
    return value


def _read_tensor(cursor: _Cursor, alignment: int) -> TensorInfo:
    """One row of the table of tensors; its offset still counts from the start of the data."""
    name = cursor.string(MAXIMUM_NAME, "a tensor name")
    dimensions = cursor.number("<u4")
    if not 1 <= dimensions <= MAXIMUM_DIMENSIONS:
        cursor.corrupt(f"the tensor {name!r:.100} has {dimensions} dimensions where 1 to {MAXIMUM_DIMENSIONS} are allowed")
    shape = tuple(reversed([int(cursor.number("<u8")) for _ in range(dimensions)]))
    code = cursor.number("<u4")
    try:
        kind = GGMLQuantizationType(code)
        block_length, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise UnsupportedModel(
            f"{cursor.path}: the tensor {name!r:.100} has the unknown type number {code}; use one such as Q4_K."
        ) from None
    elements = 1
    for length in shape:
        elements *= length
    size = elements // block_length * block_bytes
    if elements == 0 or size > cursor.file_size:
        cursor.corrupt(f"the tensor {name!r:.100} of shape {shape} does not fit into the file's {cursor.file_size} bytes")
    if shape[-1] % block_length:
        cursor.corrupt(f"the tensor {name!r:.100} has rows of {shape[-1]} values, no multiple of {kind.name}'s {block_length}")
    offset = int(cursor.number("<u8"))
    if offset % alignment:
        cursor.corrupt(f"the tensor {name!r:.100} starts at byte {offset}, no multiple of the alignment {alignment}")
    return TensorInfo(name=name, shape=shape, kind=kind, offset=offset, size=size)


def _place(cursor: _Cursor, infos: dict[str, TensorInfo], data_start: int) -> dict[str, TensorInfo]:
    """Offsets from the start of the file, inside it and without overlap."""
    end = data_start
    for info in sorted(infos.values(), key=lambda info: info.offset):
        start = data_start + info.offset
        if start < end:
            cursor.corrupt(f"the tensor {info.name!r:.100} overlaps the tensor before it")
        end = start + info.size
        if end > cursor.file_size:
            cursor.corrupt(f"the tensor {info.name!r:.100} ends at byte {end} of {cursor.file_size}, so the file was cut short")
    return {
        name: TensorInfo(name=name, shape=info.shape, kind=info.kind, offset=data_start + info.offset, size=info.size)
        for name, info in infos.items()
    }


@dataclass(slots=True)
class _Cursor:
    """Reads forward through the header, fetching the file in chunks; never past the end and never past the header bound."""

    path: Path
    stream: BinaryIO
    file_size: int
    position: int = 0
    entries: int = 0
    buffer: bytearray = field(default_factory=bytearray)

    def corrupt(self, what: str) -> Never:
        raise CorruptModel(f"{self.path} is not a sound GGUF file: {what}; download or convert it again.")

    @property
    def remaining(self) -> int:
        return self.file_size - self.position

    def need(self, length: int) -> None:
        """Make ``length`` more bytes available in the buffer."""
        end = self.position + length
        if end > self.file_size:
            self.corrupt(f"its header runs past the end of the file ({self.file_size} bytes)")
        if end > MAXIMUM_HEADER:
            self.corrupt(f"its header is longer than the {MAXIMUM_HEADER} bytes that are allowed")
        while len(self.buffer) < end:
            chunk = self.stream.read(max(CHUNK, end - len(self.buffer)))
            if not chunk:
                self.corrupt("it became shorter while it was read")
            self.buffer += chunk

    def bytes(self, length: int) -> bytearray:
        self.need(length)
        start = self.position
        self.position += length
        return self.buffer[start : self.position]

    def number(self, form: str) -> Any:
        """One number of a numpy form, as a Python number."""
        return np.frombuffer(self.bytes(np.dtype(form).itemsize), dtype=form)[0].item()

    def count(self, smallest: int, limit: int, what: str) -> int:
        """A 64-bit count of things that take ``smallest`` bytes or more each."""
        value = int(self.number("<u8"))
        if value > min(limit, self.remaining // smallest):
            self.corrupt(f"it announces {value} {what}, more than its size allows")
        return value

    def string(self, limit: int, what: str) -> str:
        length = int(self.number("<u8"))
        if length > min(limit, self.remaining):
            self.corrupt(f"{what} is announced with {length} bytes, more than is allowed")
        return self.bytes(length).decode("utf-8", "surrogateescape")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        """One metadata value: a number, a string, or an array of values of one kind."""
        if kind == STRING:
            return self.string(MAXIMUM_HEADER, what)
        if kind == ARRAY:
            return self.array(what, depth)
        if kind not in NUMBERS:
            self.corrupt(f"{what} has the value type {kind}, which GGUF does not have")
        value = self.number(NUMBERS[kind])
        return self.truth([value], what)[0] if kind == BOOL else value

    def array(self, what: str, depth: int) -> list[Any]:
        if depth >= MAXIMUM_DEPTH:
            self.corrupt(f"{what} nests arrays more than {MAXIMUM_DEPTH} deep")
        kind = self.number("<u4")
        if kind not in SMALLEST_ENTRY:
            self.corrupt(f"{what} has the entry type {kind}, which GGUF does not have")
        count = self.count(SMALLEST_ENTRY[kind], MAXIMUM_ENTRIES - self.entries, f"entries for {what}")
        self.entries += count
        if kind == STRING:
            return self.strings(count, what)
        if kind == ARRAY:
            return [self.array(what, depth + 1) for _ in range(count)]
        values: list[Any] = np.frombuffer(self.bytes(count * SMALLEST_ENTRY[kind]), dtype=NUMBERS[kind]).tolist()
        return self.truth(values, what) if kind == BOOL else values

    def strings(self, count: int, what: str) -> list[str]:
        """``count`` strings in a row; apart from ``string`` because vocabularies have 10^5 of them."""
        result: list[str] = []
        buffer, available = self.buffer, len(self.buffer)
        for _ in range(count):
            if self.position + 8 > available:
                self.need(8)
                available = len(buffer)
            start = self.position + 8
            end = start + _length.unpack_from(buffer, self.position)[0]
            if end > available:
                if end > self.file_size:
                    self.corrupt(f"{what} has an entry of {end - start} bytes, more than the file holds")
                self.need(end - self.position)
                available = len(buffer)
            result.append(buffer[start:end].decode("utf-8", "surrogateescape"))
            self.position = end
        return result

    def truth(self, values: list[int], what: str) -> list[bool]:
        if any(value > 1 for value in values):
            self.corrupt(f"{what} has a truth value other than 0 and 1")
        return [value == 1 for value in values]
