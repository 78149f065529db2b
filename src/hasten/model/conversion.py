"""Weights converted once and kept on disk, so that the second load only reads.

A converted file is laid out like safetensors (header length, JSON header, data) and its header is a function of the model, the
precision and this code's version alone. A file is ours exactly when it begins with the header expected and has the size
expected, so nothing in it has to be parsed or trusted.
"""

from __future__ import annotations

import json
import logging
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FORMAT = "hasten-int8-2"
_DTYPE_NAMES = {torch.int8: "I8", torch.uint8: "U8", torch.float32: "F32", torch.bfloat16: "BF16"}
_NUMPY_TYPES = {torch.int8: np.int8, torch.float32: np.float32}
log = logging.getLogger(__name__)


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


class ConvertedReader:
    """Reads the tensors of a converted file by name, each straight into its own memory."""

    def __init__(self, path: Path, plan: list[Planned], fingerprint: str) -> None:
        self._file = path.open("rb", buffering=0)
        starts = accumulate((item.bytes for item in plan), initial=len(header(plan, fingerprint)))
        self._places = {item.name: (item, start) for item, start in zip(plan, starts, strict=False)}

    def read(self, name: str, buffer: Tensor | None = None) -> Tensor:
        """The tensor, in memory of its own or at the beginning of ``buffer`` (uint8, large enough)."""
        item, start = self._places[name]
        self._file.seek(start)
        memory = torch.empty(item.bytes, dtype=torch.uint8) if buffer is None else buffer[: item.bytes]
        out = memory.view(item.dtype).view(item.shape)
        view = bytes_of(out)
        while view:
            view = view[self._file.readinto(view) or _truncated() :]
        return out

    def map(self, name: str) -> npt.NDArray[Any]:
        """The tensor as it lies in the file, read only: its pages come into memory when they are used, and leave it freely."""
        item, start = self._places[name]
        return np.memmap(self._file, dtype=_NUMPY_TYPES[item.dtype], mode="r", offset=start, shape=item.shape)

    def close(self) -> None:
        self._file.close()


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    array: Any = tensor.view(torch.uint8).numpy().reshape(-1)
    return memoryview(array)


def _truncated() -> int:
    raise EOFError("the converted weights end too early")


def is_converted(path: Path, plan: list[Planned], fingerprint: str) -> bool:
    """Whether ``path`` holds exactly these converted weights."""
    expected = header(plan, fingerprint)
    try:
        if path.stat().st_size != len(expected) + sum(item.bytes for item in plan):
            return False
        with path.open("rb") as file:
            return file.read(len(expected)) == expected
    except OSError:
        return False


class ConvertedWriter:
    """Writes tensors in the order of the plan to a temporary file beside ``path``; ``finish`` puts it in place.

    A disk that is full or read-only costs the next load its speed, not this one its result: the first failure is logged once,
    what was written is removed, and further writes do nothing.
    """

    def __init__(self, path: Path, plan: list[Planned], fingerprint: str) -> None:
        self._path = path
        self._temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        self._file: BinaryIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb")
            self._file.write(header(plan, fingerprint))
        except OSError as problem:
            self._give_up(problem)

    def write(self, tensor: Tensor) -> None:
        if self._file is None:
            return
        try:
            self._file.write(bytes_of(tensor.contiguous()))
        except OSError as problem:
            self._give_up(problem)

    def finish(self) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
            self._temporary.replace(self._path)
        except OSError as problem:
            self._give_up(problem)

    def abandon(self) -> None:
        """Remove what was written; for a conversion that was interrupted."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def _give_up(self, problem: OSError) -> None:
        log.warning(
            "Converted weights could not be kept in %s (%s); the next load converts again.", self._path.parent, problem.strerror
        )
        self.abandon()
