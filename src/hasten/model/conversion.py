"""Weights converted once and kept on disk, so that the second load only reads.

A converted file is laid out like safetensors (header length, JSON header, data) and its header is a function of the model, the
precision and this code's version alone. A file is ours exactly when it begins with the header expected and has the size
expected, so nothing in it has to be parsed or trusted. Behind the data stands a checksum of each tensor, held against what is read.
"""

from __future__ import annotations

import json
import logging
import struct
import zlib
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hasten.core.errors import CorruptModel
from hasten.core.replacement import Replacement

FORMAT = "hasten-int8-3"
PAGE = 4096  # bytes
_DTYPE_NAMES = {torch.int8: "I8", torch.uint8: "U8", torch.float32: "F32", torch.bfloat16: "BF16"}
_NUMPY_TYPES = {torch.int8: np.int8, torch.float32: np.float32}
log = logging.getLogger(__name__)


class DamagedConversion(CorruptModel):
    """A converted file that cannot be read, or whose content is not what was written."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of a converted file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def header(plan: list[Planned], fingerprint: str) -> bytes:
    """What a converted file of this plan and source begins with."""
    entries: dict[str, object] = {"__metadata__": {"format": FORMAT, "source": fingerprint}}
    offset = 0
    for item in plan:
        entries[item.name] = {
            "dtype": _DTYPE_NAMES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [offset, offset + item.bytes],
        }
        offset += item.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)
    return struct.pack("<Q", len(text)) + text


def checksum(tensor: Tensor) -> int:
    """CRC-32 of the 64-bit sums of a contiguous tensor's pages, then of the bytes left. A flipped bit, a torn page and a misplaced
    one change it, and it costs a fraction of what the CRC-32 of all bytes would."""
    data = np.frombuffer(bytes_of(tensor), np.uint8)
    whole = len(data) - len(data) % PAGE
    sums = data[:whole].view(np.uint64).reshape(-1, PAGE // 8).sum(axis=1)
    return zlib.crc32(data[whole:].tobytes(), zlib.crc32(sums.tobytes()))


def trailer(checksums: list[int]) -> bytes:
    """What a converted file ends with: the checksum of each tensor in the order of the plan."""
    return struct.pack(f"<{len(checksums)}I", *checksums)


class ConvertedReader:
    """Reads the tensors of a converted file by name, each straight into its own memory.

    Raises DamagedConversion where one is not what was written, or cannot be read.
    """

    def __init__(self, path: Path, plan: list[Planned], fingerprint: str) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        starts = list(accumulate((item.bytes for item in plan), initial=len(header(plan, fingerprint))))
        stored = bytearray(trailer([0] * len(plan)))
        try:
            self._fill(memoryview(stored), starts[-1])
        except DamagedConversion:
            self.close()
            raise
        checksums = struct.unpack(f"<{len(plan)}I", stored)
        self._places = {item.name: (item, start, expected) for item, start, expected in zip(plan, starts, checksums, strict=False)}

    def read(self, name: str, buffer: Tensor | None = None) -> Tensor:
        """The tensor, in memory of its own or at the beginning of ``buffer`` (uint8, large enough)."""
        item, start, expected = self._places[name]
        memory = torch.empty(item.bytes, dtype=torch.uint8) if buffer is None else buffer[: item.bytes]
        out = memory.view(item.dtype).view(item.shape)
        self._fill(bytes_of(out), start)
        if checksum(out) != expected:
            raise DamagedConversion(f"{self._path} is damaged in {name}")
        return out

    def _fill(self, view: memoryview, start: int) -> None:
        try:
            self._file.seek(start)
            while view:
                count = self._file.readinto(view)
                if not count:
                    raise EOFError("it ends too early")
                view = view[count:]
        except (OSError, EOFError) as problem:
            raise DamagedConversion(f"{self._path} cannot be read ({problem})") from problem

    def map(self, name: str) -> npt.NDArray[Any]:
        """The tensor as it lies in the file, read only: its pages come into memory when they are used, and leave it freely. It is
        not held against its checksum."""
        item, start, _ = self._places[name]
        return np.memmap(self._file, dtype=_NUMPY_TYPES[item.dtype], mode="r", offset=start, shape=item.shape)

    def close(self) -> None:
        self._file.close()


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    array: Any = tensor.view(torch.uint8).numpy().reshape(-1)
    return memoryview(array)


def is_converted(path: Path, plan: list[Planned], fingerprint: str) -> bool:
    """Whether ``path`` holds these converted weights, by its header and size."""
    expected = header(plan, fingerprint)
    try:
        if path.stat().st_size != len(expected) + sum(item.bytes for item in plan) + len(trailer([0] * len(plan))):
            return False
        with path.open("rb") as file:
            return file.read(len(expected)) == expected
    except OSError:
        return False


class ConvertedWriter:
    """Writes tensors in the order of the plan to a file of its own beside ``path``; ``finish`` puts it in place.

    A disk that is full or read-only costs the next load its speed, not this one its result: the first failure is logged once,
    what was written is removed, and further writes do nothing.
    """

    def __init__(self, path: Path, plan: list[Planned], fingerprint: str) -> None:
        self._path = path
        self._replacement: Replacement | None = None
        self._checksums: list[int] = []
        try:
            self._replacement = Replacement(path, durable=True)
            self._replacement.file.write(header(plan, fingerprint))
        except OSError as problem:
            self._give_up(problem)

    def write(self, tensor: Tensor) -> None:
        if self._replacement is None:
            return
        tensor = tensor.contiguous()
        self._checksums.append(checksum(tensor))
        try:
            self._replacement.file.write(bytes_of(tensor))
        except OSError as problem:
            self._give_up(problem)

    def finish(self) -> None:
        if self._replacement is None:
            return
        try:
            self._replacement.file.write(trailer(self._checksums))
            self._replacement.finish()
        except OSError as problem:
            self._give_up(problem)

    def abandon(self) -> None:
        """Remove what was written; for a conversion that was interrupted."""
        if self._replacement is not None:
            self._replacement.abandon()
            self._replacement = None

    def _give_up(self, problem: OSError) -> None:
        log.warning(
            "Converted weights could not be kept in %s (%s); the next load converts again.", self._path.parent, problem.strerror
        )
        self.abandon()
