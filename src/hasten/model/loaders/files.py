"""Plain reads into memory that is already there: no mapping, so what was read does not stay resident."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hasten.core.errors import CorruptModel, ModelNotFound

__all__ = ["fill", "opened", "read_small"]


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """A regular file open for reading, and its status. Raises ModelNotFound, or CorruptModel when a read fails."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before opening: a pipe would wait for ever
            raise ModelNotFound(f"{path} is not a file; give a GGUF file or a folder that holds a model.")
        stream = path.open("rb", buffering=0)
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise ModelNotFound(f"{str(path)!r} cannot be read ({reason}); give a GGUF file or a model folder.") from problem
    with stream:
        try:
            yield stream, os.fstat(stream.fileno())
        except OSError as problem:
            raise CorruptModel(f"{path}: reading failed ({problem.strerror}); check the disk and try again.") from problem


def fill(path: Path, stream: BinaryIO, out: Tensor) -> None:
    """Read exactly ``out``, contiguous, from where the stream stands. Raises CorruptModel when the file ends too early."""
    if not out.numel():
        return
    buffer: Any = out.view(torch.uint8).numpy().reshape(-1)
    view = memoryview(buffer)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise CorruptModel(f"{path} became shorter while it was read; load the model again.")
        view = view[count:]


def read_small(path: Path, limit: int) -> bytes:
    """A whole file of at most ``limit`` bytes. Raises ModelNotFound, or CorruptModel where it is longer."""
    with opened(path) as (stream, status):
        if status.st_size > limit:
            raise CorruptModel(f"{path} is longer than the {limit} bytes that are allowed; download the model again.")
        out = b""
        while len(out) < status.st_size and (chunk := stream.read(status.st_size - len(out))):
            out += chunk
        return out
