"""A converted file that takes long to make: tensors that are whole stay when the work is interrupted, and it goes on from there."""

from __future__ import annotations

import os
from itertools import accumulate, takewhile
from pathlib import Path

import torch
from torch import Tensor

from hasten.core.errors import ModelError
from hasten.core.replacement import refusal, sync_folder
from hasten.model.conversion import Planned, bytes_of, checksum, header, trailer


def partial_of(path: Path) -> Path:
    """Where what there is of ``path`` lies until it is whole."""
    return path.with_name(f"{path.name}.partial")


class PartialConversion:
    """Tensors in the order of the plan, in ``path`` with ``.partial`` behind it until ``finish``. Not for two processes at once.

    Raises ModelError where the disk refuses; what was written before stays whole.
    """

    def __init__(self, path: Path, plan: list[Planned], fingerprint: str) -> None:
        self._path, self._plan = path, plan
        self.partial = partial_of(path)
        first = header(plan, fingerprint)
        self._starts = list(accumulate((item.bytes for item in plan), initial=len(first)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.partial.open("r+b" if self.partial.exists() else "w+b")
            if self._file.read(len(first)) != first:  # of another model or version, or nothing yet
                self._file.seek(0)
                self._file.write(first)
                self._file.truncate()
            size = self._file.seek(0, os.SEEK_END)
            self.present = sum(1 for _ in takewhile(lambda stop: stop <= size, self._starts[1:]))
            self._file.truncate(self._starts[self.present])
            self._checksums = [checksum(self.read(item.name)) for item in plan[: self.present]]
        except OSError as problem:
            raise self._refused(problem) from problem

    def write(self, name: str, tensor: Tensor) -> None:
        """The next tensor of the plan."""
        item = self._plan[self.present]
        assert (item.name, item.shape, item.dtype) == (name, tuple(tensor.shape), tensor.dtype), name
        try:
            self._file.seek(self._starts[self.present])
            self._file.write(bytes_of(tensor.contiguous()))
            self._file.flush()
            os.fsync(self._file.fileno())  # so that what counts as whole is whole after a power cut, too
        except OSError as problem:
            raise self._refused(problem) from problem
        self._checksums.append(checksum(tensor.contiguous()))
        self.present += 1

    def has(self, name: str) -> bool:
        return any(item.name == name for item in self._plan[: self.present])

    def read(self, name: str) -> Tensor:
        """A tensor that is there, in memory of its own."""
        place = next(place for place, item in enumerate(self._plan[: self.present]) if item.name == name)
        item = self._plan[place]
        out = torch.empty(item.shape, dtype=item.dtype)
        self._file.seek(self._starts[place])
        if self._file.readinto(bytes_of(out)) != item.bytes:
            raise ModelError(f"{self.partial} ends too early; remove it and begin again.")
        return out

    def finish(self) -> None:
        """Put the whole file in place."""
        assert self.present == len(self._plan), "every tensor is written"
        try:
            self._file.seek(self._starts[-1])
            self._file.write(trailer(self._checksums))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self.partial.replace(self._path)
            sync_folder(self._path.parent)
        except OSError as problem:
            raise self._refused(problem) from problem

    def close(self) -> None:
        self._file.close()

    def _refused(self, problem: OSError) -> ModelError:
        return ModelError(refusal(self.partial, problem))
